"""Ask, as CleanVision does, what is wrong with an image whatever the others are: is it dark, plain, tiny, narrow?"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from lightning_anomaly.scores.pixels import pixel_names

_DARK, _LIGHT = 0.2, 0.8  # shade of the brightest pixel of a dark image, and of the darkest of a light one, from 0 to 1
_SHADE = 0.02  # range of the shades in an image of one shade
_GRAY = 1e-3  # largest difference of a channel from gray in a gray image
_PIXELS = 16  # a side that is tiny
_NARROW, _ODD = 3, 10  # ratio of sides from which on an image is narrow; of its size to the median one
_IN_PIXELS = "nearly black", "nearly white", "of one shade", "gray among color"
_TINY = f"at most {_PIXELS} pixels along a side"
_LONG = f"more than {_NARROW} times as long as wide"
_UNUSUAL = f"{_ODD} times as wide and high as usual, or a tenth of it"
FAULTS = *_IN_PIXELS, _TINY, _LONG, _UNUSUAL


def pixel_faults(pixels: Tensor) -> Tensor:
    """Answer what pixels tell, `(n, 4)`, by `pixel_statistics` `(n, S)` of images of three channels, from 0 to 1."""
    names = pixel_names(3)
    lowest, highest, color = (pixels[:, names.index(name)] for name in ("lowest", "highest", "brightest color"))
    return torch.stack([highest < _DARK, lowest > _LIGHT, highest - lowest <= _SHADE, color <= _GRAY], 1)


def file_facts(files: Sequence[str]) -> dict[str, list[Any]]:
    """Return columns of the width, height, bytes and time of files; 0 where unknown."""
    from PIL import Image

    facts: dict[str, list[Any]] = {name: [0] * len(files) for name in ("width", "height", "bytes", "modified")}
    for place, file in enumerate(files):
        with suppress(Exception):  # broken ones are a list of their own
            found = os.stat(file)
            facts["bytes"][place], facts["modified"][place] = found.st_size, found.st_mtime
            with Image.open(file) as opened:
                facts["width"][place], facts["height"][place] = opened.size
    return facts


def find_faults(answers: Tensor, sizes: Sequence[tuple[int, int]]) -> list[str]:
    """Return the faults of N images in words, separated by `; `, by `pixel_faults` `(N, 4)` and their sizes.

    Sizes are width and height (pixels), 0 where unknown.
    """
    faults = {fault: column.nonzero()[:, 0].tolist() for fault, column in zip(_IN_PIXELS, answers.T, strict=True)}
    if 2 * len(faults["gray among color"]) > len(sizes):
        faults["gray among color"] = []
    known = {place: size for place, size in enumerate(sizes) if min(size)}
    areas = {place: width * height for place, (width, height) in known.items()}
    median = statistics.median(areas.values()) if areas else 0
    faults[_TINY] = [place for place, size in known.items() if min(size) <= _PIXELS]
    faults[_LONG] = [place for place, size in known.items() if max(size) > _NARROW * min(size)]
    usual = median / _ODD**2, median * _ODD**2
    faults[_UNUSUAL] = [place for place, area in areas.items() if not usual[0] <= area <= usual[1]]
    found = dict[int, list[str]]()
    for fault, places in faults.items():
        for place in places:
            found.setdefault(place, []).append(fault)
    return ["; ".join(found.get(place, ())) for place in range(len(sizes))]
