"""Fits in which foreign callbacks and modules communicate in every hook, beside our callbacks.

`python communicating.py FOLDER SCENARIO ...` runs scenarios in two processes, see `forked.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import torch
from forked import LIMIT, Outcome, main
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics import SumMetric
from trainers import SmallNet, damaged, images, loader, quiet_trainer

from lightning_anomaly import (
    AnalysisSettings,
    AnomalyFilterCallback,
    AnomalyPruneCallback,
    MemorizationCallback,
    MemorizationEarlyStopping,
)
from lightning_anomaly.callbacks import memorization
from lightning_anomaly.filters import across_processes

SAMPLES = 56
LAST = Path("last.ckpt")  # in the folder of the outcomes
Hooks = Callable[[str], bool]


class Ledger:
    """Counts the messages of this process in a fit, and records wrong answers."""

    def __init__(self) -> None:
        self.talks = 0
        self.wrong: list[str] = []

    def talk(self, trainer: Any, place: str) -> None:
        """Sum, gather, compute a metric or wait, in turn, with a new number."""
        self.talks += 1
        sent = 10 * self.talks + trainer.global_rank
        both = [10 * self.talks, 10 * self.talks + 1]
        if self.talks % 4 == 0:
            trainer.strategy.barrier()
            return
        if self.talks % 4 == 1:
            received, expected = trainer.strategy.reduce(torch.tensor(float(sent)), reduce_op="sum").item(), sum(both)
        elif self.talks % 4 == 2:
            received, expected = trainer.lightning_module.all_gather(torch.tensor(sent)).tolist(), both
        else:
            metric = SumMetric()
            metric.update(sent)
            received, expected = metric.compute().item(), sum(both)
        if received != expected:
            self.wrong.append(f"{place}: {received} instead of {expected}")


ledger = Ledger()


def talking(kind: Any, where: Hooks) -> Any:
    """Make a class that communicates at the beginning of every hook of a fit."""
    others = ("test", "predict", "exception", "load_checkpoint")
    hooks = [name for name in dir(kind) if name.startswith("on_") and not any(word in name for word in others)]
    hooks += ["setup", "teardown", "training_step", "validation_step", "transfer_batch_to_device", "forward"]

    def hook(name: str) -> Callable[..., Any]:
        before = getattr(kind, name)

        @wraps(before)
        def talks(self: Any, *args: Any, **kwargs: Any) -> Any:
            trainer = self.trainer if isinstance(self, pl.LightningModule) else args[0]
            ledger.talk(trainer, f"{kind.__name__}.{name}")
            return before(self, *args, **kwargs)

        return talks

    return type(kind.__name__, (kind,), {name: hook(name) for name in hooks if hasattr(kind, name) and where(name)})


class Foreign(pl.Callback):
    """A foreign callback."""


class Logging(SmallNet):
    def __init__(self) -> None:
        super().__init__(norm=False, drop=0.0)
        self.ranks = SumMetric()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss.detach(), on_step=True, on_epoch=True, sync_dist=True, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self(batch[0]).mean(), sync_dist=True, prog_bar=True)
        self.ranks.update(self.trainer.global_rank + 1)
        self.log("val_ranks", self.ranks)

    def on_validation_epoch_end(self) -> None:
        self.log("val_rank", float(self.trainer.global_rank), sync_dist=True)


class Silent(SmallNet):
    def __init__(self) -> None:
        super().__init__(norm=False, drop=0.0)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])


def ours(prunes: bool = True) -> list[Any]:
    """Our callbacks; without `prunes` they do not change the weights."""
    prune = [AnomalyPruneCallback(at_epoch=1, last_reports=1, min_votes=1)] if prunes else []
    compared = MemorizationCallback(*images(SAMPLES).split(SAMPLES // 2))
    settings = AnalysisSettings(n_init=2)
    return [AnomalyFilterCallback(probe_size=SAMPLES, settings=settings), compared, *prune, MemorizationEarlyStopping()]


def run(
    callbacks: Iterable[Any],
    *,
    module: Any = Logging,
    where: Hooks = lambda name: True,
    val: Any = None,
    ckpt_path: Path | None = None,
    **options: Any,
) -> Outcome:
    """Fit, and return what this process received."""
    ledger.talks, ledger.wrong = 0, []
    foreign = talking(Foreign, where)
    model = talking(module, where)()
    val = loader(SAMPLES, batch_size=SAMPLES // 2, make=damaged) if val is None else val
    with TemporaryDirectory() as folder:
        trainer = quiet_trainer(
            None,
            foreign(),
            *callbacks,
            foreign(),
            pl.callbacks.ModelCheckpoint(folder),
            devices=2,
            strategy=DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=LIMIT)),
            **{"num_sanity_val_steps": 1, **options},
        )
        trainer.fit(model, loader(8, batch_size=4), val, ckpt_path=ckpt_path)
        if ckpt_path is None:
            trainer.save_checkpoint(LAST)
    return {
        "talks": ledger.talks,
        "wrong": ledger.wrong,
        "epochs": trainer.current_epoch,
        "metrics": {key: value.item() for key, value in trainer.callback_metrics.items() if key != "train_loss"},
        "weights": sum(p.double().abs().sum().item() for p in model.parameters()),
    }


def two_processes(rank: int, world: int) -> Outcome:
    """Fit without our callbacks, with them, with masks and in another order, and resume from there."""
    fits = {"alone": run([]), "watched": run(ours(prunes=False)), "masked": run(ours()[::-1])}
    callbacks = ours()
    fits["resumed"] = run(callbacks, ckpt_path=LAST, max_epochs=3)
    return {**fits, "history": [entry["epoch"] for entry in callbacks[0].history]}


def one_fails(rank: int, world: int) -> Outcome:
    """Process 1 fails to analyze and to compare. It misses forward passes, so hooks in these do not communicate."""
    if rank == 1:
        across_processes.analyze_layers = memorization.compare_outputs = _break
    return {"fit": run(ours(), where=lambda name: "transfer" not in name and name != "forward")}


def _break(*args: Any, **kwargs: Any) -> Any:
    raise MemoryError("no memory is left")


class Shard(IterableDataset[Any]):
    """Is empty in process 1, without a length that would tell Lightning."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __iter__(self) -> Any:
        return iter(loader(SAMPLES).dataset if self.rank == 0 else [])


def epochs_only(name: str) -> bool:
    """Whether a hook runs in a process without batches too."""
    return not any(word in name for word in ("batch", "step", "backward", "zero_grad", "forward"))


def no_batch(rank: int, world: int) -> Outcome:
    """Process 1 runs the hooks of its validations, which have no batch."""
    return {"fit": run(ours(), module=Silent, where=epochs_only, val=DataLoader(Shard(rank), batch_size=14))}


if __name__ == "__main__":
    main(globals())
