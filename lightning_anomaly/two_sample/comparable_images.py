"""Training and validation images that can be compared: read alike, and warned about where they differ."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_anomaly.images.loaders import batch_size_of, drawn_positions
from lightning_anomaly.images.source import ImageSource, first_tensor, holder

Seen = tuple[Tensor, list[int]]  # `_moments` of images, and a number for each, the same for the same image


def read_once(sources: Mapping[str, ImageSource], max_bytes: int) -> tuple[dict[str, ImageSource], dict[str, Seen]]:
    """Read all images, and keep them in memory if those of both kinds fit."""
    fit = sum(source.nbytes for source in sources.values()) <= max_bytes
    opened, seen = {}, {}
    for name, source in sources.items():
        kept, moments, fingerprints = [], [], []
        for images in source.readable():
            moments.append(_moments(images))
            rows = images.detach().cpu().reshape(len(images), -1).contiguous().view(torch.uint8).numpy()
            fingerprints += [hash(row.tobytes()) for row in rows]
            if fit and source.nbytes:
                kept.append(images.cpu())
        opened[name] = ImageSource(torch.cat(kept), name, source.batch_size) if kept else source
        seen[name] = torch.cat(moments, 1), fingerprints
    return opened, seen


def without_augmentation(loader: Any, val_loader: Any) -> Any:
    """Load the training set as validation images are loaded, if their data sets have a transform."""
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


def _with_transform_of(dataset: Any, other: Any) -> Any:
    """Copy a data set shallowly with the transform of another one; None without a transform, or of another class."""
    other = holder(other, "transform")
    copied = copy.copy(dataset)
    if hasattr(dataset, "transform"):
        if type(other) is not type(dataset):
            return None
        for name in ("transform", "transforms"):
            if hasattr(other, name):
                setattr(copied, name, getattr(other, name))
        return copied
    if not hasattr(dataset, "dataset"):
        return None
    copied.dataset = _with_transform_of(dataset.dataset, other)
    return None if copied.dataset is None else copied


def is_augmented(source: ImageSource) -> bool:
    """Whether images change with the order in which they are read, as those of a random transform do."""
    some = source.positions[:_FEW]
    orders = some, some[::-1]
    there, back = (torch.cat([images for _, images in source.batches(order)]) for order in orders)
    return not torch.equal(there, back.flip(0))


_FEW = 16  # images of which at least one is flipped in one order only, if each is with probability 1/2
_MIN_IMAGES = 8  # images whose mean and spread say something
_EQUAL = 0.01  # share of the validation images


def describe_doubts(given: Iterable[str], seen: Mapping[str, Seen], batch: Any) -> dict[str, str]:
    """Say why the images may not be comparable: `{key: sentence}`.

    `given` are the arguments with images of the user; `batch` is one of the validation, or None.
    """
    found = {}
    images = first_tensor(batch)
    if images is not None and len(images) >= _MIN_IMAGES and images.is_floating_point():
        mean, spread = _moments(images).median(1).values.tolist()  # those of an ordinary image
        for name in given:
            found_mean, found_spread = seen[name][0].median(1).values.tolist()
            if abs(found_mean - mean) > spread or not spread / 1.5 <= found_spread <= spread * 1.5:
                found[name] = (
                    f"The images in `{name}` are not scaled as the validation batches are: mean {found_mean:.2g} "
                    f"and standard deviation {found_spread:.2g} instead of {mean:.2g} and {spread:.2g}. Give them the "
                    "transform of the validation set."
                )
    known, val = {*seen["train_inputs"][1]}, seen["val_inputs"][1]
    equal = sum(one in known for one in val)
    if equal > _EQUAL * len(val):
        found["equal"] = (
            f"{equal} of {len(val)} validation images of TwoSampleCallback are training images too, so it cannot tell "
            "whether the network knows its training images."
        )
    return found


def _moments(images: Tensor) -> Tensor:
    """Mean and standard deviation of each image's pixels `(2, n)`, on the CPU."""
    spread, mean = torch.std_mean(images.detach().float().flatten(1), 1)
    return torch.stack([mean, spread]).cpu()
