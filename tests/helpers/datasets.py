"""Photographs, data sets with faults, and the systems on which a worker process can be forked to read one."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

NEEDS_FORK = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")


def photograph(seed: int, width: int = 64, height: int = 48) -> Image.Image:
    generator = np.random.default_rng(seed)
    patches = generator.integers(30, 220, (4, 5, 3), dtype=np.uint8)
    soft = Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC)
    return Image.fromarray((np.asarray(soft) + generator.integers(-9, 9, (height, width, 3))).clip(0, 255).astype("u1"))


class Items(Dataset[Any]):
    """Makes an item of each index; `facts` are further attributes."""

    def __init__(self, count: int, item: Callable[[int], Any], **facts: Any) -> None:
        self.count, self.item = count, item
        vars(self).update(facts)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.item(index)


class Broken(Dataset[Tensor]):
    def __init__(self, images: Tensor, *positions: int) -> None:
        self.images, self.positions = images, positions

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        if index in self.positions:
            raise OSError(f"image {index} is broken")
        return self.images[index]
