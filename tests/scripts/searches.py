"""Looks for outliers in one and in two processes, and writes down what every process got.

`python searches.py FOLDER SCENARIO ...` leaves `SCENARIO-PROCESSES-RANK.json` for each process, see `forked.py`.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from forked import LIMIT, Outcome, run_forked
from lightning.pytorch.strategies import DDPStrategy
from network import images
from small import loader, module, quiet
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_anomaly import OutlierReport, find_outliers

ONE_AND_TWO = ("data_module", "few_images", "half")


def told(report: OutlierReport) -> Outcome:
    """All of a report, with NaN and infinity as words."""
    parts = {key: getattr(report, key) for key in ("scores", "p_values", "layer", "filters", "images")}
    values: Outcome = {key: None if part is None else str(part.tolist()) for key, part in parts.items()}
    return {**values, "top": report.top(3), "layers": report.layers, "notes": dict(report.notes)}


class Images(pl.LightningDataModule):
    """217 images in shuffled batches of 16, the last one smaller."""

    def train_dataloader(self) -> DataLoader[Any]:
        return loader(217, shuffle=True)


class Search(pl.Callback):
    """Looks for outliers when a fit ends."""

    found: Outcome = {}

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert trainer.train_dataloader is not None
        before = [buffer.clone() for buffer in pl_module.buffers()]
        self.found = told(find_outliers(pl_module, trainer.train_dataloader, seed=1))
        assert all(torch.equal(one, two) for one, two in zip(before, pl_module.buffers(), strict=True))


def fit(world: int, norm: bool) -> Outcome:
    """What is found at the end of a fit; without a norm and without a learning rate the model stays as it is."""
    strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=LIMIT)) if world > 1 else "auto"
    search = Search()
    trainer = quiet(devices=world, strategy=strategy, callbacks=[search], max_epochs=1, limit_val_batches=0)
    trainer.fit(module(lr=0.05 if norm else 0.0, norm=norm), datamodule=Images())
    return search.found


def data_module(rank: int, world: int) -> Outcome:
    return fit(world, norm=False)


def norms(rank: int, world: int) -> Outcome:
    """Each process's BatchNorm has seen other images."""
    return fit(world, norm=True)


def connect(rank: int, world: int) -> nn.Module:
    if world > 1:
        torch.distributed.init_process_group("gloo", rank=rank, world_size=world, timeout=timedelta(seconds=LIMIT))
    return module(norm=False).net


def few_images(rank: int, world: int) -> Outcome:
    """One batch, so that the second process has none; one of the images is no number."""
    inputs, reference = images(205).tensors[0].split([5, 200])
    inputs[2] = torch.nan
    return told(find_outliers(connect(rank, world), inputs, reference))


def half(rank: int, world: int) -> Outcome:
    return told(find_outliers(connect(rank, world).bfloat16(), images(217).tensors[0].half()))


class Broken(Dataset[Tensor]):
    """Has an image that cannot be read in process 1."""

    def __init__(self, rank: int) -> None:
        self.rank, self.images = rank, images(217).tensors[0]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        if self.rank == 1 and index == 100:
            raise OSError("image 100 is broken")
        return self.images[index]


def fails(rank: int, world: int) -> Outcome:
    net, data = connect(rank, world), Broken(rank)
    found: Outcome = {}
    for number, reference in (("reference", None), ("images", images(217).tensors[0])):
        for size in (1, 2, 4):  # so that now one process has the image and now the other
            try:
                find_outliers(net, DataLoader(data, size), reference)
            except Exception as error:
                found[f"{number} {size}"] = repr(error)
    return {**found, "afterwards": told(find_outliers(net, images(150).tensors[0]))["top"]}


def differs(rank: int, world: int) -> Outcome:
    find_outliers(connect(rank, world), images(150 - rank).tensors[0], images(120).tensors[0])
    return {}


def main(folder: Path, names: list[str]) -> None:
    worlds = {name: (1, 2) if name in ONE_AND_TWO else (2,) for name in names}
    run_forked(folder, [(name, globals()[name], world) for name in names for world in worlds[name]])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
