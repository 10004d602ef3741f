"""The callback that acts: masks filters that were flagged, and keeps them masked."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, get_args

from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_anomaly.callbacks._base import LoggingCallback, find_callback, guarded
from lightning_anomaly.callbacks._find_norms import average_models, find_norms_on
from lightning_anomaly.callbacks.anomaly_filter import AnomalyFilterCallback
from lightning_anomaly.capture.layers import CONVOLUTIONS, modules_by_name, select_layers
from lightning_anomaly.checks import check_fraction, check_integer, check_one_of, check_text
from lightning_anomaly.distributed import broadcast_result, gather_results
from lightning_anomaly.pruning.filter_rows import conv_rows
from lightning_anomaly.pruning.mask import FilterMask
from lightning_anomaly.pruning.selection import (
    Criterion,
    Summary,
    choose_filters,
    choose_others,
    filter_norms,
    summarize,
)
from lightning_anomaly.two_sample.stopping import RISE

__all__ = ["AnomalyPruneCallback"]

_SHARDED = {"FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"}


class AnomalyPruneCallback(LoggingCallback):
    """Mask anomaly filters during training: their output is exactly 0 from then on, to the end.

    It acts on the reports of the `AnomalyFilterCallback` in the Trainer, wherever that stands in the list. Filters are
    masked when an epoch begins, so that what is validated is what is saved: see `lightning_anomaly.pruning.mask` for
    what is zeroed. Checkpoints stay ordinary ones; resuming from them goes on with the mask.

    Within a layer the filter with most votes comes first, a vote being a report that flags it; among equals the one
    with most outlier samples in these reports. One filter of each layer is always left.

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
        mask: The `FilterMask`, which reports and restores; None before there is a model.
        events: One plain dict each time it acted: `epoch`, `voted` (whether any filter that was not masked had enough
            votes) and `filters`, those masked then, `{layer: [filter, ...]}`.

    Raises:
        ValueError: If an argument is not allowed, or when a fit begins without an `AnomalyFilterCallback` in the
            Trainer, with a strategy that shards parameters, or with a layer that cannot be masked.

    Examples:
        >>> AnomalyPruneCallback(at_epoch=5).describe()
        'AnomalyPruneCallback masked no filter (criterion "anomaly", 2 votes in 3 reports).'
    """

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
            on_rise = RISE
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
        self._forget()

    def _forget(self) -> None:
        super()._forget()
        self.mask: FilterMask | None = None
        self.events: list[dict[str, Any]] = []
        self._summaries: list[Summary] = []  # of the last reports
        self._done: list[int] = []  # epochs of `at_epoch` that are behind
        self._armed = True  # whether a rise would be news
        self._due = False  # to be masked with the next batch

    @property
    def masked(self) -> dict[str, list[int]]:
        """`{layer: [filter, ...]}` of all filters that are masked."""
        return {} if self.mask is None else self.mask.masked

    def state_dict(self) -> dict[str, Any]:
        """The mask, what was done and what the next decision rests on, as plain values."""
        return {
            "mask": {"filters": {}, "zeros": {}} if self.mask is None else self.mask.state_dict(),
            "summaries": list(self._summaries),
            "events": list(self.events),
            "done": list(self._done),
            "armed": self._armed,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave and mask the model that the Trainer has, unless a fit has masked it before.

        For a validation or a test too: a checkpoint is looked at with the mask that it has.
        """
        if self._fitting is False and self.mask is not None:
            return
        self._forget()
        self._module = self._present
        self._summaries = state_dict["summaries"][-self.last_reports :]
        self.events = list(state_dict["events"])
        self._done = list(state_dict["done"])
        self._armed = bool(state_dict["armed"])
        model = None if self._present is None else self._present()
        if model is not None:
            self.mask = FilterMask.from_state_dict(model, state_dict["mask"])

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Find who watches, and refuse what cannot work."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._watcher: AnomalyFilterCallback = find_callback(
                trainer, AnomalyFilterCallback, self.reports_from, "AnomalyPruneCallback"
            )
            if _SHARDED.intersection(cls.__name__ for cls in type(trainer.strategy).__mro__):
                raise ValueError(
                    "AnomalyPruneCallback should be used with a strategy that keeps whole parameters in each process, "
                    f"such as DDP. Found {type(trainer.strategy).__name__}, which shards them."
                )

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse layers that could not be masked, rather than in the middle of the fit."""
        super().on_fit_start(trainer, pl_module)
        layers = select_layers(pl_module, self._watcher.layers)
        for name, layer in layers.items():
            if isinstance(layer, CONVOLUTIONS):
                conv_rows(name, layer, [0])
        if pruned := sorted(name for name, layer in layers.items() if layer in _pruned_layers(trainer.callbacks)):
            raise ValueError(
                "AnomalyPruneCallback should be used without a ModelPruning of the same layers, which replaces their "
                f"weights. Found {pruned}: give its `parameters_to_prune` others."
            )
        if self.mask is None:
            self.mask = FilterMask(pl_module)

    @guarded
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Mask what is only there by now: the optimizers' state and averaged weights of a checkpoint."""
        # A fit of the same model by another Trainer counts its epochs from 0 again.
        self._done = [epoch for epoch in self._done if epoch <= trainer.current_epoch]
        self._keep_everywhere(trainer)

    def _keep_everywhere(self, trainer: Any) -> None:
        """Mask again, also in averages of the weights that callbacks keep; an average of zeros stays zero."""
        if self.mask is not None and self.masked:
            self.mask.keep(trainer.optimizers)
            for average in average_models(trainer.callbacks):
                with suppress(ValueError):  # it is of a part of the model
                    FilterMask.from_state_dict(average, self.mask.state_dict())

    @guarded
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Find out whether it is time to mask."""
        epoch = trainer.current_epoch
        self._armed = self._armed or not self._risen
        asked = any(at <= epoch and at not in self._done for at in self.at_epoch)
        self._due = asked or (self._armed and self._risen)
        if self._due and len(self._summaries) < self.min_votes:
            self._due = False
            self._warn_once(
                "few reports",
                f"AnomalyPruneCallback has {len(self._summaries)} reports as epoch {epoch} begins, fewer than "
                f"`min_votes = {self.min_votes}`. It masks when it has them.",
            )

    @property
    def _risen(self) -> bool:
        history = self._watcher.history
        return self.on_rise is not None and bool(history) and history[-1]["metrics"]["rise"] > self.on_rise

    @guarded
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Mask the filters that process 0 chooses before the first step, whose batch serves to find norms."""
        if not self._due or self.mask is None:
            return
        self._due, epoch = False, trainer.current_epoch
        voted, chosen = broadcast_result(lambda: self._choose(trainer, pl_module))
        # All run their model, which may communicate.
        norms, *_ = gather_results(lambda: find_norms_on(batch, trainer, pl_module, self.masked, chosen))
        if uncalled := sorted(chosen.keys() - norms.called):
            self._warn_once(
                f"uncalled {uncalled}",
                f"AnomalyPruneCallback leaves {uncalled} as they are: neither `forward` nor `validation_step` calls "
                "them, so that the norms behind them cannot be found.",
            )
        masked = {layer: filters for layer, filters in chosen.items() if layer in norms.called}
        self.mask.add(masked, norms=norms, optimizers=trainer.optimizers)
        self._keep_everywhere(trainer)
        self.events = [*self.events, {"epoch": epoch, "voted": voted, "filters": masked}]
        self._done = sorted({*self._done, *(asked for asked in self.at_epoch if asked <= epoch)})
        self._armed = not self._risen

    @guarded
    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Zero the gradients of masked filters, before they are clipped."""
        if self.mask is not None:
            self.mask.keep_gradients()

    @guarded
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Zero the masked filters again."""
        if self.mask is not None:
            self.mask.keep(trainer.optimizers)

    @guarded
    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Make sure that averaged weights are validated masked."""
        if trainer.state.fn == "fit":
            self._keep_everywhere(trainer)

    @guarded
    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Check that masked filters are at zero in what is validated."""
        if batch_idx == 0 and trainer.state.fn == "fit" and self.mask is not None and not self.mask.verify():
            self._warn_once(
                "not at zero",
                "Masked filters were not at zero in a validation: something other than an optimizer writes to the "
                "weights, such as a callback that averages them.",
            )

    @guarded
    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log how much is masked."""
        if trainer.sanity_checking:
            return
        values = {"masked": 0.0, "masked_fraction": 0.0}
        # Outside of a fit it may be another model that is validated, or other weights.
        if self.mask is not None and self.mask.model is pl_module and self.mask.verify():
            values = {"masked": float(self._count), "masked_fraction": self.mask.parameter_fraction}
        self._log(trainer, pl_module, values)

    @guarded
    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Remember a new report. By now the watcher has it, wherever it stands in the list."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        report, history = self._watcher.report, self._watcher.history
        # A repeated report is none, and neither is one in which no filter could have got a vote.
        if report is not None and history and history[-1]["analysed"] and report.live_in(report.layers):
            self._summaries = [*self._summaries, summarize(report)][-self.last_reports :]

    @guarded
    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Report what it did."""
        rank_zero_info(self.describe())

    @property
    def _count(self) -> int:
        return sum(map(len, self.masked.values()))

    def describe(self) -> str:
        """Describe what was masked and when, in a line for each time."""
        count = self._count
        share = f" with {100 * self.mask.parameter_fraction:.1f}% of the parameters" if self.mask and count else ""
        head = f"AnomalyPruneCallback masked {count or 'no'} filter{'s' if count > 1 else ''}{share}"
        lines = [f'{head} (criterion "{self.criterion}", {self.min_votes} votes in {self.last_reports} reports).']
        for event in self.events:
            parts = [f"'{layer}' {sorted(filters)}" for layer, filters in event["filters"].items()]
            why = f"`max_fraction = {self.max_fraction:g}` left no room" if event["voted"] else "none had enough votes"
            lines.append(f"  before epoch {event['epoch']}: {', '.join(parts) or f'no filter, as {why}'}")
        return "\n".join(lines)

    def _choose(self, trainer: Any, pl_module: Any) -> tuple[bool, dict[str, list[int]]]:
        """Whether any filter has enough votes, and `{layer: [filter, ...]}` to mask, worst first."""
        summaries, modules = self._summaries, modules_by_name(pl_module)
        masked: dict[str, set[int]] = {}
        for prune in trainer.callbacks:
            for layer, filters in prune.masked.items() if isinstance(prune, AnomalyPruneCallback) else ():
                masked.setdefault(layer, set()).update(filters)
        voted = choose_filters(summaries, masked, min_votes=self.min_votes, max_fraction=1.0)
        chosen = choose_filters(summaries, masked, min_votes=self.min_votes, max_fraction=self.max_fraction)
        if others := [layer for layer in chosen if not isinstance(modules.get(layer), CONVOLUTIONS)]:
            self._warn_once("others", f"AnomalyPruneCallback masks nothing in {others}: they are no convolutions.")
            chosen = {layer: filters for layer, filters in chosen.items() if layer not in others}
        if self.criterion != "anomaly":
            norms = {layer: filter_norms(modules[layer]) for layer in chosen} if self.criterion == "l1" else None
            chosen = choose_others(chosen, summaries[-1], masked, norms, f"{self.seed} {trainer.current_epoch}")
        return bool(voted), chosen


def _pruned_layers(callbacks: list[Any]) -> list[Any]:
    """The layers whose weights Lightning's ModelPruning will replace, which it keeps privately."""
    prunes = (prune for prune in callbacks if any(cls.__name__ == "ModelPruning" for cls in type(prune).__mro__))
    return [layer for prune in prunes for layer, name in prune._parameters_to_prune if name == "weight"]
