"""The samples of a probe: a few of their pixels, small images, classes and files."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_anomaly.images.loaders import drawn_positions, first_loader
from lightning_anomaly.images.source import class_names, file_names, first_tensor, tensors_in
from lightning_anomaly.images.thumbnails import SIDE, shrink

_SIDE = 4  # pixels compared along each axis of a sample, or up to twice as many


def sample_pixels(images: Tensor, limit: int) -> Tensor:
    """Copy a few pixels of each sample, of `limit` at most; they stay on their device."""
    places = [slice(size // _SIDE // 2, None, max(1, size // _SIDE)) for size in images.shape[1:]]
    grid = (slice(limit), *places)
    # A view, whatever the memory format; then a copy, as the model may change its input in place.
    return images.detach()[grid].to(torch.float32, copy=True).flatten()


def same_pixels(before: Tensor, now: Tensor) -> bool:
    """Whether pixels are equal to a hundredth: rounding that differs, as on a GPU it may, is no change."""
    tolerance = 1e-3 * before.nan_to_num(0, 0, 0).abs().sum().item() / max(1, len(before))
    return before.shape == now.shape and torch.allclose(before, now, rtol=1e-2, atol=tolerance, equal_nan=True)


class ProbeSamples:
    """Collects pixels, targets and, if `keep_images`, small images of samples, batch by batch."""

    def __init__(self, keep_images: bool) -> None:
        self.count = 0  # samples given
        self._pixels: list[Tensor] = []
        self._images: list[Tensor] | None = [] if keep_images else None
        self._targets: list[Tensor | None] = []  # of the whole validation

    def add(self, batch: Any, limit: int) -> None:
        """Take a batch of the probe, of `limit` samples at most; of volumes the middle slices."""
        images = first_tensor(batch)
        if images is not None:
            self.count += len(images)
            self._pixels.append(sample_pixels(images, limit))
        if images is None or not 2 <= images.ndim <= 5 or not images.numel():
            self._images = None  # nothing that can be drawn
        elif self._images is not None:
            # A copy, as the model may change its input in place.
            self._images.append(shrink(images, SIDE)[:limit].clone())

    def add_targets(self, batch: Any) -> None:
        """Copy what may be classes of any batch of the validation: its first int64 numbers, one for each sample."""
        images = first_tensor(batch)
        rows = None if images is None else images.shape[:1]
        numbers = (tensor for tensor in tensors_in(batch) if tensor.dtype == torch.int64)
        targets = (tensor.clone() for tensor in numbers if tensor.shape == rows)
        self._targets.append(next(targets, None))

    @property
    def pixels(self) -> Tensor:
        """A few pixels of each sample, to know them again."""
        return torch.cat([pixels.cpu() for pixels in self._pixels]) if self._pixels else torch.zeros(0, device="cpu")

    @property
    def images(self) -> Tensor | None:
        """Images `(n, C, H, W)` or signals `(n, C, L)`; None if unknown, or of several sizes.

        There may be more or fewer of them than maps: a layer may get parts of a batch.
        """
        one_size = len({images.shape[1:] for images in self._images or ()}) == 1
        return torch.cat(self._images) if self._images and one_size else None

    def classes(self, samples: int, outputs: int) -> Tensor | None:
        """The classes of the whole validation; None if unknown, or not of as many `samples` and `outputs`."""
        targets = [batch for batch in self._targets if batch is not None]
        if not targets or len(targets) < len(self._targets):
            return None
        found = torch.cat(targets).cpu()
        return found if len(found) >= samples and found.min() >= 0 and found.max() < outputs else None


def probe_class_names(loaders: Any) -> tuple[str, ...]:
    """The names of the classes of the first loader's data set."""
    return class_names(getattr(first_loader(loaders), "dataset", None))


def label_texts(classes: Tensor, predicted: Tensor, loaders: Any) -> list[str]:
    """The class of each sample `(N,)`, by its name if there is one, and what is predicted if that is another."""
    names = dict(enumerate(probe_class_names(loaders)))
    true, found = ([str(names.get(place, place)) for place in part.tolist()] for part in (classes, predicted))
    return [one if one == two else f"{one}, predicted {two}" for one, two in zip(true, found, strict=True)]


def probe_files(loaders: Any, samples: int) -> list[str] | None:
    """The files of the first samples that a loader draws; None if its data set has none."""
    loader = first_loader(loaders)
    files = file_names(getattr(loader, "dataset", None))
    positions = None if files is None else drawn_positions(loader)
    return None if files is None or positions is None else [files[place] for place in positions[:samples]]
