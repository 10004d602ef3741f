"""The callback that acts: masks filters that were flagged, and keeps them masked."""

from __future__ import annotations

import warnings
from typing import Any, get_args

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from lightning_anomaly.callbacks.anomaly_filter import AnomalyFilterCallback
from lightning_anomaly.callbacks.averages import mask_averages
from lightning_anomaly.callbacks.base import AnyCallback
from lightning_anomaly.callbacks.watchers import find_watcher
from lightning_anomaly.capture import modules_by_name, select_layers
from lightning_anomaly.choose import Criterion, Summary, choose_filters, choose_others, filter_norms, summarise
from lightning_anomaly.flow import FlowObserver, NormFlow, is_norm
from lightning_anomaly.mask import FilterMask
from lightning_anomaly.report import AnomalyReport
from lightning_anomaly.rows import conv_rows
from lightning_anomaly.settings import check_integer, check_one_of

__all__ = ["AnomalyPruneCallback"]

_RISE = 0.05  # what `on_rise` is if nothing says when to mask, as for AnomalyEarlyStopping
_SHARDED = {"FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"}


class AnomalyPruneCallback(AnyCallback):
    """Masks anomaly filters during training: their output is exactly 0 from then on, to the end.

    It acts on the reports of the `AnomalyFilterCallback` in the Trainer, wherever that stands in the list, or of one of
    its own with default arguments, which then logs as if it stood there too. Filters are masked when an epoch begins,
    so that what is validated is what is saved: see `lightning_anomaly.mask` for what is zeroed. Checkpoints stay
    ordinary ones; resuming from them goes on with the mask.

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
        last_reports: Number of reports that are looked at.
        max_fraction: Fraction of a layer's filters that may be masked, those masked earlier included.
        criterion: `"anomaly"` masks the filters flagged; for comparison, `"random"` and `"l1"` (smallest weights first)
            mask as many in each layer, out of those that are not dead.
        seed: Seed of `"random"`.
        watcher: The `log_key_prefix` of the `AnomalyFilterCallback` to act on; None takes the first one.
        log_key_prefix: What the keys of the logged values begin with; two callbacks need different ones.

    Attributes:
        mask: The `FilterMask`; None before the first fit.
        events: One plain dict each time it acted: `epoch` and `filters`, those masked then, `{layer: [filter, ...]}`.

    Raises:
        ValueError: If an argument is not allowed, or when a fit begins with a strategy or a layer that cannot be masked.

    Examples:
        >>> AnomalyPruneCallback(at_epoch=5).describe()
        'AnomalyPruneCallback masked no filter.'
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
        watcher: str | None = None,
        log_key_prefix: str = "anomaly_prune",
    ) -> None:
        epochs = [] if at_epoch is None else list(at_epoch) if isinstance(at_epoch, (list, tuple)) else [at_epoch]
        if at_epoch is not None and not epochs:
            raise ValueError("Parameter `at_epoch` should be an epoch, a list of them, or None. Found `at_epoch = []`.")
        for epoch in epochs:
            check_integer("at_epoch", epoch, 1)
        if not epochs and on_rise is None:
            on_rise = _RISE
        if on_rise is not None:
            _check_number("on_rise", on_rise, 0 <= on_rise < 1, "[0, 1)")
        check_integer("last_reports", last_reports, 1)
        check_integer("min_votes", min_votes, 1)
        if min_votes > last_reports:
            raise ValueError(
                f"Parameter `min_votes` should be at most `last_reports = {last_reports}`. Found `min_votes = {min_votes}`."
            )
        _check_number("max_fraction", max_fraction, 0 < max_fraction <= 1, "(0, 1]")
        check_one_of("criterion", criterion, get_args(Criterion))
        check_integer("seed", seed, 0)
        self.at_epoch = sorted(set(epochs))
        self.on_rise = on_rise
        self.min_votes = min_votes
        self.last_reports = last_reports
        self.max_fraction = max_fraction
        self.criterion = criterion
        self.seed = seed
        self.watcher = watcher
        self.log_key_prefix = log_key_prefix
        self.mask: FilterMask | None = None
        self.events: list[dict[str, Any]] = []
        self._watcher: AnomalyFilterCallback | None = None
        self._own: AnomalyFilterCallback | None = None
        self._restart()

    def _restart(self) -> None:
        """Forget another model."""
        self.mask = None
        self.events = []
        self._module: Any = None
        self._done: list[int] = []
        self._armed = True  # whether a rise would be news
        self._summaries: list[Summary] = []
        self._seen: AnomalyReport | None = None
        self._observer: FlowObserver | None = None
        self._flow = NormFlow({})
        self._loaded: dict[str, Any] | None = None
        self._warned: set[str] = set()

    @property
    def state_key(self) -> str:
        """The key of this callback's state in a checkpoint."""
        return f"AnomalyPruneCallback[{self.log_key_prefix}]"

    def state_dict(self) -> dict[str, Any]:
        """The mask, what it was decided on and what is to come, as plain values."""
        mask = self._loaded if self.mask is None else self.mask.state_dict()
        flow = {"norms": {conv: list(norms) for conv, norms in self._flow.norms.items()}, "shared": [*self._flow.shared]}
        return {
            "mask": mask,
            "events": self.events,
            "done": self._done,
            "armed": self._armed,
            "summaries": self._summaries,
            "flow": flow,
            "watcher": None if self._own is None else self._own.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave; the filters are masked when the fit begins."""
        self._restart()
        self._loaded = state_dict["mask"] or {"filters": {}, "norms": {}}
        self.events = list(state_dict["events"])
        self._done = list(state_dict["done"])
        self._armed = state_dict["armed"]
        self._summaries = list(state_dict["summaries"])
        self._flow = NormFlow(state_dict["flow"]["norms"], frozenset(state_dict["flow"]["shared"]))
        if self._own is not None and state_dict["watcher"] is not None:
            self._own.load_state_dict(state_dict["watcher"])

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Finds who watches, and refuses what cannot work."""
        self._watcher = find_watcher(trainer, self.watcher)
        if self._watcher is not None:
            self._own = None
        else:
            self._own = self._own or AnomalyFilterCallback(log_key_prefix=self.watcher or "anomaly_filters")
            self._watcher = self._own
            self._own.setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        sharded = _SHARDED.intersection(cls.__name__ for cls in type(trainer.strategy).__mro__)
        if sharded:
            raise ValueError(
                "AnomalyPruneCallback should be used with a strategy that keeps whole parameters in every process, such "
                f"as DDP. Found {type(trainer.strategy).__name__}, which shards them."
            )
        twins = [c for c in trainer.callbacks if isinstance(c, AnomalyPruneCallback) and c is not self]
        if any(twin.log_key_prefix == self.log_key_prefix for twin in twins):
            raise ValueError(
                "Parameter `log_key_prefix` should be different for each AnomalyPruneCallback of a Trainer. "
                f"Found {self.log_key_prefix!r} twice."
            )
        late = [epoch for epoch in self.at_epoch if 0 <= (trainer.max_epochs or -1) <= epoch]
        if late and not trainer.fast_dev_run:
            self._warn_once(
                trainer,
                f"late {late}",
                f"Parameter `at_epoch` should be below `max_epochs = {trainer.max_epochs}`, as filters are masked before "
                f"an epoch begins. Found {late}, at which nothing will happen.",
            )

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Masks again what a checkpoint, or an earlier fit of this model, had masked."""
        assert self._watcher is not None
        if self._own is not None:
            self._own.on_fit_start(trainer, pl_module)
        _check_maskable(select_layers(pl_module, self._watcher.layers))
        if self._loaded is not None:
            self.mask = FilterMask.from_state_dict(pl_module, self._loaded)
            self._loaded = None
        elif self._module is not pl_module:
            self._restart()
            self._seen = self._watcher.report  # that of another model, if any
        self._module = pl_module
        self.mask = self.mask or FilterMask(pl_module)
        self._observer = FlowObserver(pl_module)
        self.mask.keep()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Masks what was restored after `on_fit_start`: the optimizers' state."""
        if self._own is not None:
            self._own.on_train_start(trainer, pl_module)
        # A fit of the same model by another Trainer counts its epochs from 0 again.
        self._done = [epoch for epoch in self._done if epoch <= trainer.current_epoch]
        self._keep_everywhere(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Masks, if it is time."""
        if self._due(trainer):
            if len(self._summaries) < self.min_votes:
                self._warn_once(
                    trainer,
                    "postponed",
                    f"AnomalyPruneCallback has {len(self._summaries)} reports as epoch {trainer.current_epoch} begins, "
                    f"fewer than `min_votes = {self.min_votes}`. It masks when it has them.",
                )
            else:
                self._act(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Zeroes the gradients of masked filters, before they are clipped."""
        if self.mask is not None:
            self.mask.keep_gradients()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Zeroes the masked filters again."""
        if self.mask is not None:
            self.mask.keep(trainer.optimizers)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Lets its own watcher prepare."""
        if self._own is not None:
            self._own.on_validation_start(trainer, pl_module)

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Watches, in the first batch of each loader, which normalisation follows which convolution."""
        if self._own is not None:
            self._own.on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        if self._observer is not None and batch_idx == 0:
            self._observer.attach()

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Takes the hooks off again, and checks that masked filters were at zero."""
        if self._own is not None:
            self._own.on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        if self._observer is None or batch_idx:
            return
        self._observer.remove()
        if self._observer.flow.norms:
            self._flow = self._observer.flow
        self._check_at_zero(trainer, "in a validation")

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Logs how much is masked."""
        if self._own is not None:
            self._own.on_validation_epoch_end(trainer, pl_module)
        if trainer.sanity_checking or trainer.barebones:
            return
        count = sum(map(len, self.masked.values()))
        fraction = self.mask.parameter_fraction if self.mask is not None and count else 0.0
        for name, value in (("masked", float(count)), ("masked_fraction", fraction)):
            pl_module.log(f"{self.log_key_prefix}/{name}", value, on_step=False, on_epoch=True, batch_size=1)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Remembers a new report. By now every watcher has its own, wherever it stands in the list."""
        report = None if self._watcher is None else self._watcher.report
        if trainer.state.fn == "fit" and report is not None and report is not self._seen:
            self._seen = report
            self._summaries = [*self._summaries, summarise(report)][-self.last_reports :]

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Tells what it did."""
        if self._own is not None:
            self._own.on_fit_end(trainer, pl_module)
        self._check_at_zero(trainer, "at the end of the fit")
        rank_zero_info(self.describe())

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leaves no hook behind."""
        if self._own is not None:
            self._own.on_exception(trainer, pl_module, exception)
        self._release()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leaves no hook behind."""
        if self._own is not None:
            self._own.teardown(trainer, pl_module, stage)
        self._release()

    @property
    def masked(self) -> dict[str, list[int]]:
        """`{layer: [filter, ...]}` of all filters that are masked."""
        if self.mask is not None:
            return self.mask.masked
        return {} if self._loaded is None else dict(self._loaded["filters"])

    def describe(self) -> str:
        """What was masked and when, in a few lines."""
        count = sum(map(len, self.masked.values()))
        lines = [
            f"  before epoch {event['epoch']}: "
            + (", ".join(f"'{layer}' {filters}" for layer, filters in event["filters"].items()) or "none")
            for event in self.events
        ]
        if not count:
            when = [event["epoch"] for event in self.events]
            asked = f", as none had {self.min_votes} votes when epochs {when} began" if when else ""
            return f"AnomalyPruneCallback masked no filter{asked}."
        share = f" ({100 * self.mask.parameter_fraction:.1f}% of the parameters)" if self.mask is not None else ""
        return "\n".join([f'AnomalyPruneCallback masked {count} filters{share}, criterion "{self.criterion}":', *lines])

    def _due(self, trainer: Any) -> bool:
        epoch = trainer.current_epoch
        due = any(asked <= epoch and asked not in self._done for asked in self.at_epoch)
        if self.on_rise is not None and self._watcher is not None and self._watcher.history:
            risen = self._watcher.history[-1]["metrics"]["rise"] > self.on_rise
            due = due or (risen and self._armed)
            self._armed = self._armed or not risen
        return due

    def _act(self, trainer: Any, pl_module: Any) -> None:
        assert self.mask is not None
        # One process decides for all: in another one the observed batch may have been empty.
        decision = (self._choose(pl_module), self._flow) if trainer.is_global_zero else None
        filters, flow = trainer.strategy.broadcast(decision)
        modules = modules_by_name(pl_module)
        known = flow if any(is_norm(module) for module in modules.values()) else None
        masked: dict[str, list[int]] = {}
        for layer, indices in filters.items():
            module = modules.get(layer)
            try:
                self.mask.add({layer: indices}, flow=known, optimizers=trainer.optimizers)
                masked[layer] = indices
            except ValueError as error:
                self._warn_once(
                    trainer, layer, f"AnomalyPruneCallback leaves layer '{layer}' ({type(module).__name__}): {error}"
                )
        epoch = trainer.current_epoch
        self._done = sorted({*self._done, *(asked for asked in self.at_epoch if asked <= epoch)})
        self._armed = False
        self.events = [*self.events, {"epoch": epoch, "filters": masked}]
        self._keep_everywhere(trainer, pl_module)
