"""Make training and validation images comparable: read both alike, and find differences to warn of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, WeightedRandomSampler

from lightning_anomaly.images.batches import first_tensor
from lightning_anomaly.images.image_source import ImageSource, image_hashes
from lightning_anomaly.images.loaders import (
    batch_size_of,
    dataset_with,
    epoch_positions,
    load_like,
    sampler_of,
    shuffles,
)

_FEW = 16  # images to read twice: enough to notice a transform that changes each with probability 1/2
_MIN_IMAGES = 8  # for their mean and spread to mean something
_EQUAL = 0.01  # fraction of the validation images that may be training images

Seen = tuple[Tensor, list[int]]  # `_image_moments` of the images, and a hash of each


def read_once(sources: Mapping[str, ImageSource], max_bytes: int) -> tuple[dict[str, ImageSource], dict[str, Seen]]:
    """Read all images once, and hold those of both kinds in memory if they fit."""
    fit = sum(source.nbytes for source in sources.values()) <= max_bytes
    opened, seen = {}, {}
    for name, source in sources.items():
        held, moments, hashes = [], [], []
        for images in source.readable_batches():
            moments.append(_image_moments(images))
            hashes += image_hashes(images)
            if fit and source.nbytes:
                held.append(images.cpu())
        opened[name] = ImageSource(torch.cat(held), name, source.batch_size) if held else source
        seen[name] = torch.cat(moments, 1), hashes
    return opened, seen


def images_trained_on(loader: DataLoader[Any], batches: float) -> DataLoader[Any]:
    """Load what a run trains on in epochs of so many `batches` in each process, which may be infinite."""
    # What a sampler leaves out may be the validation images.
    drawn, size, sampler = epoch_positions(loader), batch_size_of(loader), sampler_of(loader)
    if isinstance(sampler, WeightedRandomSampler):  # an epoch has some of them
        drawn = sampler.weights.nonzero()[:, 0].tolist()
    elif isinstance(sampler, RandomSampler):
        drawn = [*range(len(sampler.data_source))]
    if drawn is not None and size is not None and not shuffles(loader) and batches < math.inf:
        drawn = drawn[: int(batches) * size * getattr(sampler, "num_replicas", 1)]
    return load_like(loader, batch_size=size, sampler=drawn)


def comparable_transforms(val_dataset: Any, dataset: Any) -> dict[str, Any]:
    """Return the transforms of a validation set that a training set can take over; none if their classes differ."""
    source, target = (dataset_with(data, "transform") for data in (val_dataset, dataset))
    names = [name for name in ("transform", "transforms") if hasattr(source, name)]
    kinds = [getattr(type(target), name, None) for name in names]
    read_only = any(isinstance(kind, property) and kind.fset is None for kind in kinds)
    if type(source) is not type(target) or read_only:
        return {}
    return {name: getattr(source, name) for name in names}


def is_augmented(source: ImageSource) -> bool:
    """Whether images change with the order of reading, as a random transform makes them."""
    order = [*source.positions[:_FEW]]
    first, again = (torch.cat([*map(itemgetter(1), source.batches(o))]) for o in (order, order[1:] + order[:1]))
    return not torch.allclose(first, again.roll(1, 0), 0, 0, equal_nan=True)


def describe_differences(from_user: Iterable[str], seen: Mapping[str, Seen], batch: Any) -> dict[str, str]:
    """Say why the images may not be comparable: those of the user should be scaled like a validation batch, if any."""
    differences = {}
    images = first_tensor(batch)
    if images is not None and len(images) >= _MIN_IMAGES and images.is_floating_point():
        mean, spread = _image_moments(images).median(1).values.tolist()
        for name in from_user:
            user_mean, user_spread = seen[name][0].median(1).values.tolist()
            if abs(user_mean - mean) > spread or not spread / 1.5 <= user_spread <= spread * 1.5:
                differences[name] = (
                    f"The images in `{name}` are not scaled as the validation batches are: mean {user_mean:.2g} "
                    f"and standard deviation {user_spread:.2g} instead of {mean:.2g} and {spread:.2g}. Give them the "
                    "transform of the validation set."
                )
    training, validation = {*seen["train_inputs"][1]}, seen["val_inputs"][1]
    equal = sum(fingerprint in training for fingerprint in validation)
    if equal > _EQUAL * len(validation):
        differences["equal"] = (
            f"{equal} of {len(validation)} validation images are training images too, so nobody can tell whether the "
            "network knows its training images."
        )
    return differences


def _image_moments(images: Tensor) -> Tensor:
    """Compute mean and standard deviation of each image's pixels `(2, n)`, on the CPU."""
    spread, mean = torch.std_mean(images.detach().float().flatten(1), 1)
    return torch.stack([mean, spread]).cpu()
