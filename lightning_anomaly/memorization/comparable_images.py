"""Make training and validation images comparable: read both alike, and find differences to warn of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_anomaly.images.batch_tensors import first_tensor
from lightning_anomaly.images.dataset_facts import dataset_with
from lightning_anomaly.images.image_source import ImageSource, image_hashes
from lightning_anomaly.images.loaders import batch_size_of, epoch_positions, load_like, sampler_of, shuffles
from lightning_anomaly.network.hooks import compiled_models_eager

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
        opened[name].batch_labels = source.batch_labels
        seen[name] = torch.cat(moments, 1), hashes
    return opened, seen


def images_trained_on(loader: DataLoader[Any], batches: float) -> DataLoader[Any]:
    """Load what a run trains on in epochs of so many `batches` in each process, which may be infinite."""
    # What a sampler leaves out may be the validation images.
    drawn, size = epoch_positions(loader), batch_size_of(loader)
    if drawn is not None and size is not None and not shuffles(loader) and batches < math.inf:
        drawn = drawn[: int(batches) * size * getattr(sampler_of(loader), "num_replicas", 1)]
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
    return not torch.equal(first, again.roll(1, 0))


class ModelCalls:
    """Sees whether a step prepares images before it calls a model with them."""

    def __init__(self) -> None:
        self._hooks = ExitStack()
        self._given: Tensor | None = None  # the first images of the batch
        self._calls: list[Tensor] = []  # the first images of each call

    def attach(self, model: nn.Module, batch: Any) -> None:
        """Hook the model for a step with a batch; `remove` must follow, also after an exception."""
        images = first_tensor(batch)
        self._given, self._calls = None if images is None else images[:_FEW].clone(), []
        self._hooks.enter_context(compiled_models_eager())
        self._hooks.callback(model.register_forward_pre_hook(self._take_call, with_kwargs=True).remove)

    def _take_call(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        images = next(iter((*args, *kwargs.values())), None)
        with suppress(Exception):  # the step goes on, whatever it calls the model with
            if isinstance(images, Tensor):
                self._calls.append(images[:_FEW].clone())

    def remove(self) -> None:
        """Take the hook off; a second call does nothing."""
        self._hooks.close()

    @property
    def prepared(self) -> Tensor | None:
        """What the model was called with first, if no call had the images of the batch, converted or not."""
        calls = [] if self._given is None else self._calls
        return None if any(_same_images(self._given, images) for images in calls) else next(iter(calls), None)


def _same_images(first: Any, second: Tensor) -> bool:
    """Whether images have the same values within 1%, as conversions round them, whatever their number and shape."""
    first, second = (images[: min(len(first), len(second))].float().flatten() for images in (first, second))
    return first.shape == second.shape and torch.allclose(first, second, 1e-2, 1e-3, equal_nan=True)


def describe_differences(from_user: Iterable[str], seen: Mapping[str, Seen], batch: Any) -> dict[str, str]:
    """Say why the images may not be comparable: `{key: sentence}`.

    Images in the arguments `from_user` should be scaled like those of a validation `batch`; None skips that check.
    """
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
