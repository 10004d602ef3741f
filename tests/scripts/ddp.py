"""Runs scenarios in one and in two processes, and writes down what every process saw.

`python ddp.py FOLDER SCENARIO ...` leaves `SCENARIO-PROCESSES-RANK.json` for each process, see `forked.py`.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from forked import LIMIT, Outcome, run_forked
from lightning.pytorch.strategies import DDPStrategy
from network import images
from small import loader, module, quiet
from torch.utils.data import DataLoader, IterableDataset, Subset

from lightning_anomaly import AnalysisSettings
from lightning_anomaly.callbacks import (
    AnomalyEarlyStopping,
    AnomalyFilterCallback,
    AnomalyPruneCallback,
    TwoSampleCallback,
    _memory,
    two_sample,
)
from lightning_anomaly.sharing import together

PROBE: dict[str, Any] = {"probe_size": 90, "log_figures": False, "settings": AnalysisSettings(n_init=2)}
ONE_AND_TWO = ("val_probe", "whole_set", "train_probe", "compares")  # run in one process too, for comparison


def trainer(world: int, callbacks: list[Any], **options: Any) -> pl.Trainer:
    strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=LIMIT)) if world > 1 else "auto"
    return quiet(devices=world, strategy=strategy, callbacks=callbacks, **options)


def fit(
    world: int,
    callback: Any,
    others: tuple[Any, ...] = (),
    val: Any = None,
    model: Any = None,
    train: Any = None,
    **options: Any,
) -> Outcome:
    """What one process saw in a fit."""
    fitter = trainer(world, [callback, *others], **options)
    model = module() if model is None else model
    fitter.fit(model, loader() if train is None else train, loader() if val is None else val)
    return {
        "epochs": fitter.current_epoch,
        "metrics": {k: v.item() for k, v in fitter.callback_metrics.items() if k.startswith("anomaly")},
        "history": callback.history,
        "report": None if callback.report is None else callback.report.to_dict(),
        "weights": sum(p.double().abs().sum().item() for p in model.parameters()),
    }


def same(rank: int, world: int) -> Outcome:
    return fit(world, AnomalyFilterCallback(**PROBE))


def val_probe(rank: int, world: int) -> Outcome:
    """The weights stay, so one and two processes have the same model."""
    return fit(world, AnomalyFilterCallback(**PROBE), model=module(lr=0.0), max_epochs=1)


def whole_set(rank: int, world: int) -> Outcome:
    """The probe is all of a validation set that two processes cannot share evenly."""
    return fit(world, AnomalyFilterCallback(probe_size=500), model=module(lr=0.0), val=loader(95), max_epochs=1)


def train_probe(rank: int, world: int) -> Outcome:
    probe = AnomalyFilterCallback(probe="train", probe_size=81)
    return fit(world, probe, model=module(lr=0.0), train=loader(103, batch_size=13, shuffle=True), max_epochs=1)


def uneven(rank: int, world: int) -> Outcome:
    shard = Subset(images(96), range(70) if rank == 0 else range(70, 96))
    val = DataLoader(shard, batch_size=8)
    return fit(world, AnomalyFilterCallback(**PROBE), val=val, model=module(norm=False), use_distributed_sampler=False)


def same_set(rank: int, world: int) -> Outcome:
    """Both processes validate all of the set."""
    val = DataLoader(images(96), batch_size=8)
    return fit(world, AnomalyFilterCallback(**PROBE), val=val, model=module(norm=False), use_distributed_sampler=False)


def empty(rank: int, world: int) -> Outcome:
    val = DataLoader(Subset(images(96), range(96) if rank == 0 else range(0)), batch_size=8)
    model = module(norm=False, allow_zero_length_dataloader_with_multiple_devices=True)
    return fit(world, AnomalyFilterCallback(**PROBE), val=val, model=model, use_distributed_sampler=False)


def empty_validate(rank: int, world: int) -> Outcome:
    """`trainer.validate()` with batches for one of the processes, and then for both."""
    callback = AnomalyFilterCallback(**PROBE)
    model = module(norm=False, allow_zero_length_dataloader_with_multiple_devices=True)
    one = DataLoader(Subset(images(96), range(96) if rank == 0 else range(0)), batch_size=8)
    trainer(world, [callback], use_distributed_sampler=False).validate(model, one, verbose=False)
    seen = callback.report
    model.allow_zero_length_dataloader_with_multiple_devices = False  # so that it is known that both have some
    (logged,) = trainer(world, [callback]).validate(model, loader(), verbose=False)
    del logged["anomaly_filters/seconds"], logged["val_loss"]  # each process has its own
    return {"seen": seen, "logged": logged, "samples": callback.report.n_samples if callback.report else 0}


class Shard(IterableDataset[Any]):
    """No length, so that Lightning does not know that it is empty in process 1."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __iter__(self) -> Any:
        return iter(images(96) if self.rank == 0 else [])


def empty_iterable(rank: int, world: int) -> Outcome:
    val = DataLoader(Shard(rank), batch_size=8)
    return fit(world, AnomalyFilterCallback(**{**PROBE, "probe_size": 120}), val=val, model=module(norm=False))


def stops(rank: int, world: int) -> Outcome:
    early = pl.callbacks.EarlyStopping("anomaly_filters/count", mode="max", patience=2)
    return fit(world, AnomalyFilterCallback(**PROBE), (early,), model=module(lr=0.0), max_epochs=9)


def _fail_from(first: int) -> Callable[..., Any]:
    calls: list[int] = []
    real = together.analyze_share

    def analyse(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) >= first:
            raise ArithmeticError("the analysis broke")
        return real(*args, **kwargs)

    return analyse


def fails(rank: int, world: int) -> Outcome:
    if rank == 0:
        together.analyze_share = _fail_from(2)
    return fit(world, AnomalyFilterCallback(**PROBE))


def fails_and_raises(rank: int, world: int) -> Outcome:
    if rank == 0:
        together.analyze_share = _fail_from(2)
    return fit(world, AnomalyFilterCallback(**PROBE, on_error="raise"))


def train_probe_fails(rank: int, world: int) -> Outcome:
    """The forward pass over the training probe breaks in process 1 alone."""
    model = module()
    run = model.forward

    def validating() -> bool:
        return bool(model.trainer.validating or model.trainer.sanity_checking)

    if rank == 1:
        # Only the probe's batches have this many samples.
        model.forward = lambda x: run(x) if len(x) != 15 or not validating() else run(x[:, :, 0])
    return fit(world, AnomalyFilterCallback(probe="train", probe_size=90), model=model, train=loader(batch_size=15))


def other_size(rank: int, world: int) -> Outcome:
    val = DataLoader(images(96, side=8 + rank), batch_size=8)
    return fit(world, AnomalyFilterCallback(**PROBE), val=val)


def other_layers(rank: int, world: int) -> Outcome:
    """In process 1 the validation step never reaches the second convolution."""
    model = module()
    if rank == 1:
        model.validation_step = lambda batch, batch_idx: model.net[0](batch[0])
    return fit(world, AnomalyFilterCallback(**PROBE), model=model)


def one_sees_nan(rank: int, world: int) -> Outcome:
    val = images(96)
    if rank == 1:
        val.tensors[0][1::2] = torch.nan
    return fit(world, AnomalyFilterCallback(**PROBE), val=DataLoader(val, batch_size=8))


def one_sees_other_images(rank: int, world: int) -> Outcome:
    """In process 1 the images are others in every epoch."""
    model = module()
    model.on_after_batch_transfer = lambda batch, _: [batch[0] + rank * model.current_epoch, batch[1]]
    return fit(world, AnomalyFilterCallback(**PROBE), model=model)


def one_leaves_some_out(rank: int, world: int) -> Outcome:
    """In process 1 the step looks at half of the second batch."""
    model = module()
    step = model.validation_step
    model.validation_step = lambda batch, batch_idx: step(
        [own[:4] for own in batch] if rank and batch_idx == 1 else batch, batch_idx
    )
    return fit(world, AnomalyFilterCallback(**PROBE), model=model, val=loader(batch_size=8))


def every_second(rank: int, world: int) -> Outcome:
    return fit(world, AnomalyFilterCallback(**PROBE, every_n_validations=2))


def prunes(rank: int, world: int) -> Outcome:
    model = module()
    prune = AnomalyPruneCallback(at_epoch=2, last_reports=2, min_votes=1)
    outcome = fit(world, AnomalyFilterCallback(**PROBE), (prune,), model=model, max_epochs=4)
    convolutions = {name: p for name, p in model.named_parameters() if p.ndim == 4}
    silent = {name: (p.flatten(1) == 0).all(1).nonzero()[:, 0].tolist() for name, p in convolutions.items()}
    return {**outcome, "silent": silent}


def stops_itself(rank: int, world: int) -> Outcome:
    """The fraction is said to rise from the third validation on."""
    _memory.rise = lambda fractions: 0.5 if len(fractions) >= 3 else 0.0
    return fit(world, AnomalyFilterCallback(**PROBE), (AnomalyEarlyStopping(threshold=0.2, patience=5),), max_epochs=9)


def _compare(world: int, val: Any = None, model: Any = None, callbacks: Any = (), **options: Any) -> Outcome:
    inputs = images(96).tensors[0]
    compared = TwoSampleCallback(inputs[:40] + 0.3, inputs[40:])
    drawn: list[int] = []
    two_sample.log_comparisons = lambda *given: drawn.append(given[-2])
    fitter = trainer(world, [compared, *callbacks], **options)
    fitter.fit(module(lr=0.0) if model is None else model, loader(), loader() if val is None else val)
    metrics = {k: v.item() for k, v in fitter.callback_metrics.items() if k.startswith("two_sample")}
    filters = compared.report.filters if compared.report else None
    seen = {"epochs": fitter.current_epoch, "metrics": metrics, "filters": filters}
    return {**seen, "history": compared.history, "drawn": drawn}


def compares(rank: int, world: int) -> Outcome:
    """The weights stay, so one and two processes have the same model."""
    return _compare(world)


def compares_empty(rank: int, world: int) -> Outcome:
    val = DataLoader(Subset(images(96), range(96) if rank == 0 else range(0)), batch_size=8)
    model = module(norm=False, allow_zero_length_dataloader_with_multiple_devices=True)
    return _compare(world, val, model, use_distributed_sampler=False)


def compares_empty_iterable(rank: int, world: int) -> Outcome:
    return _compare(world, DataLoader(Shard(rank), batch_size=8), module(norm=False, lr=0.0))


def compares_and_fails(rank: int, world: int) -> Outcome:
    """The second comparison breaks in process 1 alone, whose model would have found other filters from then on."""
    calls: list[int] = []
    real = two_sample.compare_groups

    def fails_later(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if rank == 1 and len(calls) > 1:
            raise ArithmeticError("the comparison broke")
        return real(*args, **kwargs)

    two_sample.compare_groups = fails_later
    return _compare(world, model=module())


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
    stopping = AnomalyEarlyStopping()
    outcome = _compare(world, callbacks=(stopping,), max_epochs=9)
    return {**outcome, "reason": stopping.stopping_reason_message}


def started(strategy: str) -> None:
    """Processes that Lightning starts itself, to which the callback comes pickled or with all memory."""
    warnings.simplefilter("always")
    callback = AnomalyFilterCallback(**PROBE)
    fitter = quiet(devices=2, strategy=strategy, callbacks=[callback], max_epochs=1)
    fitter.fit(module(), loader(), loader())
    print("report", callback.report, "count", fitter.callback_metrics["anomaly_filters/count"].item())


def main(folder: Path, names: list[str]) -> None:
    worlds = {name: (1, 2) if name in ONE_AND_TWO else (2,) for name in names}
    run_forked(folder, [(name, globals()[name], world) for name in names for world in worlds[name]])


if __name__ == "__main__":
    if sys.argv[1] == "started":
        started(sys.argv[2])
    else:
        main(Path(sys.argv[1]), sys.argv[2:])
