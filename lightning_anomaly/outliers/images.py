"""The images of a tensor or of a loader's data set, by their positions in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_anomaly.capture.images import first_tensor
from lightning_anomaly.capture.loaders import drawn_from, reread

__all__ = ["ImageSource"]

_BATCH = 64


class ImageSource:
    """Images of one size by their positions, from a tensor or from a loader's data set.

    Args:
        images: A tensor `(N, ...)`, or a loader over a data set with a length; its order does not count.
        argument: The name that errors call `images` by.

    Attributes:
        argument: See above.
        batch_size: Number of images in a batch.
        shape: Shape of an image.

    Raises:
        ValueError: If `images` is something else or has none.
    """

    def __init__(self, images: Any, argument: str) -> None:
        self.argument = argument
        self._tensor = images if isinstance(images, Tensor) else None
        self._loader: DataLoader[Any] | None = None if isinstance(images, Tensor) else _checked(images, argument)
        self.batch_size = _BATCH if self._loader is None else self._loader.batch_size or _BATCH
        if len(self) == 0:
            raise ValueError(f"Parameter `{argument}` should hold images. Found none.")
        self.shape: tuple[int, ...] = ()
        self.shape = tuple(self.take([0]).shape[1:])

    def __len__(self) -> int:
        if self._loader is None:
            return len(self._tensor) if self._tensor is not None and self._tensor.ndim else 0
        dataset: Any = self._loader.dataset
        return len(dataset)

    def take(self, positions: Sequence[int]) -> Tensor:
        """The images at some positions `(n, ...)`."""
        return torch.cat([batch for _, batch in self.batches(positions)])

    def batches(self, positions: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """The images at some positions, batch by batch: which `(n,)`, and the images `(n, ...)`.

        Raises:
            ValueError: If they are of another size than the first one, not as many as the positions, or no
                floating-point tensor.
        """
        split = torch.split(torch.as_tensor(positions, dtype=torch.int64, device="cpu"), self.batch_size)
        places = [own for own in split if len(own)]
        for own, batch in zip(places, self._read(positions, places), strict=True):
            images = first_tensor(batch)
            if images is None or not images.is_floating_point():
                tensor = batch if images is None else images
                found = tensor.dtype if isinstance(tensor, Tensor) else "none"
                raise ValueError(
                    f"Parameter `{self.argument}` should hold floating-point images, scaled as in the training. "
                    f"Found {found}."
                )
            if self.shape and tuple(images.shape[1:]) != self.shape:
                raise ValueError(_several_sizes(self.argument, f"{self.shape} and {tuple(images.shape[1:])}"))
            if len(images) != len(own):
                raise ValueError(
                    f"Parameter `{self.argument}` should give one image for each item of its data set, by whose "
                    f"position it is known. Found {len(images)} for {len(own)} items: give a loader whose `collate_fn` "
                    "leaves none out and adds none."
                )
            yield own, images

    def _read(self, positions: Sequence[int], places: Sequence[Tensor]) -> Iterator[Any]:
        if self._loader is None:
            assert self._tensor is not None
            yield from (self._tensor[own.to(self._tensor.device)] for own in places)
            return
        workers = self._loader.num_workers if len(places) > 1 else 0
        try:
            yield from reread(self._loader, positions, batch_size=self.batch_size, num_workers=workers)
        except RuntimeError as error:
            if "equal size" in str(error):
                raise ValueError(_several_sizes(self.argument, "several in one batch")) from error
            raise


def _checked(loader: Any, argument: str) -> DataLoader[Any]:
    """Raises ValueError unless this is a loader of images with a length."""
    if not isinstance(loader, DataLoader):
        raise ValueError(
            f"Parameter `{argument}` should be a tensor (N, ...) or one DataLoader, such as a data module's "
            f"`val_dataloader()` or `DataLoader(data_set, batch_size=64)`. Found {type(loader).__name__}."
        )
    data = loader.dataset
    found = None
    if isinstance(data, IterableDataset) or not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        found = f"{type(data).__name__}: give a map-style data set, or the images as one tensor"
    elif loader.batch_sampler is None:
        found = "`batch_size=None`: give a number, and a data set of single images"
    elif drawn_from(loader) is not None:  # the images that it leaves out would be taken too
        found = (
            "a sampler that leaves some out: give a loader without it, or over `Subset(data_set, indices)`, whose "
            "positions are then those"
        )
    if found:
        raise ValueError(
            f"Parameter `{argument}` should be a loader over a data set with a length, whose images it puts into "
            f"batches. Found {found}."
        )
    return loader


def _several_sizes(argument: str, found: str) -> str:
    return (
        f"Parameter `{argument}` should hold images of one size. Found {found}: resize them, or give each size "
        "on its own."
    )
