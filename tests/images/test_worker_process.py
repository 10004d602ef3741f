"""A data set that is read in a worker process stays as it is in this one."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from datasets import NEEDS_FORK
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from lightning_anomaly.images.worker_process import in_worker

pytestmark = NEEDS_FORK


class Zipped(Dataset[Tensor]):
    def __init__(self, path: Path) -> None:
        self.archive = zipfile.ZipFile(path)

    def __len__(self) -> int:
        return len(self.archive.namelist())

    def __getitem__(self, index: int) -> Tensor:
        return torch.frombuffer(bytearray(self.archive.read(str(index))), dtype=torch.uint8)


def test_an_open_archive_is_read_from_where_it_was(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for number in range(40):
            archive.writestr(str(number), torch.randint(256, (3000,), dtype=torch.uint8).numpy().tobytes())
    expected = [Zipped(tmp_path / "images.zip")[number] for number in range(40)]
    data = Zipped(tmp_path / "images.zip")
    for number, image in enumerate(expected):
        assert torch.equal(data[number], image)
        if number % 7 == 0:
            assert torch.equal(torch.cat([*in_worker(DataLoader(data, 8))]), torch.stack(expected))


class Counts(Dataset[Tensor]):
    def __init__(self) -> None:
        self.read: list[int] = []
        self.transform: Any = torch.neg

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Tensor:
        self.read.append(index)
        return self.transform(torch.full((1,), float(index + 10 * len(self.read))))


def test_a_worker_has_its_own_data_set_with_other_attributes() -> None:
    data = Counts()
    begun: list[int] = []
    loader = DataLoader(Subset(data, [1, 4]), 2, worker_init_fn=begun.append)
    assert next(iter(in_worker(loader, attributes={"transform": torch.exp}))).log().flatten().tolist() == [11, 24]
    assert (data.read, data.transform, begun) == ([], torch.neg, [])
