"""A data set is read, never written: not its transform, whatever that is, nor its caches."""

import copy
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from trainers import SmallNet, fit, images, said

from lightning_anomaly import MemorizationCallback


def flipped(image: Tensor) -> Tensor:
    return image.flip(1) if torch.rand(()) < 0.5 else image


def unchanged(image: Tensor) -> Tensor:
    return image


class Pictures(Dataset[Any]):
    def __init__(self, count: int, transform: Any) -> None:
        self.images, self.transform = images(count, seed=count), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.images[index]), index % 3


class HandsOn(Dataset[Any]):
    """Hands its transform on to the data set that it wraps, as lightly's does."""

    def __init__(self, count: int, transform: Any) -> None:
        self.inner = Pictures(count, transform)

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Any:
        return self.inner[index]

    @property
    def transform(self) -> Any:
        return self.inner.transform

    @transform.setter
    def transform(self, value: Any) -> None:
        self.inner.transform = value


class Shows(HandsOn):
    """Shows its transform, and does not let it be set."""

    transform = property(lambda self: self.inner.transform)


class Keeps(Pictures):
    def __init__(self, count: int, transform: Any) -> None:
        super().__init__(count, transform)
        self.cache: Any = {}

    def __getitem__(self, index: int) -> Any:
        if index not in self.cache:
            self.cache[index] = super().__getitem__(index)
        return self.cache[index]


def state(data: Any) -> Any:
    return {
        name: state(value) if isinstance(value, Dataset) else copy.copy(value) for name, value in vars(data).items()
    }


def weights(folder: Path, kind: Any, *callbacks: Any) -> tuple[list[Tensor], Any, Any]:
    """The weights of a run, its training set, and what this was like when images were compared first."""
    train, val = kind(80, flipped), kind(60, unchanged)
    seen = []

    class Looks(SmallNet):
        def on_validation_epoch_end(self) -> None:
            seen.append(state(train))

    options: Any = {"val_check_interval": 0.25, "max_epochs": 2, "num_sanity_val_steps": 0}
    trainer = fit(
        folder,
        *callbacks,
        module=Looks(),
        train=DataLoader(train, 20, shuffle=True),
        val=DataLoader(val, 20),
        **options,
    )
    return [*trainer.lightning_module.state_dict().values()], train, seen[0]


@pytest.mark.parametrize("kind", [Pictures, HandsOn, Shows, Keeps])
def test_a_run_is_the_same_and_its_training_set_as_without_a_comparison(
    tmp_path: Path, kind: Any, recwarn: Any
) -> None:
    bare, _, expected = weights(tmp_path, kind)
    compared = MemorizationCallback()
    watched, train, found = weights(tmp_path, kind, compared)
    assert all(map(torch.equal, watched, bare))
    assert repr(found) == repr(expected)
    assert getattr(train, "transform", None) is flipped
    assert compared.report.compares_output
    texts = said(recwarn)
    assert [("augmented" in text) for text in texts] == ([True] if kind is Shows else [])


class InThisProcess(Pictures):
    """Cannot be read in another process, as tensors on a GPU cannot."""

    def __getitem__(self, index: int) -> Any:
        if torch.utils.data.get_worker_info() is not None:
            raise RuntimeError("only in the process that made it")
        return super().__getitem__(index)


class InThreads(Pictures):
    """Waits for threads that another process does not have."""

    def __init__(self, count: int, transform: Any) -> None:
        super().__init__(count, transform)
        self.pool = ThreadPoolExecutor(1)
        self.pool.submit(int).result()

    def __getitem__(self, index: int) -> Any:
        return self.pool.submit(super().__getitem__, index).result()


def answer(connection: socket.socket) -> None:
    """Send back what comes."""
    with connection, suppress(OSError):
        while sent := connection.recv(1):
            connection.sendall(sent)


class Remote(Pictures):
    """Asks a server for each item, over a connection that it keeps open."""

    def __init__(self, count: int, transform: Any) -> None:
        super().__init__(count, transform)
        ours, theirs = socket.socketpair()
        threading.Thread(target=answer, args=(theirs,), daemon=True).start()
        self.open = [ours]  # which cannot be copied itself

    def __getitem__(self, index: int) -> Any:
        self.open[0].sendall(bytes([index]))
        assert self.open[0].recv(1) == bytes([index])
        return super().__getitem__(index)

    def __del__(self) -> None:
        self.open[0].close()


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (InThisProcess, "RuntimeError: only in the process that made it"),
        (InThreads, "died or hangs"),
        (Remote, "Found none among the first 40"),
    ],
)
def test_where_no_worker_can_read_images_come_as_the_loader_yields_them(
    tmp_path: Path, kind: Any, why: str, recwarn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_anomaly.images.worker_process._TIMEOUT", 1)
    compared = MemorizationCallback(sample_size=40)
    weights(tmp_path, kind, compared)
    text = " ".join(said(recwarn))
    assert "Images are read in this process, as their loaders yield them" in text
    assert why in text
    assert "augmented" in text
    assert compared.report.compares_output


def test_an_image_that_cannot_be_read_for_a_while_does_not_move_the_others(tmp_path: Path) -> None:
    class Flaky(Pictures):
        """Its fourth image cannot be read at first: in its batch, alone, and when a few are read again."""

        def __getitem__(self, index: int) -> Any:
            reads = tmp_path / "reads"
            if index == 3 and torch.utils.data.get_worker_info() and len(reads.read_text()) < 3:
                reads.write_text(reads.read_text() + ".")
                raise OSError("not yet")
            return super().__getitem__(index)

    (tmp_path / "reads").touch()
    compared = MemorizationCallback()
    with pytest.warns(UserWarning, match=r"position 3 \(OSError: not yet\)"):
        fit(tmp_path, compared, train=DataLoader(Flaky(80, unchanged), 20), val=DataLoader(Flaky(60, unchanged), 20))
    assert [entry["compares_output"] for entry in compared.history] == [True, True]
    assert sorted(compared.report.label_doubts) == [place for place in range(80) if place != 3]
