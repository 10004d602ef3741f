"""Fits in which everybody communicates in every hook, beside our callbacks: they must hear what they would without us.

`python communicating.py FOLDER SCENARIO ...` runs scenarios in two processes, see `forked.py`; all without a name.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from functools import partial, wraps
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from forked import Outcome, run_forked
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.strategies import DDPStrategy
from network import images, network
from small import Small, loader, quiet
from torch.utils.data import DataLoader, IterableDataset, Subset
from torchmetrics import SumMetric

from lightning_anomaly import (
    AnalysisSettings,
    AnomalyEarlyStopping,
    AnomalyFilterCallback,
    AnomalyPruneCallback,
    TwoSampleCallback,
    analyze,
    two_sample_test,
)
from lightning_anomaly.callbacks import _probe, anomaly_prune, two_sample
from lightning_anomaly.plots import filter_figure
from lightning_anomaly.sharing import map_exchange, together

LIMIT = 300  # seconds for a scenario that hangs, of up to four fits; else it takes about four
SAMPLES = 56
COLLECTIVES = (
    *("all_gather", "all_gather_into_tensor", "all_gather_object", "all_reduce", "all_to_all", "all_to_all_single"),
    *(
        "barrier",
        "broadcast",
        "broadcast_object_list",
        "gather",
        "gather_object",
        "monitored_barrier",
        "recv",
        "reduce",
    ),
    *("reduce_scatter", "reduce_scatter_tensor", "scatter", "scatter_object_list", "send"),
)
ALL = ("filter", "two_sample", "prune", "stopping")


class Ledger:
    """What this process said and heard in a fit.

    Attributes:
        calls: The collective calls, in their order.
        talks: How often somebody talked.
        wrong: What was heard that was not what was said.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forgets what was."""
        self.calls: list[str] = []
        self.talks = 0
        self.wrong: list[str] = []

    def write_down(self) -> None:
        """Notes every collective call from now on."""
        for name, module in product(COLLECTIVES, (dist, dist.distributed_c10d)):
            setattr(module, name, self._noted(name, getattr(module, name)))

    def _noted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def noted(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            return call(*args, **kwargs)

        return noted

    def talk(self, trainer: Any, place: str) -> None:
        """Sums, gathers, computes a metric or waits, in turn, with a number that nobody said before."""
        self.talks += 1
        said = 10 * self.talks + trainer.global_rank
        both = [10 * self.talks, 10 * self.talks + 1]
        if self.talks % 4 == 0:
            trainer.strategy.barrier()
            return
        if self.talks % 4 == 1:
            heard, meant = trainer.strategy.reduce(torch.tensor(float(said)), reduce_op="sum").item(), sum(both)
        elif self.talks % 4 == 2:
            heard, meant = trainer.lightning_module.all_gather(torch.tensor(said)).tolist(), both
        else:
            metric = SumMetric()
            metric.update(said)
            heard, meant = metric.compute().item(), sum(both)
        if heard != meant:
            self.wrong.append(f"{place}: {heard} instead of {meant}")


def everywhere(name: str) -> bool:
    return True


def talking(kind: Any, ledger: Ledger, where: Callable[[str], bool], reads: bool) -> Any:
    """A class that talks at the beginning of every hook of a fit, and may read what of the Trainer communicates."""
    others = ("test", "predict", "exception", "load_checkpoint")
    hooks = [name for name in dir(kind) if name.startswith("on_") and not any(word in name for word in others)]
    hooks += ["setup", "teardown", "training_step", "validation_step", "transfer_batch_to_device", "forward"]

    def hook(name: str) -> Callable[..., Any]:
        before = getattr(kind, name)

        @wraps(before)
        def talks(self: Any, *args: Any, **kwargs: Any) -> Any:
            trainer = self.trainer if isinstance(self, pl.LightningModule) else args[0]
            ledger.talk(trainer, f"{kind.__name__}.{name}")
            if reads:
                _ = trainer.log_dir, trainer.callback_metrics, trainer.logged_metrics, trainer.progress_bar_metrics
            return before(self, *args, **kwargs)

        return talks

    return type(kind.__name__, (kind,), {name: hook(name) for name in hooks if hasattr(kind, name) and where(name)})


class Foreign(pl.Callback):
    """Somebody else's callback."""


class Logging(Small):
    """Logs what is reduced at steps, at epochs and by a metric."""

    def __init__(self) -> None:
        super().__init__(norm=False)
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


class Silent(Small):
    """Logs nothing that is reduced, and allows a process to have no batch."""

    def __init__(self) -> None:
        super().__init__(norm=False)
        self.allow_zero_length_dataloader_with_multiple_devices = True

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])


class Recorder(Logger):
    """Takes figures and layouts as TensorBoard does, and draws nothing."""

    name, version = "recorder", 0

    def __init__(self) -> None:
        super().__init__()
        self.took: list[str] = []
        self.experiment = Experiment(self.took)

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        pass

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass


class Experiment:
    def __init__(self, took: list[str]) -> None:
        self._took = took

    def add_figure(self, tag: str, *args: Any, **kwargs: Any) -> None:
        self._took.append(tag)

    def add_custom_scalars(self, layout: Any) -> None:
        self._took.append("layout")


def ours(names: Iterable[str], figures: bool = True, **options: Any) -> Iterator[Any]:
    """Callbacks of ours; one that is alone writes the filter browser too."""
    names = list(names)
    for name in names:
        if name == "filter":
            drawn = {"log_figures": figures, "browser": figures and len(names) == 1}
            yield AnomalyFilterCallback(
                **{"probe_size": SAMPLES, "settings": AnalysisSettings(n_init=2), **drawn, **options}
            )
        elif name == "two_sample":
            yield TwoSampleCallback(*images(SAMPLES).tensors[0].split(SAMPLES // 2))
        elif name == "prune":
            yield AnomalyPruneCallback(at_epoch=1, last_reports=1, min_votes=1)
        else:
            yield AnomalyEarlyStopping()


ledger = Ledger()


def run(
    callbacks: Iterable[Any],
    *,
    module: Any = Logging,
    model: Any = None,
    where: Callable[[str], bool] = everywhere,
    reads: bool = False,
    train: Any = None,
    val: Any = None,
    logger: Any = None,
    validate: bool = False,
    **options: Any,
) -> Outcome:
    """What this process said and heard in a fit, or in a `trainer.validate()`."""
    ledger.begin()
    foreign = talking(Foreign, ledger, where, reads)
    model = talking(module, ledger, where, reads)() if model is None else model
    train = loader(8, batch_size=4) if train is None else train
    val = loader(SAMPLES, batch_size=SAMPLES // 2) if val is None else val
    with TemporaryDirectory() as folder:
        trainer = quiet(
            devices=2,
            strategy=DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=LIMIT)),
            callbacks=[foreign(), *callbacks, foreign(), pl.callbacks.ModelCheckpoint(folder)],
            logger=logger or False,
            **{"enable_checkpointing": True, "num_sanity_val_steps": 1, "log_every_n_steps": 1, "max_epochs": 2}
            | options,
        )
        trainer.validate(model, val, verbose=False) if validate else trainer.fit(model, train, val)
    return {
        "talks": ledger.talks,
        "wrong": ledger.wrong,
        "calls": Counter(ledger.calls),
        "order": hashlib.sha256(" ".join(ledger.calls).encode()).hexdigest(),
        "epochs": trainer.current_epoch,
        "metrics": {key: value.item() for key, value in trainer.callback_metrics.items() if key != "train_loss"},
        "weights": sum(p.double().abs().sum().item() for p in model.parameters()),
        "took": getattr(logger, "took", []),
    }


def without_ours(rank: int, world: int) -> Outcome:
    return {"fit": run([], num_sanity_val_steps=0)}


def combination(names: tuple[str, ...], rank: int, world: int) -> Outcome:
    """The fits with these callbacks in this order: of the first alone with figures and a logger, one of them and
    neither; beside others with both in one order, without figures in the other.
    """
    ways = product((True, False), repeat=2) if names == ("filter",) else [(names[0] == "filter", True)]
    return {
        f"figures={figures} logger={there}": run(
            ours(names, figures), logger=Recorder() if there else None, num_sanity_val_steps=0
        )
        for figures, there in ways
    }


def combinations() -> Iterator[tuple[str, ...]]:
    """Our callbacks, each with and without each other, in both orders; some need the one whose reports they act on."""
    yield ("two_sample",)
    for chosen in product((True, False), repeat=3):
        names = ("filter", *(name for name, there in zip(ALL[1:], chosen, strict=True) if there))
        yield from dict.fromkeys((names, names[::-1]))


def epochs_only(name: str) -> bool:
    """Whether a hook runs in a process without batches too."""
    return not any(word in name for word in ("batch", "step", "backward", "zero_grad", "forward"))


def outside_forward_passes(name: str) -> bool:
    """Whether a hook runs in a process that fails before a forward pass over images of our own."""
    return "transfer" not in name and name != "forward"


def outside_validations(name: str) -> bool:
    """Whether a hook runs in a process without validations too."""
    return "validation" not in name and "sanity" not in name and epochs_only(name)


def reads(rank: int, world: int) -> Outcome:
    """Somebody reads what communicates of the Trainer, in every hook."""
    return {"fit": run(ours(ALL), reads=True, logger=Recorder())}


def progress_bar(rank: int, world: int) -> Outcome:
    """The bar reads metrics in process 0 alone, at the end of a training epoch, where nobody else may talk then."""
    return {"fit": run(ours(ALL), where=lambda name: name != "on_train_epoch_end", enable_progress_bar=True)}


def one_logger(rank: int, world: int) -> Outcome:
    return {"fit": run(ours(ALL), logger=None if rank else Recorder())}


def every_second_epoch(rank: int, world: int) -> Outcome:
    """Lightning loads the validation set at the end of the second epoch."""
    options = {"check_val_every_n_epoch": 2, "num_sanity_val_steps": 0}
    return {"fit": run(ours(ALL), logger=Recorder(), **options)}


def analysis_fails(rank: int, world: int) -> Outcome:
    if rank == 0:
        together.analyze_share = _break
    return {"fit": run(ours(ALL))}


def analysis_of_another_fails(rank: int, world: int) -> Outcome:
    if rank == 1:
        together.analyze_share = _break
    return {"fit": run(ours(ALL))}


def sending_fails(rank: int, world: int) -> Outcome:
    """Process 1 has no memory for what it would send."""
    if rank == 1:
        map_exchange._Route.parts = _break
    return {"fit": run(ours(ALL))}


def receiving_fails(rank: int, world: int) -> Outcome:
    """Process 0 has no memory for its maps, when it has got those of the first layer."""
    if rank == 0:
        map_exchange._Route.joined = _break
    return {"fit": run(ours(ALL))}


def joining_fails(rank: int, world: int) -> Outcome:
    """Process 1 has no memory for the report, when all have done their share."""
    if rank == 1:
        together.join_shares = _break
    return {"fit": run(ours(ALL))}


def comparison_fails(rank: int, world: int) -> Outcome:
    if rank == 1:
        two_sample.compare_groups = _break
    return {"fit": run(ours(ALL), where=outside_forward_passes)}


def choice_fails(rank: int, world: int) -> Outcome:
    if rank == 0:
        anomaly_prune.choose_filters = _break
    return {"fit": run(ours(ALL))}


def training_probe_fails(rank: int, world: int) -> Outcome:
    if rank == 1:
        _probe.run_training_probe = _break
    train = loader(SAMPLES, batch_size=14)
    return {"fit": run(ours(ALL, probe="train"), train=train, where=outside_forward_passes)}


def uneven_training_probe(rank: int, world: int) -> Outcome:
    """Process 0 has 33 samples of the probe, process 1 has 32, and each takes 32 at a time, through talking hooks."""
    return {"fit": run(ours(ALL, probe="train", probe_size=65), train=loader(65, batch_size=32))}


def no_value_to_monitor(rank: int, world: int) -> Outcome:
    callbacks = list(ours(ALL))
    if rank == 1:
        callbacks[-1].monitor = "nowhere"
    return {"fit": run(callbacks)}


class Shard(IterableDataset[Any]):
    """No length, so that Lightning does not know that it is empty in process 1."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __iter__(self) -> Any:
        return iter(images(SAMPLES) if self.rank == 0 else [])


def no_batch(rank: int, world: int) -> Outcome:
    val = DataLoader(Shard(rank), batch_size=14)
    return {"fit": run(ours(ALL), module=Silent, where=epochs_only, val=val)}


def _half(rank: int) -> Any:
    return DataLoader(Subset(images(SAMPLES), range(0 if rank else SAMPLES)), batch_size=14)


def no_validation(rank: int, world: int) -> Outcome:
    """Lightning skips the validations of process 1, hooks and all."""
    options = {"use_distributed_sampler": False}
    return {"fit": run(ours(ALL), module=Silent, where=outside_validations, val=_half(rank), **options)}


def after_no_validation(rank: int, world: int) -> Outcome:
    """A fit in which both validate, and do so at the same times, after one that only process 0 has validated in."""
    callbacks = list(ours(ALL, every_n_validations=2))
    model = Silent()
    val = _half(rank)
    before = run(
        callbacks, model=model, where=outside_validations, val=val, use_distributed_sampler=False, max_epochs=1
    )
    return {"before": before, "fit": run(callbacks, model=model, logger=Recorder())}


def validates(rank: int, world: int) -> Outcome:
    return {"validate": run(ours(ALL), validate=True)}


def no_validation_in_validate(rank: int, world: int) -> Outcome:
    options = {"use_distributed_sampler": False, "validate": True}
    return {"validate": run(ours(ALL), module=Silent, where=outside_validations, val=_half(rank), **options)}


def _break(*args: Any, **kwargs: Any) -> Any:
    raise MemoryError("no memory is left")


SCENARIOS: dict[str, Callable[[int, int], Outcome]] = {
    **{"_".join(names): partial(combination, names) for names in combinations()},
    **{
        scenario.__name__: scenario
        for scenario in (
            *(
                without_ours,
                reads,
                progress_bar,
                one_logger,
                every_second_epoch,
                analysis_fails,
                analysis_of_another_fails,
                sending_fails,
                receiving_fails,
                joining_fails,
            ),
            *(comparison_fails, choice_fails, training_probe_fails, uneven_training_probe, no_value_to_monitor),
            *(no_batch, no_validation, after_no_validation, validates, no_validation_in_validate),
        )
    },
}


def main(folder: Path, names: list[str]) -> None:
    # What takes time but once is paid before the processes are forked.
    inputs = images(SAMPLES).tensors[0]
    filter_figure(analyze(network(), inputs))
    two_sample_test(network(), inputs, inputs)
    ledger.write_down()
    run_forked(folder, [(name, SCENARIOS[name], 2) for name in names or SCENARIOS], LIMIT)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
