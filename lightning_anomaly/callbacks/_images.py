"""The images that a `TwoSampleCallback` compares: a fixed random sample of each data set, read once in a fit."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_anomaly.callbacks._probe import transferred
from lightning_anomaly.capture.hooks import isolated_random_state
from lightning_anomaly.capture.images import first_tensor, holder
from lightning_anomaly.capture.loaders import batch_size_of, first_loader, reread, training_positions

# Without type arguments, as the command line takes none for a data set of a parametrised type.
Source = Tensor | Dataset | DataLoader | None  # type: ignore[type-arg]


def read_images(trainer: Any, pl_module: Any, train: Source, val: Source, size: int) -> tuple[Tensor, Tensor]:
    """Return the training and the validation images `(n, ...)`, `(m, ...)` on the CPU, the same ones each time.

    A tensor is taken whole, and of anything else a random sample of `size`. None takes the Trainer's own: training
    images with the transform of the validation images, where their data sets have one, and else as the loader yields
    them.
    """
    chosen = trainer.train_dataloader if train is None else train, trainer.val_dataloaders if val is None else val
    sources = [first_loader(DataLoader(own, batch_size=64) if isinstance(own, Dataset) else own) for own in chosen]
    images = []
    with isolated_random_state(seed=0):
        for name, source in zip(("train_inputs", "val_inputs"), sources, strict=True):
            if isinstance(source, Tensor):
                images.append(source)
                continue
            positions = training_positions(source, size, seed=0, what=f"`{name}`, given or the Trainer's own,")
            if train is None and name == "train_inputs":
                source = _without_augmentation(source, sources[1])
            images.append(torch.cat([_inputs(trainer, pl_module, batch) for batch in reread(source, positions)]))
    return images[0], images[1]


def _without_augmentation(loader: Any, val_loader: Any) -> Any:
    """Load the training set as validation images are loaded, and say whether that is possible."""
    dataset = _with_transform_of(loader.dataset, getattr(val_loader, "dataset", None))
    if dataset is None:
        rank_zero_info(
            "TwoSampleCallback takes training images as the loader yields them; if that augments them, give plain ones "
            "as `train_inputs`, or the gap hardly shows."
        )
        return loader
    rank_zero_info("TwoSampleCallback takes training images with the transform of the validation images.")
    return DataLoader(
        dataset,
        batch_size_of(loader),
        collate_fn=val_loader.collate_fn,
        num_workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
    )


def _with_transform_of(dataset: Any, other: Any) -> Any:
    """Copy a data set like torchvision's, shallowly, with the transform of another one; None if that makes no sense."""
    other = holder(other, "transform")
    own = copy.copy(dataset)
    if hasattr(dataset, "transform"):
        if type(other) is not type(dataset):
            return None
        for name in ("transform", "transforms"):
            if hasattr(other, name):
                setattr(own, name, getattr(other, name))
        return own
    if not hasattr(dataset, "dataset"):
        return None
    own.dataset = _with_transform_of(dataset.dataset, other)
    return None if own.dataset is None else own


def _inputs(trainer: Any, pl_module: Any, batch: Any) -> Tensor:
    """The images of a batch as Lightning would validate them, on the CPU."""
    images = first_tensor(transferred(trainer, pl_module, batch))
    if images is None:
        raise ValueError(f"A batch should hold images. Found {type(batch).__name__}.")
    return images.cpu()


_MIN_IMAGES = 8  # images whose mean and spread say something
_EQUAL = 0.01  # share of the validation images


def describe_doubts(given: Mapping[str, Tensor], train: Tensor, val: Tensor, batch: Any) -> dict[str, str]:
    """Say in a sentence each, by a key, why images may not be what they should be: one kind each, prepared alike.

    `given` are those of the user, by the name of the argument; `batch` is one of the validation, or None.
    """
    found = {}
    seen = first_tensor(batch)
    if seen is not None and len(seen) >= _MIN_IMAGES and seen.is_floating_point():
        mean, spread = _scale(seen)
        for name, images in given.items():
            own_mean, own_spread = _scale(images)
            if abs(own_mean - mean) > spread or not spread / 1.5 <= own_spread <= spread * 1.5:
                found[name] = (
                    f"The images in `{name}` are not scaled as the validation batches are: mean {own_mean:.2g} and "
                    f"standard deviation {own_spread:.2g} instead of {mean:.2g} and {spread:.2g}. Give them the "
                    "transform of the validation set."
                )
    known = set(_fingerprints(train))
    equal = sum(one in known for one in _fingerprints(val))
    if equal > _EQUAL * len(val):
        found["equal"] = (
            f"{equal} of {len(val)} validation images of TwoSampleCallback are training images too, so it cannot tell "
            "whether the network knows its training images."
        )
    return found


def _scale(images: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of the pixels of an ordinary image: medians over the images."""
    spread, mean = torch.std_mean(images.detach().float().flatten(1), 1)
    return mean.median().item(), spread.median().item()


def _fingerprints(images: Tensor) -> list[int]:
    """A number for each image, the same for the same image."""
    rows = images.cpu().reshape(len(images), -1).contiguous().view(torch.uint8).numpy()
    return [hash(row.tobytes()) for row in rows]
