"""Fits in one and in two processes, which must give the same results.

`python ddp.py FOLDER SCENARIO ...` leaves `SCENARIO-PROCESSES-RANK.json` for each process, see `forked.py`.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
from forked import LIMIT, Outcome, main
from lightning.pytorch.strategies import DDPStrategy
from reports import facts
from trainers import SmallNet, damaged, images, loader, quiet_trainer

from lightning_anomaly import AnomalyFilterCallback, MemorizationCallback, MemorizationEarlyStopping
from lightning_anomaly.callbacks import memorization


def fit(world: int, *callbacks: Any, **options: Any) -> Outcome:
    """Fit on a number of images that two processes cannot share evenly, and return what this process logged.

    The weights do not change, and there is no BatchNorm, whose statistics would depend on the batches.
    """
    strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=LIMIT)) if world > 1 else "auto"
    fitter = quiet_trainer(None, *callbacks, devices=world, strategy=strategy, num_sanity_val_steps=0, **options)
    train, val = loader(103, batch_size=13, shuffle=True, make=damaged), loader(95, batch_size=16, make=damaged)
    fitter.fit(SmallNet(lr=0.0, norm=False), train, val)
    metrics = {key: value.item() for key, value in fitter.callback_metrics.items() if "/" in key}
    return {"epochs": fitter.current_epoch, "metrics": metrics}


def same_images(rank: int, world: int) -> Outcome:
    """Analyze all validation images, and compare them with training images."""
    watching = AnomalyFilterCallback(probe_size=500)
    seen = fit(world, watching, MemorizationCallback(sample_size=81), max_epochs=2)
    return {**seen, "report": facts(watching.report)}


def output_stops(rank: int, world: int) -> Outcome:
    """From the fourth validation on, process 0 alone finds a gap between training and validation images."""
    calls: list[int] = []
    real = memorization.compare_outputs

    def knows_later(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        factor = 1.9 if rank == 0 and len(calls) > 3 else 1.0
        errors = torch.full((100,), 0.1)
        return replace(real(*args, **kwargs), train_errors=errors, val_errors=errors * factor)

    memorization.compare_outputs = knows_later
    inputs, stopping = images(96), MemorizationEarlyStopping()
    seen = fit(world, MemorizationCallback(inputs[:40] + 0.3, inputs[40:]), stopping, max_epochs=9)
    return {**seen, "reason": stopping.stopping_reason_message}


if __name__ == "__main__":
    main(globals(), same_images=(1, 2))
