"""A mask on the module of a Trainer: where it finds the normalisation layers, and what has to be kept at zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from lightning_anomaly.callbacks._averages import mask_averages
from lightning_anomaly.capture.layers import modules_by_name
from lightning_anomaly.distributed import gather_results, rank_and_world
from lightning_anomaly.pruning.filter_rows import conv_rows
from lightning_anomaly.pruning.mask import FilterMask
from lightning_anomaly.pruning.norms import FlowObserver, NormFlow, is_norm, plain_norms

__all__ = ["TrainerMask", "check_maskable"]


class TrainerMask:
    """The mask of the module that a Trainer fits, from one fit to the next and through checkpoints.

    Args:
        warn: Takes a key and a message, which it says once for each key.

    Attributes:
        mask: The `FilterMask`; None before there is a model.
    """

    def __init__(self, warn: Callable[[str, str], None]) -> None:
        self.mask: FilterMask | None = None
        self._loaded: dict[str, Any] | None = None  # the mask's state, until there is a model to mask
        self._module: nn.Module | None = None  # while a Trainer works with it
        self._observer: FlowObserver | None = None
        self._flow = NormFlow({})
        self._warn = warn

    @property
    def masked(self) -> dict[str, list[int]]:
        """`{layer: [filter, ...]}`."""
        if self.mask is not None:
            return self.mask.masked
        return {} if self._loaded is None else dict(self._loaded["filters"])

    @property
    def count(self) -> int:
        """Number of masked filters."""
        return sum(map(len, self.masked.values()))

    @property
    def parameter_fraction(self) -> float:
        """Parameters of the masked filters as a fraction of all."""
        return 0.0 if self.mask is None else self.mask.parameter_fraction

    def state_dict(self) -> dict[str, Any]:
        """The mask and the flow, as plain values."""
        empty: dict[str, Any] = {"filters": {}, "norms": {}}
        return {
            "mask": self.mask.state_dict() if self.mask is not None else self._loaded or empty,
            "norms": plain_norms(self._flow.norms),
            "shared_norms": list(self._flow.shared),
            "lost_norms": {layer: list(norms) for layer, norms in self._flow.lost.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` gave: at once while a Trainer works with the model, else when the fit starts."""
        self.mask, self._loaded = None, state["mask"]
        # Checkpoints of before functions were followed have nothing on what was lost.
        self._flow = NormFlow(state["norms"], frozenset(state["shared_norms"]), state.get("lost_norms", {}))
        if self._module is not None:
            self._take_loaded(self._module)

    def _take_loaded(self, pl_module: Any) -> None:
        if self._loaded is not None:
            self.mask = FilterMask.from_state_dict(pl_module, self._loaded)
        self._loaded = None

    def meet(self, pl_module: Any) -> None:
        """Until `stop`, what a checkpoint had masked is masked in this model as soon as it is loaded."""
        self._module = pl_module

    def start(self, pl_module: Any) -> None:
        """Begins a fit: masks what a checkpoint, or an earlier fit of this model, had masked."""
        self.meet(pl_module)
        self._take_loaded(pl_module)
        if self.mask is None:
            self.mask = FilterMask(pl_module)
        elif not self.mask.verify():
            self._warn(
                "other weights",
                f"Other weights were loaded since AnomalyPruneCallback masked {self.count} filters of this model. It "
                "masks them again now: to begin without, give the Trainer a new one.",
            )
        self._observer = FlowObserver(pl_module)

    def holds_in(self, pl_module: Any) -> bool:
        """Whether it is this model that is masked, right now."""
        return self.mask is not None and self.mask.model is pl_module and self.mask.verify()

    def stop(self) -> None:
        """Ends what a Trainer does with the model; a second call does nothing."""
        self.after_batch()
        self._module = self._observer = None

    def before_batch(self) -> None:
        """Hooks the model for a validation step, to see which normalisation is behind which convolution."""
        if self._observer is not None:
            self._observer.attach()

    def after_batch(self) -> None:
        """Takes the hooks off again; a second call does nothing."""
        if self._observer is not None:
            self._observer.remove()
            flow = self._observer.flow
            self._flow = flow if flow.norms else self._flow

    def add(self, trainer: Any, pl_module: Any, choose: Callable[[], dict[str, list[int]]]) -> dict[str, list[int]]:
        """Masks filters, in all processes.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
            choose: Gives `{layer: [filter, ...]}`, in process 0 for all.

        Returns:
            What of it was masked; there is a warning for every layer that could not be.
        """
        assert self.mask is not None
        chosen = gather_results(lambda: choose() if rank_and_world()[0] == 0 else {})[0]
        # The flow is the same in all as well, of the first that has one: some may have seen no batch, or an empty one.
        flows = gather_results(lambda: self._flow) if trainer.world_size > 1 else [self._flow]
        flow = next((flow for flow in flows if flow.norms), self._flow)
        has_norms = any(is_norm(module) for module in modules_by_name(pl_module).values())
        masked = self._add(trainer, chosen, flow if has_norms else None) if chosen else {}
        self.keep_everywhere(trainer, pl_module)
        return masked

    def _add(self, trainer: Any, chosen: dict[str, list[int]], flow: NormFlow | None) -> dict[str, list[int]]:
        assert self.mask is not None
        try:
            self.mask.add(chosen, flow=flow, optimizers=trainer.optimizers)  # all at once: at most one warning
            return chosen
        except ValueError as error:
            if len(chosen) > 1:
                parts = [self._add(trainer, {layer: filters}, flow) for layer, filters in chosen.items()]
                return {layer: filters for part in parts for layer, filters in part.items()}
            message = f"AnomalyPruneCallback leaves layer '{next(iter(chosen))}' as it is. {error}"
            self._warn(message, message)
            return {}

    def keep_gradients(self) -> None:
        """Zeroes the gradients of the masked filters."""
        if self.mask is not None:
            self.mask.keep_gradients()

    def keep(self, trainer: Any) -> None:
        """Zeroes the masked filters again, and their part of the optimizers' state."""
        if self.mask is not None:
            self.mask.keep(trainer.optimizers)

    def keep_everywhere(self, trainer: Any, pl_module: Any) -> None:
        """The same, and in averages of the weights."""
        if self.mask is not None and self.mask.masked:
            self.mask.keep(trainer.optimizers)
            for problem in mask_averages(self.mask, trainer, pl_module):
                self._warn(problem, problem)

    def check(self, when: str) -> None:
        """Warns if masked filters are not at zero."""
        if self.mask is not None and not self.mask.verify():
            self._warn(
                f"not at zero {when}",
                f"Masked filters were not at zero {when}: something other than an optimizer writes to the weights, "
                "such as a callback that averages them.",
            )


def check_maskable(layers: Mapping[str, nn.Module]) -> None:
    """Finds out when a fit begins what could not be masked, rather than in the middle of it.

    Raises:
        ValueError: If the weight of one of the layers is made from others in a way that cannot be masked.
    """
    for name, module in layers.items():
        if isinstance(module, _ConvNd) and not any(map(is_lazy, module.parameters(recurse=False))):
            try:
                conv_rows(name, module, [0])
            except ValueError as error:
                raise ValueError(
                    f"{error} AnomalyPruneCallback cannot mask it: name the other layers in `layers` of an "
                    "AnomalyFilterCallback."
                ) from error
