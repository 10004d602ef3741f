"""Filters set to zero in place, and kept there while training goes on."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_anomaly.capture.layers import CONVOLUTIONS, modules_by_name
from lightning_anomaly.pruning.filter_rows import CHANNEL_NORMS, Rows, conv_rows, norm_rows, zero_rows
from lightning_anomaly.pruning.norms import FoundNorms, call_model, find_norms, has_norms
from lightning_anomaly.report import AnomalyReport


def mask_filters(
    model: nn.Module,
    filters: AnomalyReport | Mapping[str, Iterable[int]],
    *,
    example_input: Any = None,
    optimizers: Iterable[Optimizer] = (),
) -> FilterMask:
    """Set filters to zero in place, so that their output is exactly 0 in training and in evaluation.

    Zeroed are the filter's weight and bias, the channels of BatchNorm and InstanceNorm behind it, which would turn its
    zeros into a constant, and the rows of all these in the optimizers' state. Behind it is what depends on masked
    filters alone: through activations, pooling, concatenation, grouped convolutions and other such norms, but not in a
    sum with a filter that is not masked. A norm that mixes channels stays as it is: there is a warning. A norm without
    weight gets a running mean of 0 instead: the statistics of a map of zeros, which training leaves as they are.

    Nothing is renamed, hooked or registered, so a checkpoint of the model is an ordinary one.

    While training goes on, call the mask's `keep_gradients` before and `keep` after every optimizer step.

    Args:
        model: The model, changed in place.
        filters: `{layer: [filter, ...]}`, layers by their name in `model.named_modules()`; a report stands for its
            anomaly filters.
        example_input: What to call the model with, on its device, to find the norms behind the filters; a tuple for
            several arguments. A model without normalization layers needs none.
        optimizers: Optimizers whose state belongs to the masked filters.

    Returns:
        The mask, which keeps, reports and restores.

    Raises:
        ValueError: A layer or filter does not exist, a whole layer would be masked, a layer's parameters cannot be
            masked (a parametrization other than weight_norm per filter), or the pass with `example_input` does not call
            it.

    Examples:
        >>> import torch
        >>> conv = nn.Conv2d(3, 8, 3)
        >>> mask = mask_filters(conv, {"": [2, 5]})
        >>> mask.masked, mask.parameter_fraction
        ({'': [2, 5]}, 0.25)
        >>> conv(torch.ones(1, 3, 4, 4))[0, 2].count_nonzero().item()
        0
    """
    mask = FilterMask(model)
    mask.add(filters, example_input=example_input, optimizers=optimizers)
    return mask


class FilterMask:
    """The filters that are masked in a model, made by `mask_filters` or `FilterMask.from_state_dict`.

    Args:
        model: The model; nothing is masked yet.

    Attributes:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._filters: dict[str, list[int]] = {}
        self._zeros: dict[str, list[int]] = {}  # the norm channels behind them
        self._rows: list[Rows] = []

    @property
    def masked(self) -> dict[str, list[int]]:
        """`{layer: [filter, ...]}`, ascending."""
        return {layer: list(filters) for layer, filters in self._filters.items()}

    @property
    def parameter_count(self) -> int:
        """How many parameters the masked filters have, those of their normalization layers included."""
        return sum(rows.read().numel() for rows in self._rows if isinstance(rows.tensor, nn.Parameter))

    @property
    def parameter_fraction(self) -> float:
        """`parameter_count` as a fraction of all parameters of the model."""
        return self.parameter_count / sum(p.numel() for p in self.model.parameters()) if self._rows else 0.0

    def add(
        self,
        filters: AnomalyReport | Mapping[str, Iterable[int]],
        *,
        example_input: Any = None,
        norms: FoundNorms | None = None,
        optimizers: Iterable[Optimizer] = (),
    ) -> None:
        """Mask more filters; those that are masked already stay so.

        Args:
            filters: As in `mask_filters`.
            example_input: As in `mask_filters`.
            norms: Instead of `example_input`: what `find_norms` found for these filters and those masked before.
            optimizers: As in `mask_filters`.

        Raises:
            ValueError: As in `mask_filters`.
        """
        modules = modules_by_name(self.model)
        filters = filters.anomaly_filters if isinstance(filters, AnomalyReport) else filters
        optimizers = list(optimizers)
        new = {layer: self._check(modules, layer, indices) for layer, indices in filters.items()}
        new = {layer: indices for layer, indices in new.items() if indices}
        masked = self.masked | {layer: sorted([*self._filters.get(layer, ()), *new[layer]]) for layer in new}
        norms = self._find_norms(new, masked, example_input) if norms is None else norms
        zeros = {norm: sorted({*self._zeros.get(norm, ()), *channels}) for norm, channels in norms.channels.items()}
        rows: list[Rows] = []
        for layer, indices in new.items():
            rows += conv_rows(layer, modules[layer], indices)
        for norm, channels in zeros.items():
            fresh = sorted({*channels} - {*self._zeros.get(norm, ())})
            rows += norm_rows(modules[norm], fresh) if fresh else []
        # Everything is checked by now: the model is either masked as asked or not touched.
        for added in rows:
            added.saved = added.read()
        self._filters, self._zeros = masked, self._zeros | zeros
        self._rows += rows
        self.keep(optimizers)
        mixing = [f"'{norm}' ({type(modules[norm]).__name__})" for norm in norms.mixing]
        if mixing:
            warnings.warn(
                f"Masked filters feed normalization layers that mix channels: {', '.join(mixing)}. Their output is "
                "exactly 0 before these layers, but not behind them, where that of other filters may change as well.",
                stacklevel=3,
            )

    def keep_gradients(self) -> None:
        """Zero the masked filters' gradients. Call it before gradients are clipped and the optimizer steps."""
        for rows in self._rows:
            rows.zero_gradient()

    def keep(self, optimizers: Iterable[Optimizer] = ()) -> None:
        """Zero the masked filters again. Call it after the optimizer has stepped.

        Gradients of zero are not enough: momentum, weight decay and Adam's averages move a parameter without any.

        Args:
            optimizers: Optimizers whose state belongs to the masked filters; in it every tensor of a parameter's shape
                is zeroed like the parameter, anything else (step counts, factored averages) is left alone.
        """
        states = [optimizer.state for optimizer in optimizers]
        for rows in self._rows:
            rows.zero()
            for state in states:
                rows.zero_state(state.get(rows.tensor, {}))

    def verify(self) -> bool:
        """Whether every masked filter is at zero right now."""
        return not any(rows.masked and bool(rows.read().any()) for rows in self._rows)

    def restore(self) -> None:
        """Put the values back that the filters had when they were masked, bit for bit, and end the mask.

        Parameters and running statistics come back; the optimizers' state of these filters starts from zero.

        Raises:
            RuntimeError: The mask was made from a state, which holds no values.
        """
        if any(rows.saved is None for rows in self._rows):
            raise RuntimeError("A mask made by `FilterMask.from_state_dict` has no values to restore.")
        # Backwards: where layers that were masked one after another share a tensor, the first one saw it unmasked.
        for rows in reversed(self._rows):
            rows.restore()
        self._rows, self._filters, self._zeros = [], {}, {}

    def state_dict(self) -> dict[str, dict[str, list[int]]]:
        """The mask in plain values: `{"filters": {layer: [filter, ...]}, "zeros": {norm: [channel, ...]}}`."""
        return {"filters": self.masked, "zeros": {norm: list(channels) for norm, channels in self._zeros.items()}}

    @classmethod
    def from_state_dict(cls, model: nn.Module, state: Mapping[str, Any]) -> FilterMask:
        """Mask a model, or a copy or an average of it, like the one whose mask gave the state.

        Args:
            model: A model with the same layers, changed in place.
            state: What `state_dict` gave.

        Returns:
            A mask that can do everything but `restore`.

        Raises:
            ValueError: The model does not have its layers.
        """
        mask, modules = cls(model), modules_by_name(model)
        zeros = state["zeros"] if "zeros" in state else _zeros_of_0_2(state["norms"], modules)
        unknown = [norm for norm in zeros if not isinstance(modules.get(norm), CHANNEL_NORMS)]
        if unknown:
            raise ValueError(f"Parameter `state` should name norms of the model. Found {unknown}.")
        mask.add(state["filters"], norms=FoundNorms(zeros, [], set()))
        for rows in mask._rows:
            rows.saved = None
        return mask

    def _find_norms(self, new: Mapping[str, Any], masked: Mapping[str, Any], example_input: Any) -> FoundNorms:
        """Run the model to find the norms behind its masked filters, if it has any norm."""
        if not new or not has_norms(self.model):
            return FoundNorms({}, [], set())
        if example_input is None:
            raise ValueError("Parameter `example_input` should be given for a model with norm layers. Found None.")
        norms = find_norms(self.model, masked, partial(call_model, self.model, example_input))
        uncalled = [layer for layer in new if layer not in norms.called]
        if uncalled:
            raise ValueError(
                f"Parameter `example_input` should make the model call the layers to mask. Found no call of {uncalled}."
            )
        return norms

    def _check(self, modules: Mapping[str, nn.Module], layer: str, indices: Iterable[int]) -> list[int]:
        """The filters of a layer that are not masked yet, ascending, or an error."""
        module = modules.get(layer)
        if not isinstance(module, CONVOLUTIONS):
            convs = [name for name, module in modules.items() if isinstance(module, CONVOLUTIONS)]
            raise ValueError(f"Parameter `filters` should name convolutions of the model, {convs}. Found '{layer}'.")
        count, asked = module.out_channels, list(indices)
        wrong = [index for index in asked if isinstance(index, bool) or index not in range(count)]
        if wrong:
            raise ValueError(
                f"Parameter `filters` should hold integers from 0 to {count - 1} for layer '{layer}'. Found {wrong}."
            )
        before = set(self._filters.get(layer, ()))
        after = before | {int(index) for index in asked}
        if len(after) == count:
            raise ValueError(
                f"Parameter `filters` should leave at least one filter of layer '{layer}' unmasked. "
                f"Found {len(asked)} to mask and {len(before)} masked before, of the {count} it has."
            )
        return sorted(after - before)


def _zeros_of_0_2(norms: Mapping[str, Any], modules: Mapping[str, Any]) -> dict[str, list[int]]:
    """The masked channels of a model from a checkpoint of version 0.2, which named the norms but not their channels."""
    names = {fed if isinstance(fed, str) else fed[0] for feds in norms.values() for fed in feds}
    zeros = {name: zero_rows(modules[name]) for name in names if isinstance(modules.get(name), CHANNEL_NORMS)}
    return {name: zero.nonzero()[:, 0].tolist() for name, zero in zeros.items()}
