"""Make training and validation images comparable: read both alike, and find differences to warn of."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_anomaly.images.loaders import batch_size_of, drawn_positions
from lightning_anomaly.images.source import ImageSource, first_tensor, holder, image_hashes

_FEW = 16  # images to read twice: enough to notice a transform that changes each with probability 1/2
_MIN_IMAGES = 8  # for their mean and spread to mean something
_EQUAL = 0.01  # fraction of the validation images that may be training images

Seen = tuple[Tensor, list[int]]  # `_moments` of the images, and a hash of each


def read_once(sources: Mapping[str, ImageSource], max_bytes: int) -> tuple[dict[str, ImageSource], dict[str, Seen]]:
    """Read all images once, and hold those of both kinds in memory if they fit."""
    fit = sum(source.nbytes for source in sources.values()) <= max_bytes
    opened, seen = {}, {}
    for name, source in sources.items():
        held, moments, hashes = [], [], []
        for images in source.readable():
            moments.append(_moments(images))
            hashes += image_hashes(images)
            if fit and source.nbytes:
                held.append(images.cpu())
        opened[name] = ImageSource(torch.cat(held), name, source.batch_size) if held else source
        seen[name] = torch.cat(moments, 1), hashes
    return opened, seen


def without_augmentation(loader: Any, val_loader: Any) -> Any:
    """Load the training set with the transform of the validation set, if both are of one class with a transform."""
    dataset = _with_transform_of(loader.dataset, getattr(val_loader, "dataset", None))
    if dataset is None:
        return loader
    return DataLoader(
        dataset,
        batch_size_of(loader),
        sampler=drawn_positions(loader),  # what it leaves out may be the validation images
        collate_fn=val_loader.collate_fn,
        num_workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
    )


def _with_transform_of(dataset: Any, val_dataset: Any) -> Any:
    """Copy a data set shallowly with another's transform; None if it has none or the classes differ."""
    source = holder(val_dataset, "transform")
    copied = copy.copy(dataset)
    if hasattr(dataset, "transform"):
        if type(source) is not type(dataset):
            return None
        for name in ("transform", "transforms"):
            if hasattr(source, name):
                setattr(copied, name, getattr(source, name))
        return copied
    if not hasattr(dataset, "dataset"):
        return None
    copied.dataset = _with_transform_of(dataset.dataset, source)
    return None if copied.dataset is None else copied


def is_augmented(source: ImageSource) -> bool:
    """Whether images change with the order of reading, as a random transform makes them."""
    positions = source.positions[:_FEW]
    forward, backward = (
        torch.cat([images for _, images in source.batches(order)]) for order in (positions, positions[::-1])
    )
    return not torch.equal(forward, backward.flip(0))


def describe_doubts(from_user: Iterable[str], seen: Mapping[str, Seen], batch: Any) -> dict[str, str]:
    """Say why the images may not be comparable: `{key: sentence}`.

    Images in the arguments `from_user` should be scaled like those of a validation `batch`; None skips that check.
    """
    doubts = {}
    images = first_tensor(batch)
    if images is not None and len(images) >= _MIN_IMAGES and images.is_floating_point():
        mean, spread = _moments(images).median(1).values.tolist()
        for name in from_user:
            user_mean, user_spread = seen[name][0].median(1).values.tolist()
            if abs(user_mean - mean) > spread or not spread / 1.5 <= user_spread <= spread * 1.5:
                doubts[name] = (
                    f"The images in `{name}` are not scaled as the validation batches are: mean {user_mean:.2g} "
                    f"and standard deviation {user_spread:.2g} instead of {mean:.2g} and {spread:.2g}. Give them the "
                    "transform of the validation set."
                )
    training, validation = {*seen["train_inputs"][1]}, seen["val_inputs"][1]
    equal = sum(fingerprint in training for fingerprint in validation)
    if equal > _EQUAL * len(validation):
        doubts["equal"] = (
            f"{equal} of {len(validation)} validation images are training images too, so nobody can tell whether the "
            "network knows its training images."
        )
    return doubts


def _moments(images: Tensor) -> Tensor:
    """Compute mean and standard deviation of each image's pixels `(2, n)`, on the CPU."""
    spread, mean = torch.std_mean(images.detach().float().flatten(1), 1)
    return torch.stack([mean, spread]).cpu()
