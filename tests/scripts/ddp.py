"""Runs scenarios in one and in two processes, and writes down what every process saw.

`python ddp.py FOLDER SCENARIO ...` leaves `SCENARIO-PROCESSES-RANK.json` for each process, see `forked.py`.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
from forked import LIMIT, Outcome, run_named
from lightning.pytorch.strategies import DDPStrategy
from network import images
from small import loader, module, quiet

from lightning_anomaly import AnalysisSettings, shared_analysis
from lightning_anomaly.callbacks import AnomalyEarlyStopping, AnomalyFilterCallback, TwoSampleCallback, two_sample

PROBE: dict[str, Any] = {"probe_size": 90, "log_figures": False, "settings": AnalysisSettings(n_init=2)}


def fit(world: int, callback: Any, *others: Any, val: Any = None, train: Any = None, **options: Any) -> Outcome:
    """What one process saw in a fit, in which the weights stay; a BatchNorm would remember other batches."""
    strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=LIMIT)) if world > 1 else "auto"
    fitter = quiet(devices=world, strategy=strategy, callbacks=[callback, *others], **options)
    fitter.fit(module(norm=False, lr=0.0), loader() if train is None else train, loader() if val is None else val)
    report = callback.report
    return {
        "epochs": fitter.current_epoch,
        "metrics": {k: v.item() for k, v in fitter.callback_metrics.items() if "/" in k},
        "report": report.to_dict() if isinstance(callback, AnomalyFilterCallback) and report is not None else None,
    }


def whole_set(rank: int, world: int) -> Outcome:
    """The probe is all of a validation set that two processes cannot share evenly."""
    return fit(world, AnomalyFilterCallback(probe_size=500), val=loader(95), max_epochs=1)


def train_probe(rank: int, world: int) -> Outcome:
    probe = AnomalyFilterCallback(probe="train", probe_size=81)
    return fit(world, probe, train=loader(103, batch_size=13, shuffle=True), max_epochs=1)


def own_images(rank: int, world: int) -> Outcome:
    """Training and validation images of the Trainer's own loaders, which two processes share."""
    train, val = loader(103, batch_size=13, shuffle=True), loader(95)
    return fit(world, TwoSampleCallback(n=81), train=train, val=val, max_epochs=2)


def fails_and_raises(rank: int, world: int) -> Outcome:
    if rank == 0:
        shared_analysis.analyze_slice = lambda *args, **kwargs: 1 / 0
    return fit(world, AnomalyFilterCallback(**PROBE, on_error="raise"))


def output_stops(rank: int, world: int) -> Outcome:
    """The output is said to know the training images from the fourth validation on, by process 0 alone."""
    calls: list[int] = []
    real = two_sample.compare_groups

    def knows_later(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        known = rank == 0 and len(calls) > 3
        errors = torch.full((100,), 0.1)
        return replace(real(*args, **kwargs), train_errors=errors, val_errors=errors * (1.9 if known else 1.0))

    two_sample.compare_groups = knows_later
    inputs, stopping = images(96).tensors[0], AnomalyEarlyStopping()
    compared = TwoSampleCallback(inputs[:40] + 0.3, inputs[40:])
    return {
        **fit(world, compared, stopping, max_epochs=9),
        "reason": stopping.stopping_reason_message,
    }


def started(strategy: str) -> None:
    """Processes that Lightning starts itself, to which the callback comes pickled or with all memory."""
    warnings.simplefilter("always")
    callback = AnomalyFilterCallback(**PROBE)
    fitter = quiet(devices=2, strategy=strategy, callbacks=[callback], max_epochs=1)
    fitter.fit(module(), loader(), loader())
    print("report", callback.report, "count", fitter.callback_metrics["anomaly_filters/count"].item())


if __name__ == "__main__":
    if sys.argv[1] == "started":
        started(sys.argv[2])
    else:
        run_named(globals(), ["whole_set", "train_probe", "own_images"])
