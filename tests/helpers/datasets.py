"""Data sets with faults, and the systems on which a worker process can be forked to read one."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor
from torch.utils.data import Dataset

NEEDS_FORK = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")


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
