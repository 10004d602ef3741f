"""The callback that masks flagged filters, and keeps them masked."""

from __future__ import annotations

from functools import partial
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_anomaly._internal.checks import check_fraction, check_integer
from lightning_anomaly._internal.processes import gather_results
from lightning_anomaly.callbacks._guard import OnError, guarded
from lightning_anomaly.callbacks._lightning import AnyCallback, MisconfiguredTrainer, find_callback
from lightning_anomaly.callbacks._logging import without_module_logging
from lightning_anomaly.callbacks.anomaly_filter import AnomalyFilterCallback
from lightning_anomaly.images.batches import first_tensor
from lightning_anomaly.network.layers import CONVOLUTIONS, modules_by_name, select_layers
from lightning_anomaly.pruning.mask import FilterMask, conv_rows
from lightning_anomaly.pruning.norms import FoundNorms, call_model, find_norms
from lightning_anomaly.pruning.selection import Summary, choose_filters, summarize_report

_SAMPLES = 4  # enough to find norms
_SHARDED = {"FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"}


class AnomalyPruneCallback(AnyCallback):
    """Mask anomaly filters during a fit: their output is exactly 0 from then on.

    It acts on the reports of the Trainer's first `AnomalyFilterCallback`, which may come later in the list. It masks
    when an epoch begins, so that the validated weights are the saved ones; see `mask_filters`. Checkpoints stay
    ordinary, and a resumed fit continues with the mask.

    Each report that flags a filter is a vote. In each layer the filters with most votes are masked first, and one is
    always left. At every validation it logs `masked` (filters) and `masked_fraction` (of the parameters).

    Args:
        at_epoch: Mask before this epoch begins (counted from 0). If there are fewer than `min_votes` reports by then,
            masking waits for them.
        min_votes: Number of votes that a filter needs, at most `last_reports`.
        last_reports: Number of most recent reports that vote; a report that clustered no filter is ignored.
        max_fraction: Largest fraction of a layer's filters to mask, including those masked before.
        log_key_prefix: Prefix of the logged keys; two callbacks need different ones.
        on_error: What to do when one of its hooks fails: "warn" once and go on, or "raise" the error.

    Attributes:
        mask: The `FilterMask`; None before there is a model.
        masked: `{layer: [filter, ...]}` of all filters that are masked.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If an argument is not allowed. When a fit begins, if the Trainer has no `AnomalyFilterCallback`, its
            strategy shards parameters, or a layer cannot be masked.
    """

    def __init__(
        self,
        at_epoch: int = 10,
        min_votes: int = 2,
        last_reports: int = 3,
        max_fraction: float = 0.5,
        log_key_prefix: str = "anomaly_prune",
        on_error: OnError = "warn",
    ) -> None:
        super().__init__(log_key_prefix, {}, on_error)
        self.at_epoch = check_integer("at_epoch", at_epoch, 1)
        self.last_reports = check_integer("last_reports", last_reports, 1)
        self.min_votes = check_integer("min_votes", min_votes, 1)
        if self.min_votes > self.last_reports:
            raise ValueError(
                f"Parameter `min_votes` should be at most `last_reports = {last_reports}`. "
                f"Found `min_votes = {min_votes}`."
            )
        self.max_fraction = check_fraction("max_fraction", max_fraction, zero=False)
        self._model: Any = None  # whose state a checkpoint restores
        self.mask: FilterMask | None = None
        self._reset()

    def _reset(self) -> None:
        """Drop what an earlier fit left, but for the mask, which belongs to its model."""
        self._guard.forget_warnings()
        self._summaries: list[Summary] = []  # of the last reports
        self._done = False  # whether it has masked in this fit

    @property
    def masked(self) -> dict[str, list[int]]:
        """`{layer: [filter, ...]}` of all filters that are masked."""
        return {} if self.mask is None else self.mask.masked

    def state_dict(self) -> dict[str, Any]:
        """Return the mask and the basis of the next decision, in plain types."""
        return {
            "mask": {"filters": {}, "zeros": {}} if self.mask is None else self.mask.state_dict(),
            "summaries": list(self._summaries),
            "done": self._done,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned and mask the model; a validation or test leaves an existing mask."""
        if self._fitting is False and self.mask is not None:
            return
        self._reset()
        self._summaries = state_dict["summaries"][-self.last_reports :]
        self._done = bool(state_dict["done"])
        if self._model is not None:
            self.mask = FilterMask.from_state_dict(self._model, state_dict["mask"])

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Find the `AnomalyFilterCallback`, begin anew, and refuse strategies that shard parameters."""
        super().setup(trainer, pl_module, stage)
        self._model = pl_module
        if stage == "fit":
            self._watcher: AnomalyFilterCallback = find_callback(trainer, AnomalyFilterCallback, "AnomalyPruneCallback")
            if _SHARDED.intersection(cls.__name__ for cls in type(trainer.strategy).__mro__):
                raise MisconfiguredTrainer(
                    "AnomalyPruneCallback should be used with a strategy that keeps whole parameters in each process, "
                    f"such as DDP. Found {type(trainer.strategy).__name__}, which shards them."
                )

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse layers that cannot be masked."""
        for name, layer in select_layers(pl_module, self._watcher.layers).items():
            if isinstance(layer, CONVOLUTIONS):
                conv_rows(name, layer, [0])
        if self.mask is None or self.mask.model is not pl_module:
            self.mask = FilterMask(pl_module)

    @guarded
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Mask the optimizers' state of a checkpoint, which is loaded by now."""
        if self.mask is not None:
            self.mask.keep(trainer.optimizers)

    @guarded
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Mask the filters that process 0 chooses, before an epoch's first step; the batch helps to find norms."""
        epoch = trainer.current_epoch
        if self.mask is None or self._done or batch_idx > 0 or epoch < self.at_epoch:
            return
        if len(self._summaries) < self.min_votes:
            self._guard.warn(
                "few reports",
                f"As epoch {epoch} begins, the number of reports is {len(self._summaries)}, fewer than `min_votes = "
                f"{self.min_votes}`. Filters are masked once there are enough.",
            )
            return
        # What process 0 finds counts, but all processes run their model, which may communicate.
        chosen, *_ = gather_results(lambda: self._choose_filters(pl_module))
        norms, *_ = gather_results(lambda: self._find_norms(trainer, pl_module, batch, chosen))
        if uncalled := sorted(chosen.keys() - norms.called):
            self._guard.warn(
                f"uncalled {uncalled}",
                f"The layers {uncalled} stay as they are: `forward` does not call them, so the norms behind them "
                "cannot be found.",
            )
        masked = {layer: filters for layer, filters in chosen.items() if layer in norms.called}
        for key, note in self.mask.add(masked, norms=norms, optimizers=trainer.optimizers).items():
            self._guard.warn(key, note)
        self._done = True
        listing = ", ".join(f"'{layer}' {sorted(filters)}" for layer, filters in masked.items())
        rank_zero_info(f"AnomalyPruneCallback masked before epoch {epoch}: {listing or 'no filter'}.")

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
    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Warn if masked filters are not at zero in the validated weights."""
        fitting = batch_idx == 0 and trainer.state.fn == "fit"
        if fitting and self.mask is not None and not self.mask.verify():
            self._guard.warn(
                "not at zero",
                "Masked filters are not at zero: something other than an optimizer writes to the weights, such as a "
                "callback that averages them.",
            )

    @guarded
    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the number of masked filters and their fraction of the parameters."""
        if trainer.sanity_checking:
            return
        values = self._values.measured = {"masked": 0.0, "masked_fraction": 0.0}
        # Outside of a fit, another model or other weights may be validated.
        if self.mask is not None and self.mask.model is pl_module and self.mask.verify():
            values["masked"] = float(sum(map(len, self.masked.values())))
            values["masked_fraction"] = self.mask.parameter_fraction
        self._values.log_values(trainer, pl_module)

    @guarded
    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Store a new report, which the `AnomalyFilterCallback` has by now, whatever the order of the callbacks."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        report, history = self._watcher.report, self._watcher.history
        if report is not None and history and history[-1]["clustered"]:  # neither repeated nor empty
            self._summaries = [*self._summaries, summarize_report(report)][-self.last_reports :]

    @guarded
    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Say if the run ended too early to mask any filter."""
        if not self._done and trainer.current_epoch <= self.at_epoch:
            rank_zero_info(f"AnomalyPruneCallback masked no filter: the run ended before `at_epoch = {self.at_epoch}`.")

    def _choose_filters(self, pl_module: Any) -> dict[str, list[int]]:
        """Choose the filters to mask, `{layer: [filter, ...]}`, worst first."""
        summaries, modules = self._summaries, modules_by_name(pl_module)
        chosen = choose_filters(summaries, self.masked, min_votes=self.min_votes, max_fraction=self.max_fraction)
        if skipped := [layer for layer in chosen if not isinstance(modules.get(layer), CONVOLUTIONS)]:
            self._guard.warn("skipped", f"Nothing is masked in {skipped}: they are not convolutions.")
            chosen = {layer: filters for layer, filters in chosen.items() if layer not in skipped}
        return chosen

    def _find_norms(self, trainer: Any, pl_module: Any, batch: Any, chosen: dict[str, list[int]]) -> FoundNorms:
        """Find the norms behind filters by `forward`, on a few samples of a batch."""
        masked, images = self.masked, first_tensor(batch)
        filters = {layer: [*masked.get(layer, ()), *chosen.get(layer, ())] for layer in {*masked, *chosen}}
        few = batch if images is None else images[:_SAMPLES]
        with trainer.precision_plugin.forward_context(), without_module_logging(pl_module):
            return find_norms(pl_module, filters, partial(call_model, pl_module, (few,)))
