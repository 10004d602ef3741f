"""Looks for outliers in one and in two processes, and writes down what every process got.

`python searches.py FOLDER SCENARIO ...` leaves `SCENARIO-PROCESSES-RANK.json` for each process, see `forked.py`.
"""

from __future__ import annotations

from datetime import timedelta

import torch
from forked import LIMIT, Outcome, run_named
from network import images, network
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_anomaly import OutlierReport, find_outliers
from lightning_anomaly.distributed import broadcast_result


def values(report: OutlierReport) -> Outcome:
    """All of a report, with NaN and infinity as words."""
    parts = {key: getattr(report, key) for key in ("p_values", "layer", "filters", "images")}
    plain: Outcome = {key: None if part is None else part.tolist() for key, part in parts.items()}
    scores = [str(round(score, 4)) for score in report.scores.tolist()]
    return {**plain, "scores": scores, "top": report.top(4), "layers": report.layers, "notes": dict(report.notes)}


class Broken(Dataset[Tensor]):
    """Has an image that cannot be read."""

    def __init__(self) -> None:
        self.images = images(217).tensors[0]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        if index == 200:
            raise OSError("image 200 is broken")
        return self.images[index]


def connect(rank: int, world: int, norm: bool = False) -> nn.Module:
    if world > 1:
        torch.distributed.init_process_group("gloo", rank=rank, world_size=world, timeout=timedelta(seconds=LIMIT))
    torch.manual_seed(0)
    return network(norm)


def own_reference(rank: int, world: int) -> Outcome:
    """Each process's BatchNorm has seen other images."""
    net = connect(rank, world, norm=True)
    net[3].running_mean += rank
    buffers, before = dict(net.named_buffers()), net[3].running_mean.clone()
    found = values(find_outliers(net, DataLoader(Broken(), 16, shuffle=True)))
    assert all(buffer is buffers[name] for name, buffer in net.named_buffers())
    assert torch.equal(net[3].running_mean, before)
    return found


def few_images(rank: int, world: int) -> Outcome:
    """So few that a process has none; one of them is no number."""
    inputs, reference = images(205).tensors[0].split([1, 204])
    return values(find_outliers(connect(rank, world), inputs * torch.nan, reference))


class Fails(nn.Module):
    """Fails on one image in one process."""

    def __init__(self, net: nn.Module, rank: int, image: Tensor) -> None:
        super().__init__()
        self.net, self.rank, self.image = net, rank, image

    def forward(self, x: Tensor) -> Tensor:
        if self.rank == 1 and (x == self.image).flatten(1).all(1).any():
            raise OverflowError("one image is too much")
        return self.net(x)


def fails(rank: int, world: int) -> Outcome:
    net, (inputs, _) = connect(rank, world), images(217).tensors
    found: Outcome = {}
    for case, reference in (("reference", None), ("images", torch.rand(217, 1, 8, 8))):
        try:
            find_outliers(Fails(net, rank, inputs[200]), inputs, reference, seed=5)
        except Exception as error:
            found[case] = repr(error)
    return {**found, "afterwards": values(find_outliers(net, inputs[:150]))["top"]}


def differs(rank: int, world: int) -> Outcome:
    find_outliers(connect(rank, world), images(150 - rank).tensors[0], images(120).tensors[0])
    return {}


def broadcast(rank: int, world: int) -> Outcome:
    """What process 0 returns, and what it raises; the other one's work is not run."""
    connect(rank, world)
    found = broadcast_result(lambda: {"rank": rank, "numbers": torch.arange(3)})
    failed = ""
    try:
        broadcast_result(lambda: [][rank])
    except Exception as error:
        failed = repr(error)
    return {"rank": found["rank"], "numbers": found["numbers"].tolist(), "failed": failed}


if __name__ == "__main__":
    run_named(globals(), ["own_reference", "few_images"])
