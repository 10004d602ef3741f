"""A data set for spawned workers: each imports its file, and would take seconds where that imports Lightning."""

from multiprocessing import get_start_method

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset, get_worker_info

DATA = TensorDataset(torch.randn(120, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(120))


class InWorkers(Dataset[Tensor]):
    """Gives nothing before a worker has opened it; knows whether it was forked."""

    scale: float | None = None

    def __len__(self) -> int:
        return 120

    def __getitem__(self, index: int) -> Tensor:
        assert self.scale is not None or get_worker_info() is None
        return DATA[index][0]


def open_data_set(worker: int) -> None:
    data = get_worker_info().dataset
    data.scale = 1.0
    assert isinstance(data, InWorkers)
    assert get_start_method(allow_none=True) == "spawn"
