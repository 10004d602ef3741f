"""The samples of a probe: some of their pixels, small images, classes and files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_anomaly.images.loaders import drawn_positions, first_loader
from lightning_anomaly.images.source import file_names, first_tensor, tensors_in
from lightning_anomaly.images.thumbnails import SIDE, shrink

_GRID = 4  # pixels compared along each axis of a sample; up to 7, as the step is rounded down


def sample_pixels(images: Tensor, limit: int) -> Tensor:
    """Copy some pixels of each sample, of `limit` samples at most; they stay on their device."""
    places = [slice(size // _GRID // 2, None, max(1, size // _GRID)) for size in images.shape[1:]]
    grid = (slice(limit), *places)
    # A copy, as the model may change its input in place.
    return images.detach()[grid].to(torch.float32, copy=True).flatten()


def same_pixels(before: Tensor, now: Tensor) -> bool:
    """Whether pixels are equal within 1%, as rounding may differ on a GPU."""
    tolerance = 1e-3 * before.nan_to_num(0, 0, 0).abs().sum().item() / max(1, len(before))
    return before.shape == now.shape and torch.allclose(before, now, rtol=1e-2, atol=tolerance, equal_nan=True)


class ProbeSamples:
    """Collect pixels, targets and, with `keep_images`, small images of samples, batch by batch."""

    def __init__(self, keep_images: bool) -> None:
        self.count = 0  # samples in the batches so far
        self._pixels: list[Tensor] = []
        self._images: list[Tensor] | None = [] if keep_images else None
        self._targets: list[Tensor | None] = []  # of the whole validation

    def add(self, batch: Any, limit: int) -> None:
        """Add a batch of the probe, `limit` samples at most; volumes give their middle slices."""
        images = first_tensor(batch)
        if images is not None:
            self.count += len(images)
            self._pixels.append(sample_pixels(images, limit))
        if images is None or not 2 <= images.ndim <= 5 or not images.numel():
            self._images = None  # cannot be drawn
        elif self._images is not None:
            # A copy, as the model may change its input in place.
            self._images.append(shrink(images, SIDE)[:limit].clone())

    def add_targets(self, batch: Any) -> None:
        """Copy the possible classes of any batch of the validation: its first int64 tensor `(n,)`."""
        images = first_tensor(batch)
        rows = None if images is None else images.shape[:1]
        targets = (tensor for tensor in tensors_in(batch) if tensor.dtype == torch.int64 and tensor.shape == rows)
        self._targets.append(next((tensor.clone() for tensor in targets), None))

    @property
    def pixels(self) -> Tensor:
        """Some pixels of each sample, to recognize it in the next probe."""
        return torch.cat([pixels.cpu() for pixels in self._pixels]) if self._pixels else torch.zeros(0, device="cpu")

    @property
    def images(self) -> Tensor | None:
        """Images `(n, C, H, W)` or signals `(n, C, L)`; None if unknown, or of several sizes.

        Their number may differ from that of the maps: a layer may get parts of a batch.
        """
        one_size = len({images.shape[1:] for images in self._images or ()}) == 1
        return torch.cat(self._images) if self._images and one_size else None

    def classes(self, samples: int, outputs: int) -> Tensor | None:
        """The classes of the whole validation; None unless at least `samples` are known, all below `outputs`."""
        targets = [batch for batch in self._targets if batch is not None]
        if not targets or len(targets) < len(self._targets):
            return None
        classes = torch.cat(targets).cpu()
        return classes if len(classes) >= samples and classes.min() >= 0 and classes.max() < outputs else None


def label_texts(classes: Tensor, predicted: Tensor, class_names: Sequence[str]) -> list[str]:
    """Describe the class of each sample, by name if it has one, and the predicted class `(N,)` if that differs."""
    names = dict(enumerate(class_names))
    true, guessed = ([str(names.get(place, place)) for place in part.tolist()] for part in (classes, predicted))
    return [name if name == guess else f"{name}, predicted {guess}" for name, guess in zip(true, guessed, strict=True)]


def probe_files(loaders: Any, samples: int) -> list[str] | None:
    """Return the files of the first samples that a loader draws; None if its data set has none."""
    loader = first_loader(loaders)
    files = file_names(getattr(loader, "dataset", None))
    positions = None if files is None else drawn_positions(loader)
    return None if files is None or positions is None else [files[place] for place in positions[:samples]]
