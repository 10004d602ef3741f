"""What a data set tells of its images: their files, classes and labels."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Subset

from lightning_anomaly.images.loaders import dataset_with, epoch_positions, first_loader


def file_names(dataset: Any) -> list[str] | None:
    """Return the file of each image relative to the data set's `root`; None without `samples` that name files."""
    samples = dataset_column(dataset, "samples")
    if samples is None or not all(isinstance(sample, tuple) and isinstance(sample[0], str) for sample in samples):
        return None
    root = os.path.join(dataset_folder(dataset), "")
    return [path.removeprefix(root) for path, *_ in samples]


def dataset_folder(dataset: Any) -> str:
    """Return the data set's `root`; empty if it has none, or one that is no path."""
    root = getattr(dataset_with(dataset, "root"), "root", None)
    return os.fspath(root) if isinstance(root, (str, os.PathLike)) else ""


def class_names(dataset: Any) -> tuple[str, ...]:
    """Return the names of the classes that a data set's labels stand for; empty if that is not certain.

    They are its `class_to_idx` or `classes`, as in torchvision, else those of its only one of `features` that has
    `names`, as in Hugging Face's data sets, or a mapping `names` from 0 on, as in YOLO's.
    """
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    places, names = getattr(dataset, "class_to_idx", None), getattr(dataset, "classes", None)
    if isinstance(places, dict) and all(isinstance(place, int) for place in places.values()):
        named = {place: name for name, place in places.items()}
        several = len(named) < len(places)  # names of one class
        names = None if several else [named.get(place, str(place)) for place in range(max(named, default=-1) + 1)]
    names = _mapped_names(dataset) if names is None else names
    if not isinstance(names, (list, tuple)) or getattr(dataset, "target_transform", None) is not None:
        return ()
    return tuple(map(str, names)) if len({*map(str, names)}) == len(names) else ()


def _mapped_names(dataset: Any) -> list[str] | None:
    """Return the names of classes in a data set's `features` or `names`; None without any."""
    features, names = getattr(dataset, "features", None), getattr(dataset, "names", None)
    columns = features.values() if isinstance(features, Mapping) else ()
    listed = [found for column in columns if isinstance(found := getattr(column, "names", None), list)]
    if len(listed) == 1:
        return listed[0]
    is_known = isinstance(names, Mapping) and {*names} == {*range(len(names))}
    return [names[place] for place in range(len(names))] if names is not None and is_known else None


def class_targets(dataset: Any) -> list[int] | None:
    """Return a data set's `targets` or `labels`, one integer for each image; None without any."""
    for name in ("targets", "labels"):
        targets = dataset_column(dataset, name)
        if targets is not None and all(isinstance(target, int) for target in targets):
            return targets
    return None


def in_drawn_order(loaders: Any) -> tuple[list[int] | None, list[str] | None]:
    """Return `targets` and files in the order in which the first of a Trainer's loaders draws them; None if unknown."""
    loader = first_loader(loaders)
    dataset = getattr(loader, "dataset", None)
    targets, names = class_targets(dataset), file_names(dataset)
    positions = epoch_positions(loader) if targets or names else None
    if positions is None:
        return None, None
    return targets and [targets[place] for place in positions], names and [names[place] for place in positions]


def dataset_column(dataset: Any, name: str) -> list[Any] | None:
    """Return an attribute with a value for each item, of a data set or of the one that it is a subset of."""
    if isinstance(dataset, Subset):
        whole = dataset_column(dataset.dataset, name)
        return None if whole is None else [whole[index] for index in dataset.indices]
    values = getattr(dataset, name, None)
    if not isinstance(values, (list, Tensor, np.ndarray)) or len(values) != len(dataset):
        return None
    return values if isinstance(values, list) else values.tolist()
