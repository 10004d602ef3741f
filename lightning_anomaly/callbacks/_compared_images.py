"""The images that a `MemorizationCallback` compares: the user's, or those that the run sees, with their labels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_anomaly.callbacks._run_loss import RunLoss
from lightning_anomaly.images.batches import are_renamed, first_tensor, name_labels
from lightning_anomaly.images.image_source import ImageSource
from lightning_anomaly.images.loaders import first_loader, loader_of
from lightning_anomaly.images.thumbnails import SIDE, black_and_white, shrink_images, to_bytes
from lightning_anomaly.images.worker_process import in_worker
from lightning_anomaly.memorization.comparable_images import (
    comparable_transforms,
    describe_differences,
    images_trained_on,
    is_augmented,
    read_once,
)
from lightning_anomaly.memorization.label_doubts import KnownLabels


class ComparedImages(NamedTuple):
    """Training and validation images, in memory if they fit, their labels, and notes as `{key: sentence}`."""

    train: ImageSource
    val: ImageSource
    labels: KnownLabels
    notes: Mapping[str, str]
    data: Sequence[Any]  # the Trainer's data sets that they were sampled from

    @property
    def identity(self) -> str:
        """Tells these images with their labels from others."""
        known = self.labels.positions, len(self.val), self.labels.train, self.labels.val
        return hashlib.sha256(repr(known).encode()).hexdigest()

    def are_of(self, trainer: Any, given: Mapping[str, Any]) -> bool:
        """Whether the Trainer still has the data sets of these images."""
        return all(one is other for one, other in zip(self.data, _trainer_data(trainer, given), strict=True))

    def pictures(self, positions: Sequence[int]) -> Tensor | None:
        """Return small copies of training images, uint8 `(n, H, W, C)`; None if they cannot be drawn."""
        if len(self.train.shape) not in (3, 4) or not positions:
            return None
        places = dict(zip(self.labels.positions, self.train.positions, strict=True))  # other ones if in memory
        batches = self.train.batches([places[position] for position in positions])
        images = torch.cat([shrink_images(images, 2 * SIDE) for _, images in batches])  # few, so larger
        return to_bytes(images, black_and_white(images)).clone()  # no view, which would keep its base


def read_compared_images(
    trainer: Any,
    pl_module: Any,
    given: Mapping[str, Any],
    batch_size: int,
    sample_size: int,
    max_bytes: int,
    batch: Any,
    loss: RunLoss,
) -> ComparedImages:
    """Read the images once, those of the run without augmentation, and find what may be wrong with them."""
    prepared = loss.told.prepared
    opened, notes = partial(_open_compared, trainer, pl_module, given, batch_size, sample_size), {}
    try:
        sources = opened()
        images, seen = read_once(sources, max_bytes)
    except Exception as error:
        notes["no worker"] = (
            "Images are read in this process, as their loaders yield them, since a worker process cannot read them "
            f"({type(error).__name__}: {error})."
        )
    if notes:
        sources = opened(apart=False)
        images, seen = read_once(sources, max_bytes)
    train, val = sources.values()
    # Images that are read again at each comparison may be readable then.
    places, val_places = (
        [place for place in source.positions if images[name] is source or place not in source.unreadable]
        for name, source in sources.items()
    )
    notes |= {**train.notes(), **val.notes()}
    from_user = [name for name, source in given.items() if source is not None]
    differences = describe_differences(from_user, seen, batch if prepared is None else prepared)
    if prepared is not None and len(from_user) < len(given):
        differences["prepared"] = (
            "A validation step prepares images before it calls the module, and here they are compared as they come "
            "from the loader: give prepared images as `train_inputs` and `val_inputs`, or prepare them in "
            "`forward` or in the transform of the data set."
        )
    if given["train_inputs"] is None and is_augmented(train):
        differences["augmented"] = (
            "The training images are augmented anew each time, which hides the gap: give images without "
            "augmentation as `train_inputs`."
        )
    labels = _known_labels(loss, train, val, places, val_places)
    data = _trainer_data(trainer, given)
    return ComparedImages(images["train_inputs"], images["val_inputs"], labels, notes | differences, data)


def _known_labels(
    loss: RunLoss, train: ImageSource, val: ImageSource, places: Sequence[int], val_places: Sequence[int]
) -> KnownLabels:
    """Return the labels that the loss is given, by name if the numbers are the data set's."""
    own, other, numbers = loss.labels("train"), loss.labels("val"), train.batch_labels.numbers
    renamed = own.classes is not None or are_renamed(numbers.get(own.column, {}), train.targets)
    names = () if renamed or len(train.class_names) != loss.told.n_classes else train.class_names
    labels = name_labels(own.at(numbers, places), names)
    val_labels = name_labels(other.at(val.batch_labels.numbers, val_places), names)
    return KnownLabels(labels, val_labels, names, places, train.names, own.problem, train.folder)


def _trainer_data(trainer: Any, given: Mapping[str, Any]) -> list[Any]:
    """Return the data sets of the Trainer that are compared, as a user has not given others."""
    own = {"train_inputs": trainer.train_dataloader, "val_inputs": trainer.val_dataloaders}
    return [getattr(first_loader(own[name]), "dataset", None) for name, images in given.items() if images is None]


def _open_compared(
    trainer: Any, pl_module: Any, given: Mapping[str, Any], batch_size: int, sample_size: int, *, apart: bool = True
) -> dict[str, ImageSource]:
    """Open both kinds of images; data sets are read in a worker process, `apart` from this one."""
    own = {"train_inputs": trainer.train_dataloader, "val_inputs": trainer.val_dataloaders}
    chosen = {name: first_loader(own[name]) if images is None else images for name, images in given.items()}
    loaders = {name: loader_of(images, name) for name, images in chosen.items() if not isinstance(images, Tensor)}
    prepared: dict[str, Any] = {}  # how a worker reads otherwise than the loader
    if given["train_inputs"] is None:
        loader = loaders["train_inputs"] = images_trained_on(loaders["train_inputs"], trainer.num_training_batches)
        val_loader = loaders.get("val_inputs")
        if val_loader is not None and (transforms := comparable_transforms(val_loader.dataset, loader.dataset)):
            prepared["train_inputs"] = {"attributes": transforms, "collate_fn": val_loader.collate_fn}
    sources = dict[str, ImageSource]()
    for name, images in chosen.items():
        if isinstance(images, Tensor):
            images = trainer.strategy.precision_plugin.convert_input(images)
            sources[name] = ImageSource(images, name, batch_size)
            continue
        loader = in_worker(loaders[name], **prepared.get(name, {})) if apart else loaders[name]
        convert = partial(_transferred_images, trainer, pl_module)
        sources[name] = ImageSource(loader, name, batch_size, max_images=sample_size, convert=convert)
    return sources


def _transferred_images(trainer: Any, pl_module: Any, batch: Any) -> Tensor | None:
    """Convert and move a batch as a validation does, and return its images."""
    batch = pl_module._on_before_batch_transfer(trainer.strategy.precision_plugin.convert_input(batch))
    return first_tensor(trainer.strategy.batch_to_device(batch, dataloader_idx=0))
