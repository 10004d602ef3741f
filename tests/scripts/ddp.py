"""Fits and searches for outliers in one and in two processes, which must give the same results.

`python ddp.py FOLDER SCENARIO ...` leaves `SCENARIO-PROCESSES-RANK.json` for each process, see `forked.py`.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
from forked import LIMIT, Outcome, run_scenarios
from lightning.pytorch.strategies import DDPStrategy
from network import images, network
from reports import facts
from small import loader, module, quiet
from torch import nn

from lightning_anomaly import (
    AnomalyFilterCallback,
    OutlierReport,
    TwoSampleCallback,
    TwoSampleEarlyStopping,
    find_outliers,
)
from lightning_anomaly.callbacks import two_sample
from lightning_anomaly.filters import across_processes


def fit(world: int, *callbacks: Any, **options: Any) -> Outcome:
    """Fit on a number of images that two processes cannot share evenly, and return what this process logged.

    The weights do not change, and there is no BatchNorm, whose statistics would depend on the batches.
    """
    strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=LIMIT)) if world > 1 else "auto"
    fitter = quiet(devices=world, strategy=strategy, callbacks=[*callbacks], **options)
    fitter.fit(module(norm=False, lr=0.0), loader(103, batch_size=13, shuffle=True), loader(95))
    metrics = {key: value.item() for key, value in fitter.callback_metrics.items() if "/" in key}
    return {"epochs": fitter.current_epoch, "metrics": metrics}


def same_images(rank: int, world: int) -> Outcome:
    """Analyze all validation images, and compare them with training images."""
    watching = AnomalyFilterCallback(probe_size=500)
    seen = fit(world, watching, TwoSampleCallback(sample_size=81), max_epochs=2)
    return {**seen, "report": facts(watching.report)}


def output_stops(rank: int, world: int) -> Outcome:
    """From the fourth validation on, process 0 alone finds a gap between training and validation images."""
    calls: list[int] = []
    real = two_sample.compare_groups

    def knows_later(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        factor = 1.9 if rank == 0 and len(calls) > 3 else 1.0
        errors = torch.full((100,), 0.1)
        return replace(real(*args, **kwargs), train_errors=errors, val_errors=errors * factor)

    two_sample.compare_groups = knows_later
    inputs, stopping = images(96).tensors[0], TwoSampleEarlyStopping()
    seen = fit(world, TwoSampleCallback(inputs[:40] + 0.3, inputs[40:]), stopping, max_epochs=9)
    return {**seen, "reason": stopping.stopping_reason_message}


def fails_and_raises(rank: int, world: int) -> Outcome:
    if rank == 0:
        across_processes.analyze_layers = lambda *args, **kwargs: 1 / 0
    return fit(world, AnomalyFilterCallback(probe_size=90, on_error="raise"))


def connect(rank: int, world: int) -> nn.Module:
    if world > 1:
        torch.distributed.init_process_group("gloo", rank=rank, world_size=world, timeout=timedelta(seconds=LIMIT))
    torch.manual_seed(0)
    return network()


def values(report: OutlierReport) -> Outcome:
    """All values of a report, with NaN and infinity as words."""
    parts = {key: getattr(report, key) for key in ("scores", "look_scores", "content_scores", "p_values")}
    return {
        "numbers": {key: [str(value) for value in part.tolist()] for key, part in parts.items()},
        "pictures": {place: picture.tolist() for place, picture in report.pictures.items()},
        "reasons": [report.outlier_reasons(position) for position in range(len(report.scores))],
        "top": report.top(4),
        "notes": dict(report.notes),
    }


def searches(rank: int, world: int) -> Outcome:
    """Search in process 0 alone, while the other waits for something else."""
    net = connect(rank, world)
    found = values(find_outliers(images(217).tensors[0], net)) if rank == 0 else {}
    if world > 1:
        torch.distributed.barrier()
    return found


if __name__ == "__main__":
    run_scenarios(globals(), same_images=(1, 2), searches=(1, 2))
