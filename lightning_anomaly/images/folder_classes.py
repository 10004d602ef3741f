"""Tell classes, and parts such as training and validation, from the folders that images lie in."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

_Place = tuple[str, ...]  # the folders that lead to an image
_SPLITS = {"train", "training", "val", "valid", "validation", "dev", "eval", "test", "testing"}


def classes_and_splits(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the class and the split of each file, by the folders in its name; empty if there is none.

    The class is the innermost folder that has siblings. Siblings with names such as `train` and `val` are splits,
    wherever they lie; one called `train` beside `bus` and `car` is a class.

    Examples:
        >>> classes_and_splits(["train/cats/1.png", "train/dogs/2.png", "val/cats/3.png"])
        [('cats', 'train'), ('dogs', 'train'), ('cats', 'val')]
        >>> classes_and_splits(["break/images/1.png", "crack/images/2.png"])
        [('break', ''), ('crack', '')]
    """
    places = [tuple(name.split(os.sep)[:-1]) for name in names]
    children = _child_folders(places)
    # Folders that hold several splits, or nothing else.
    parents = {folder for folder, names in children.items() if sum(map(_is_split, names)) >= min(2, len(names))}
    splits, kept = dict[_Place, str](), dict[_Place, _Place]()
    for place in {*places}:
        are_splits = [_is_split(name) and place[:i] in parents for i, name in enumerate(place)]
        kept[place] = tuple(name for name, is_split in zip(place, are_splits, strict=True) if not is_split)
        splits[place] = "/".join(name for name, is_split in zip(place, are_splits, strict=True) if is_split)
    children, classes = _child_folders(kept.values()), dict[_Place, str]()
    for place, rest in kept.items():
        while rest and len(children[rest[:-1]]) == 1:
            rest = rest[:-1]
        classes[place] = rest[-1] if rest else ""
    return [(classes[place], splits[place]) for place in places]


def _child_folders(places: Iterable[_Place]) -> dict[_Place, set[str]]:
    """Return the folders in each folder; images beside the outermost ones count as one."""
    children = defaultdict[_Place, set[str]](set)
    for place in {*places}:
        for i, name in enumerate(place or [""]):
            children[place[:i]].add(name)
    return children


def _is_split(name: str) -> bool:
    return not _SPLITS.isdisjoint(re.split(r"[^a-z]+", name.lower()))
