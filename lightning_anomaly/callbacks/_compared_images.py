"""The images that a `MemorizationCallback` compares: those given, or those that the run sees, read alike."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, WeightedRandomSampler

from lightning_anomaly.callbacks._run_loss import RunLoss
from lightning_anomaly.images.batches import are_renamed, first_tensor, name_labels
from lightning_anomaly.images.image_source import ImageSource, image_hashes
from lightning_anomaly.images.loaders import (
    batch_size_of,
    dataset_with,
    epoch_positions,
    first_loader,
    load_like,
    loader_of,
    sampler_of,
    shuffles,
)
from lightning_anomaly.images.thumbnails import SIDE, black_and_white, shrink_images, to_bytes
from lightning_anomaly.images.worker_process import in_worker
from lightning_anomaly.memorization.label_doubts import KnownLabels

_FEW = 16  # images to read twice: enough to notice a transform that changes each with probability 1/2
_MIN_IMAGES = 8  # for their mean and spread to mean something
_EQUAL = 0.01  # fraction of the validation images that may be training images

Seen = tuple[Tensor, list[int]]  # `_image_moments` of the images, and a hash of each


class ComparedImages(NamedTuple):
    """Training and validation images, in memory if they fit, and notes as `{key: sentence}`."""

    train: ImageSource
    val: ImageSource
    read: tuple[ImageSource, ImageSource]  # as they were read, with what may be their labels
    places: tuple[list[int], list[int]]  # of these images in their data sets
    notes: Mapping[str, str]
    data: Sequence[Any]  # sets that they were sampled from

    @property
    def identity(self) -> str:
        """Tells these images from others."""
        return hashlib.sha256(repr((self.places[0], len(self.val))).encode()).hexdigest()

    def labels(self, loss: RunLoss, logits_from: str | None) -> KnownLabels:
        """Return the labels that the loss is given now, by name if the numbers are the data set's."""
        (train, val), (places, val_places) = self.read, self.places
        own, other = (loss.labels(kind, logits_from) for kind in ("train", "val"))
        numbers, n_classes = train.batch_labels.numbers, loss.input(logits_from).n_classes
        renamed = own.renames or are_renamed(numbers.get(own.column, {}), train.targets)
        names = () if renamed or len(train.class_names) != n_classes else train.class_names
        labels = name_labels(own.at(numbers, places), names)
        val_labels = name_labels(other.at(val.batch_labels.numbers, val_places), names)
        return KnownLabels(labels, val_labels, names, places, train.names, own.problem, train.folder)

    def are_of(self, trainer: Any, given: Mapping[str, Any]) -> bool:
        """Whether the Trainer still has the data sets of these images."""
        chosen = _chosen_images(trainer, given).values()
        return all(getattr(one, "dataset", one) is other for one, other in zip(chosen, self.data, strict=True))

    def pictures(self, positions: Sequence[int]) -> Tensor | None:
        """Return small copies of training images, uint8 `(n, H, W, C)`; None if they cannot be drawn."""
        if len(self.train.shape) not in (3, 4) or not positions:
            return None
        places = dict(zip(self.places[0], self.train.positions, strict=True))  # other ones if in memory
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
) -> ComparedImages:
    """Read the images once, those of the run without augmentation, and find what may be wrong with them.

    Images that a user gives should be scaled as in the `batch`, which is what the module was called with.
    """
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
    differences = describe_differences(from_user, seen, batch)
    if given["train_inputs"] is None and is_augmented(train):
        differences["augmented"] = (
            "The training images are augmented anew each time, which hides the gap: give images without "
            "augmentation as `train_inputs`."
        )
    data = [getattr(one, "dataset", one) for one in _chosen_images(trainer, given).values()]
    held = images["train_inputs"], images["val_inputs"]
    return ComparedImages(*held, (train, val), (places, val_places), notes | differences, data)


def _chosen_images(trainer: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is given of both kinds, or else the first loader of the Trainer."""
    own = {"train_inputs": trainer.train_dataloader, "val_inputs": trainer.val_dataloaders}
    return {name: first_loader(own[name]) if images is None else images for name, images in given.items()}


def _open_compared(
    trainer: Any, pl_module: Any, given: Mapping[str, Any], batch_size: int, sample_size: int, *, apart: bool = True
) -> dict[str, ImageSource]:
    """Open both kinds of images; data sets are read in a worker process, `apart` from this one."""
    chosen, sources = _chosen_images(trainer, given), dict[str, ImageSource]()
    for name, images in chosen.items():
        if isinstance(images, Tensor):
            images = trainer.strategy.precision_plugin.convert_input(images)
            sources[name] = ImageSource(images, name, batch_size)
            continue
        loader, changed = loader_of(images, name), dict[str, Any]()  # how a worker reads otherwise
        if name == "train_inputs" and given[name] is None:
            loader = images_trained_on(loader, trainer.num_training_batches)
            val = chosen["val_inputs"]
            val_loader = None if isinstance(val, Tensor) else loader_of(val, "val_inputs")
            if val_loader is not None and (transforms := comparable_transforms(val_loader.dataset, loader.dataset)):
                changed = {"attributes": transforms, "collate_fn": val_loader.collate_fn}
        loader = in_worker(loader, **changed) if apart else loader
        convert = partial(_transferred_images, trainer, pl_module)
        sources[name] = ImageSource(loader, name, batch_size, max_images=sample_size, convert=convert)
    return sources


def _transferred_images(trainer: Any, pl_module: Any, batch: Any) -> Tensor | None:
    """Convert and move a batch as a validation does, and return its images."""
    batch = pl_module._on_before_batch_transfer(trainer.strategy.precision_plugin.convert_input(batch))
    return first_tensor(trainer.strategy.batch_to_device(batch, dataloader_idx=0))


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
