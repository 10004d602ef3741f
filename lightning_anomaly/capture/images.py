"""The images in a batch, and those of a data set, read by their positions."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from lightning_anomaly.capture.loaders import BATCH, batch_size_of, drawn_positions, reread
from lightning_anomaly.capture.probe import tensors_in

_ATTEMPTS = 100  # images that may be unreadable before the first that is not


def first_tensor(batch: Any) -> Tensor | None:
    """Find the input of a model in a batch of tuples, lists, dicts or dataclasses: its first floating-point tensor.

    Images in bytes before it come first, which the model scales itself: the floating-point tensor is their target then.
    A number for each sample is only taken where no image follows.
    """
    found = [
        own
        for own in tensors_in(batch)
        if (own.ndim >= 3 if own.dtype == torch.uint8 else own.ndim >= 1 and own.is_floating_point())
    ]
    if found and found[0].ndim < 2:
        return next((tensor for tensor in found if tensor.ndim > 2), found[0])
    return found[0] if found else None


class ImageSource:
    """Images of one size by their positions, from a tensor `(N, ...)` or from a loader over a data set with a length.

    The order of the loader does not count. Errors call the images `argument`.
    """

    def __init__(self, images: Any, argument: str) -> None:
        self.argument = argument
        self._loader = None if isinstance(images, Tensor) else _checked(images, argument)
        self._data: Any = images if self._loader is None else self._loader.dataset
        self.batch_size = (None if self._loader is None else batch_size_of(self._loader)) or BATCH
        if len(self) == 0:
            raise ValueError(f"Parameter `{argument}` should hold images. Found none.")
        self.names, self.classes = file_names(self._data), _classes(self._data)
        self.class_names = class_names(self._data)
        self.unreadable: dict[int, str] = {}  # `{position: error}` so far; zeros stand for these images
        self.shape: tuple[int, ...] = ()
        first = (next(self.batches([position])) for position in range(min(len(self), _ATTEMPTS)))
        found = next((images for position, images in first if int(position) not in self.unreadable), None)
        if found is None:
            raise ValueError(
                f"Parameter `{argument}` should hold images that can be read. Of the first {len(self.unreadable)} none "
                f"can: {self.unreadable[0]}."
            )
        self.shape = tuple(found.shape[1:])

    def __len__(self) -> int:
        return len(self._data)

    def batches(self, positions: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Read the images at some positions, batch by batch: which `(n,)`, and the images `(n, ...)`."""
        split = torch.split(torch.as_tensor(positions, dtype=torch.int64, device="cpu"), self.batch_size)
        places = [own for own in split if len(own)]
        batches: Iterator[Any]
        if self._loader is None:
            batches = map(self._data.__getitem__, places)
        else:
            workers = self._loader.num_workers if len(places) > 1 else 0
            batches = iter(reread(self._loader, positions, num_workers=workers))  # may go on after an error
        for own in places:
            try:
                batch = next(batches)
            except Exception as error:  # whatever the data set raises
                error.__traceback__ = None  # it would keep the loader's workers alive
                images = torch.cat([self._read_alone(position) for position in own.tolist()])
            else:
                images = self._images_of(batch, len(own))
            yield own, images

    def _read_alone(self, position: int) -> Tensor:
        """Read one image of a batch that could not be read `(1, ...)`."""
        assert self._loader is not None
        try:
            batch = next(iter(reread(self._loader, [position], num_workers=0)))
        except Exception as error:
            self.unreadable[position] = _error_text(error)
            return torch.zeros(1, *self.shape, device="cpu")
        return self._images_of(batch, 1).cpu()

    def _images_of(self, batch: Any, count: int) -> Tensor:
        """Return the images in a batch of so many items, or raise ValueError."""
        images = first_tensor(batch)
        if images is None or not images.is_floating_point():
            found = getattr(batch if images is None else images, "dtype", "none")
            raise ValueError(f"Parameter `{self.argument}` should hold scaled floating-point images. Found {found}.")
        if self.shape and (shape := tuple(images.shape[1:])) != self.shape:
            found = f"{self.shape} and {shape}"
            raise ValueError(f"Parameter `{self.argument}` should hold images of one size. Found {found}.")
        if len(images) != count:
            raise ValueError(
                f"Parameter `{self.argument}` should give one image for each item of its data set. Found {len(images)} "
                f"for {count} items: its `collate_fn` should leave none out and add none."
            )
        return images


def holder(dataset: Any, attribute: str) -> Any:
    """Return the data set, or the one that it is a subset of, that has an attribute; None if none has it."""
    while dataset is not None and not hasattr(dataset, attribute):
        dataset = getattr(dataset, "dataset", None)
    return dataset


def file_names(dataset: Any) -> list[str] | None:
    """Return the files of a data set's images, below its `root`; None if it has no `samples` that name them."""
    samples = _column(dataset, "samples")
    if samples is None or not all(isinstance(own, tuple) and isinstance(own[0], str) for own in samples):
        return None
    root = os.path.join(getattr(holder(dataset, "root"), "root", ""), "")
    return [path.removeprefix(root) for path, *_ in samples]


def class_names(dataset: Any) -> tuple[str, ...]:
    """Return the names of a data set's classes, its `classes`; none if it has no such attribute."""
    return tuple(map(str, getattr(holder(dataset, "classes"), "classes", None) or ()))


def _error_text(error: Exception) -> str:
    """An error in words, without what Python shows of an object, such as `<_io.BufferedReader ...>`."""
    return f"{type(error).__name__}: {error}" if "<" not in str(error) else type(error).__name__


def _classes(dataset: Any) -> list[int] | None:
    """The class of each image; None if a data set has no `targets` that are integers."""
    targets = _column(dataset, "targets")
    return targets if targets is not None and all(isinstance(own, int) for own in targets) else None


def _column(dataset: Any, name: str) -> list[Any] | None:
    """What a data set, or the one that it is a subset of, has of each item as the attribute `name`."""
    if isinstance(dataset, Subset):
        whole = _column(dataset.dataset, name)
        return None if whole is None else [whole[index] for index in dataset.indices]
    values = getattr(dataset, name, None)
    if not isinstance(values, (list, Tensor)) or len(values) != len(dataset):
        return None
    return values if isinstance(values, list) else values.tolist()


def _checked(loader: Any, argument: str) -> DataLoader[Any]:
    """Raise ValueError unless this is a loader over all images of a data set with a length."""
    data = loader.dataset if isinstance(loader, DataLoader) else loader
    if not isinstance(loader, DataLoader) or not hasattr(data, "__len__") or isinstance(data, IterableDataset):
        found = type(data).__name__
    elif loader.batch_sampler is None:
        found = "`batch_size=None`: give a number, and a data set of single images"
    elif _leaves_out(loader):
        found = "a sampler that leaves some out: give a loader over `Subset(data_set, indices)` instead"
    else:
        return loader
    raise ValueError(
        f"Parameter `{argument}` should be a tensor (N, ...), or a DataLoader over a map-style data set with a length, "
        f"whose images it puts into batches. Found {found}."
    )


def _leaves_out(loader: DataLoader[Any]) -> bool:
    """Whether a sampler leaves some items out, other than by drawing with replacement."""
    drawn, data = drawn_positions(loader), cast(Any, loader.dataset)
    return drawn is not None and len(set(drawn)) == len(drawn) < len(data)
