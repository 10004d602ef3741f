"""Data sets with faults."""

from torch import Tensor
from torch.utils.data import Dataset


class Broken(Dataset[Tensor]):
    def __init__(self, images: Tensor, *positions: int) -> None:
        self.images, self.positions = images, positions

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        if index in self.positions:
            raise OSError(f"image {index} is broken")
        return self.images[index]
