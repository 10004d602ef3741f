"""A data set that is read in a worker process stays as it is in this one."""

import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import NEEDS_FORK
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate, get_worker_info

from lightning_anomaly.images.image_source import ImageSource
from lightning_anomaly.images.worker_process import in_worker

pytestmark = NEEDS_FORK


def read(loader: DataLoader[Any]) -> Tensor:
    return torch.cat([*ImageSource(loader, "images").readable_batches()])


class Zipped(Dataset[Tensor]):
    def __init__(self, path: Path, mode: str) -> None:
        self.archive = zipfile.ZipFile(path.open(mode))

    def __len__(self) -> int:
        return len(self.archive.namelist())

    def __getitem__(self, index: int) -> Tensor:
        return torch.frombuffer(bytearray(self.archive.read(str(index))), dtype=torch.uint8).float()


@pytest.mark.parametrize("mode", ["rb", "r+b"])
def test_an_open_archive_is_read_from_where_it_was(tmp_path: Path, mode: str) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for number in range(40):
            archive.writestr(str(number), torch.randint(256, (3000,), dtype=torch.uint8).numpy().tobytes())
    content = (tmp_path / "images.zip").read_bytes()
    first, data = (Zipped(tmp_path / "images.zip", mode) for _ in range(2))
    expected = [first[number] for number in range(40)]
    for number, image in enumerate(expected):
        assert torch.equal(data[number], image)
        if number % 7 == 0:
            assert torch.equal(read(in_worker(DataLoader(data, 8))), torch.stack(expected))
    assert (tmp_path / "images.zip").read_bytes() == content
    for opened in (first, data):
        opened.archive.fp.close()


def unshared(items: Any) -> Tensor:
    (images,) = default_collate(items)
    assert not images.is_shared()
    return images


def test_workers_need_no_shared_memory_and_leave_no_file_open() -> None:
    expected = torch.rand(200, 1, 4, 4)
    loader = DataLoader(TensorDataset(expected), 5, num_workers=2, collate_fn=unshared, multiprocessing_context="fork")
    before = len(os.listdir("/proc/self/fd"))
    held = [*ImageSource(loader, "images").readable_batches()]
    assert torch.equal(torch.cat(held), expected)
    assert not any(images.is_shared() for images in held)
    assert len(os.listdir("/proc/self/fd")) == before


class Counts(Dataset[Tensor]):
    def __init__(self) -> None:
        self.read: list[int] = []
        self.transform: Any = torch.neg

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Tensor:
        self.read.append(index)
        return self.transform(torch.full((1,), float(index + 10 * len(self.read))))


def begin_with_another(number: int) -> None:
    get_worker_info().dataset.dataset.read.append(number)


def test_a_worker_has_its_own_data_set_with_other_attributes_begun_as_the_loader_does() -> None:
    data = Counts()
    loader = DataLoader(Subset(data, [1, 4]), 2, worker_init_fn=begin_with_another)
    assert read(in_worker(loader, attributes={"transform": torch.exp})).log().flatten().tolist() == [21, 34]
    assert (data.read, data.transform) == ([], torch.neg)
