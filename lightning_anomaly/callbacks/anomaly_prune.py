"""The callback that acts: masks filters that were flagged, and keeps them masked."""

from __future__ import annotations

import weakref
from typing import Any, get_args

from lightning.pytorch.utilities import rank_zero_info

from lightning_anomaly.callbacks._base import LoggingCallback, guarded
from lightning_anomaly.callbacks._history import THRESHOLD
from lightning_anomaly.callbacks._mask import TrainerMask, check_maskable
from lightning_anomaly.callbacks.anomaly_filter import AnomalyFilterCallback, find_watcher
from lightning_anomaly.capture.layers import modules_by_name, select_layers
from lightning_anomaly.checks import check_fraction, check_integer, check_one_of, check_text
from lightning_anomaly.pruning.mask import FilterMask
from lightning_anomaly.pruning.selection import (
    Criterion,
    Summary,
    choose_filters,
    choose_others,
    filter_norms,
    summarize,
)
from lightning_anomaly.report import AnomalyReport

__all__ = ["AnomalyPruneCallback"]

_SHARDED = {"FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"}


class AnomalyPruneCallback(LoggingCallback):
    """Mask anomaly filters during training: their output is exactly 0 from then on, to the end.

    It acts on the reports of the `AnomalyFilterCallback` in the Trainer, wherever that stands in the list. Filters are
    masked when an epoch begins, so that what is validated is what is saved: see `lightning_anomaly.pruning.mask` for
    what is zeroed. Checkpoints stay ordinary ones; resuming from them goes on with the mask.

    Within a layer the worst come first: the filter with most votes, a vote being a report that flags it; among equals
    that with most outlier samples in these reports. One filter of each layer is always left.

    Logged at every validation under `log_key_prefix`: `masked` (filters) and `masked_fraction` (of the parameters).

    Args:
        at_epoch: Mask after this many epochs of training, before the epoch of that number (as in
            `trainer.current_epoch`) begins; a list masks several times. With fewer than `min_votes` reports by then,
            it happens at the first epoch that begins with enough.
        on_rise: Mask when the watching callback's `rise` exceeds this value, once each time it does. With neither
            `at_epoch` nor `on_rise` it is 0.05.
        min_votes: Number of the last reports that have to flag a filter.
        last_reports: Number of reports that are looked at; one without a live filter is none.
        max_fraction: Fraction of a layer's filters that may be masked, those masked earlier included, and those of
            another AnomalyPruneCallback in the Trainer.
        criterion: `"anomaly"` masks the filters flagged; for comparison, `"random"` and `"l1"` (smallest weights first)
            mask as many in each layer, out of those that are not dead.
        seed: Seed of `"random"`.
        reports_from: The `log_key_prefix` of the `AnomalyFilterCallback` to act on; None takes the first one.
        log_key_prefix: What the keys of the logged values begin with; two callbacks need different ones.

    Attributes:
        events: One plain dict each time it acted: `epoch` and `filters`, those masked then, `{layer: [filter, ...]}`.

    Raises:
        ValueError: If an argument is not allowed, or when a fit begins without an `AnomalyFilterCallback` in the
            Trainer, with a strategy that shards parameters, or with a layer that cannot be masked.

    Examples:
        >>> AnomalyPruneCallback(at_epoch=5).describe()
        'AnomalyPruneCallback masked no filter (criterion "anomaly", 2 votes in 3 reports).'
    """

    _state_name = "AnomalyPruneCallback"

    def __init__(
        self,
        at_epoch: int | list[int] | None = None,
        on_rise: float | None = None,
        min_votes: int = 2,
        last_reports: int = 3,
        max_fraction: float = 0.5,
        criterion: Criterion = "anomaly",
        seed: int = 0,
        reports_from: str | None = None,
        log_key_prefix: str = "anomaly_prune",
    ) -> None:
        several = isinstance(at_epoch, (list, tuple, range))
        epochs: Any = [] if at_epoch is None else at_epoch if several else [at_epoch]
        if several and not epochs:
            raise ValueError("Parameter `at_epoch` should be an epoch, a list of them, or None. Found `at_epoch = []`.")
        if not epochs and on_rise is None:
            on_rise = THRESHOLD
        super().__init__(log_key_prefix)
        self.at_epoch = sorted({check_integer("at_epoch", epoch, 1) for epoch in epochs})
        self.on_rise = None if on_rise is None else check_fraction("on_rise", on_rise, zero=True)
        self.last_reports = check_integer("last_reports", last_reports, 1)
        self.min_votes = check_integer("min_votes", min_votes, 1)
        if min_votes > last_reports:
            raise ValueError(
                f"Parameter `min_votes` should be at most `last_reports = {last_reports}`. "
                f"Found `min_votes = {min_votes}`."
            )
        self.max_fraction = check_fraction("max_fraction", max_fraction, zero=False)
        self.criterion = check_one_of("criterion", criterion, get_args(Criterion))
        self.seed = check_integer("seed", seed, 0)
        self.reports_from = None if reports_from is None else check_text("reports_from", reports_from)
        self._watcher: AnomalyFilterCallback | None = None
        self._trained = TrainerMask(self._warn_once)
        self._forget()

    def _forget(self) -> None:
        self._trained.forget()
        self._restart([])
        self._warned.clear()
        self.events: list[dict[str, Any]] = []
        self._done: list[int] = []  # epochs of `at_epoch` that are behind
        self._armed = True  # whether a rise would be news
        self._waits = False  # for a batch to find the norms with

    def _restart(self, summaries: list[Summary]) -> None:
        """Go on from these: of a report that is there by now nothing is taken."""
        self._summaries = summaries[-self.last_reports :]  # there may have been more in the fit of a checkpoint
        self._seen: AnomalyReport | None = None if self._watcher is None else self._watcher.report

    @property
    def mask(self) -> FilterMask | None:
        """The mask, which reports and restores; None before there is a model."""
        return self._trained.mask

    @property
    def masked(self) -> dict[str, list[int]]:
        """`{layer: [filter, ...]}` of all filters that are masked."""
        return self._trained.masked

    def state_dict(self) -> dict[str, Any]:
        """The mask, what was done and what the next decision rests on, as plain values."""
        own = {"events": list(self.events), "done": list(self._done), "armed": self._armed}
        return {"summaries": list(self._summaries), **self._trained.state_dict(), **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave: a fit masks the filters when it begins, or now if it has begun."""
        self._forget()
        self._loaded = True
        self._restart(state_dict["summaries"])
        self._trained.load_state_dict(state_dict)
        self.events = list(state_dict["events"])
        self._done = list(state_dict["done"])
        self._armed = bool(state_dict["armed"])

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Find who watches, and refuse what cannot work."""
        super().setup(trainer, pl_module, stage)
        sharded = _SHARDED.intersection(cls.__name__ for cls in type(trainer.strategy).__mro__)
        if stage != "fit":
            if not sharded:
                self._trained.attach(pl_module)
            return
        self._watcher = find_watcher(trainer, self.reports_from, "AnomalyPruneCallback should be used with")
        if sharded:
            raise ValueError(
                "AnomalyPruneCallback should be used with a strategy that keeps whole parameters in each process, such "
                f"as DDP. Found {type(trainer.strategy).__name__}, which shards them."
            )
        late = [epoch for epoch in self.at_epoch if 0 <= (trainer.max_epochs or -1) <= epoch]
        if late and not trainer.fast_dev_run:
            self._warn_once(
                "late",
                f"Parameter `at_epoch` should be below `max_epochs = {trainer.max_epochs}`, as filters are masked when "
                f"an epoch begins. Found {late}, when nothing will happen.",
            )

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Mask again what a checkpoint, or an earlier fit of this model, had masked."""
        check_maskable(select_layers(pl_module, None if self._watcher is None else self._watcher.layers))
        super().on_fit_start(trainer, pl_module)
        self._restart(self._summaries)  # one of `trainer.validate` may be there, of other images
        self._trained.start(pl_module)

    @guarded
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Mask what is only there by now: the optimizers' state and averaged weights of a checkpoint."""
        # A fit of the same model by another Trainer counts its epochs from 0 again.
        self._done = [epoch for epoch in self._done if epoch <= trainer.current_epoch]
        self._trained.keep_everywhere(trainer, pl_module)

    @guarded
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Mask, if it is time."""
        epoch = trainer.current_epoch
        history = [] if self._watcher is None else self._watcher.history
        risen = self.on_rise is not None and bool(history) and history[-1]["metrics"]["rise"] > self.on_rise
        if (risen and self._armed) or any(asked <= epoch and asked not in self._done for asked in self.at_epoch):
            known = len(self._summaries)
            if known < self.min_votes:
                self._warn_once(
                    "few reports",
                    f"AnomalyPruneCallback has {known} reports as epoch {epoch} begins, fewer than "
                    f"`min_votes = {self.min_votes}`. It masks when it has them.",
                )
                return
            self._mask_filters(trainer, pl_module)
        self._armed = not risen

    @guarded
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Mask where no batch was validated yet, as after a resume."""
        if self._waits:
            self._waits = False
            self._trained.keep_batch(batch)
            self._mask_filters(trainer, pl_module)

    def _mask_filters(self, trainer: Any, pl_module: Any) -> None:
        epoch = trainer.current_epoch
        masked = self._trained.add(trainer, pl_module, lambda: self._choose(trainer, pl_module))
        self._waits = masked is None
        if masked is not None:
            self.events = [*self.events, {"epoch": epoch, "filters": masked}]
            self._done = sorted({*self._done, *(asked for asked in self.at_epoch if asked <= epoch)})

    @guarded
    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Zero the gradients of masked filters, before they are clipped."""
        self._trained.keep_gradients()

    @guarded
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Zero the masked filters again."""
        self._trained.keep(trainer)

    @guarded
    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Make sure that averaged weights are validated masked."""
        if trainer.state.fn == "fit":
            self._trained.keep_everywhere(trainer, pl_module)

    @guarded
    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep a batch to find the norms with."""
        if trainer.state.fn == "fit" and batch_idx == dataloader_idx == 0:
            self._trained.keep_batch(batch)

    @guarded
    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Check that masked filters are at zero in what is validated."""
        if batch_idx == 0 and trainer.state.fn == "fit":
            self._trained.check("in a validation")

    @guarded
    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log how much is masked."""
        if trainer.sanity_checking or trainer.barebones:
            return
        values = {"masked": float(self._trained.count), "masked_fraction": self._trained.parameter_fraction}
        if trainer.state.fn != "fit" and not self._trained.holds_in(pl_module):  # another model, or other weights
            values = dict.fromkeys(values, 0.0)
        self._log(trainer, pl_module, values)

    @guarded
    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Remember a new report. By now the watcher has it, wherever it stands in the list."""
        report = None if self._watcher is None else self._watcher.report
        if trainer.state.fn != "fit" or report is None or report is self._seen:
            return
        self._seen = report
        if report.live_in(report.layers):  # else no filter could have got a vote
            self._summaries = [*self._summaries, summarize(report)][-self.last_reports :]

    @guarded
    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Report what it did."""
        self._trained.check("at the end of the fit")
        rank_zero_info(self.describe())

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """End what the Trainer does with the model."""
        super().on_exception(trainer, pl_module, exception)
        self._trained.detach()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """End what the Trainer does with the model."""
        super().teardown(trainer, pl_module, stage)
        self._trained.detach()
        if self._loaded:  # for a validation or a test
            self._module, self._loaded = weakref.ref(pl_module), False

    def describe(self) -> str:
        """Describe what was masked and when, in a line for each time."""
        count = self._trained.count
        share = f" with {100 * self._trained.parameter_fraction:.1f}% of the parameters" if self.mask and count else ""
        head = f"AnomalyPruneCallback masked {count or 'no'} filter{'s' if count > 1 else ''}{share}"
        lines = [f'{head} (criterion "{self.criterion}", {self.min_votes} votes in {self.last_reports} reports).']
        nothing = "no filter, for want of votes or because of `max_fraction`"
        for event in self.events:
            parts = [f"'{layer}' {sorted(filters)}" for layer, filters in event["filters"].items()]
            lines.append(f"  before epoch {event['epoch']}: {', '.join(parts) or nothing}")
        return "\n".join(lines)

    def _choose(self, trainer: Any, pl_module: Any) -> dict[str, list[int]]:
        """`{layer: [filter, ...]}` to mask, worst first."""
        summaries, modules = self._summaries, modules_by_name(pl_module)
        masked: dict[str, set[int]] = {}
        for prune in trainer.callbacks:
            for layer, filters in prune.masked.items() if isinstance(prune, AnomalyPruneCallback) else ():
                masked.setdefault(layer, set()).update(filters)
        chosen = choose_filters(summaries, masked, min_votes=self.min_votes, max_fraction=self.max_fraction)
        last = summaries[-1]
        for layer in list(chosen):
            size = len(last[layer])
            if getattr(modules.get(layer), "out_channels", None) != size:
                self._warn_once(
                    f"layer {layer}",
                    f"AnomalyPruneCallback masks nothing in layer '{layer}', of which there is a report on {size} "
                    "filters: the model has no convolution of this name with as many.",
                )
                del chosen[layer]
        if self.criterion == "anomaly":
            return chosen
        norms = {layer: filter_norms(modules[layer]) for layer in chosen} if self.criterion == "l1" else None
        return choose_others(chosen, last, masked, norms, f"{self.seed} {trainer.current_epoch}")
