"""Filters set to zero in place, and kept there while training goes on."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lightning_anomaly.capture.layers import modules_by_name
from lightning_anomaly.pruning.filter_rows import Rows, conv_rows, norm_rows
from lightning_anomaly.pruning.norms import Fed, NormFlow, fed_name, is_norm, observe_flow, passes_zeros, plain_norms
from lightning_anomaly.pruning.spread import spread_zeros
from lightning_anomaly.report import AnomalyReport

# Whether the way to a norm that is left alone was followed: what there is to say.
_WARNINGS = {
    True: "Masked filters feed normalisation layers that depend on other channels or inputs too: {}. Their output is "
    "exactly 0 before these layers, but this is not promised after them, where the outputs of other filters may change "
    "as well.",
    False: "Masked filters feed normalisation layers behind operations that could not be followed: {}. These are left "
    "as they are, and what they make of the filters may be a constant other than 0.",
}


def mask_filters(
    model: nn.Module,
    filters: AnomalyReport | Mapping[str, Iterable[int]],
    *,
    flow: NormFlow | None = None,
    example_input: Any = None,
    optimizers: Iterable[Optimizer] = (),
) -> FilterMask:
    """Sets filters to zero in place, so that their output is exactly 0 in training and in evaluation.

    Zeroed are the filter's weight and bias, the channels of BatchNorm and InstanceNorm behind it, which would make a
    constant of its zeros, and the rows of all these in the optimizers' state. Behind it is what depends on masked
    filters alone: through activations, pooling, concatenation, convolutions of single channels and other such norms,
    but not in a sum with a filter that is not masked. A norm that mixes channels stays as it is, and so does one behind
    operations that cannot be followed: there is a warning. A norm without weight gets a running mean of 0 instead: the
    statistics of a map of zeros, which training leaves as they are.

    Nothing is renamed, hooked or registered, so a checkpoint of the model is an ordinary one. Masking is by parameter:
    a shared module or tied parameter is masked wherever it is used.

    While training goes on, call the mask's `keep_gradients` before and `keep` after every optimizer step.

    Args:
        model: The model, changed in place.
        filters: `{layer: [filter, ...]}`, layers by their name in `model.named_modules()`; a report stands for its
            anomaly filters.
        flow: Which normalisation layers are behind which convolutions, from a `FlowObserver`.
        example_input: Instead of `flow`: what to call the model with once to see it, a tuple for several arguments.
            Neither is needed by a model without normalisation layers.
        optimizers: Optimizers whose state belongs to the masked filters.

    Returns:
        The mask, which keeps, reports and restores.

    Raises:
        ValueError: An argument is of another kind, a layer or filter does not exist, a whole layer would be masked, a
            layer's parameters cannot be masked (a parametrization other than weight_norm per filter, a lazy layer), or
            its norm is not known.

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
    mask.add(filters, flow=flow, example_input=example_input, optimizers=optimizers)
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
        self._norms: dict[str, list[Fed]] = {}  # as in a `NormFlow`, those that may be masked
        self._zeros: dict[str, set[int]] = {}  # all that is 0 because of the filters
        self._rows: list[Rows] = []

    @property
    def masked(self) -> dict[str, list[int]]:
        """`{layer: [filter, ...]}`, ascending."""
        return {layer: list(filters) for layer, filters in self._filters.items()}

    @property
    def parameter_count(self) -> int:
        """How many parameters the masked filters have, those of their normalisation layers included."""
        # Keyed by tensor and row, so that tied parameters count once.
        sizes: dict[tuple[int, int], int] = {}
        for rows in self._rows:
            if isinstance(rows.tensor, nn.Parameter):
                size = rows.read().numel() // len(rows.filters)
                sizes |= {(id(rows.tensor), index): size for index in rows.filters}
        return sum(sizes.values())

    @property
    def parameter_fraction(self) -> float:
        """`parameter_count` as a fraction of all parameters of the model; lazy ones have no size yet."""
        sizes = [parameter.numel() for parameter in self.model.parameters() if not is_lazy(parameter)]
        return self.parameter_count / sum(sizes) if self._rows else 0.0

    def add(
        self,
        filters: AnomalyReport | Mapping[str, Iterable[int]],
        *,
        flow: NormFlow | None = None,
        example_input: Any = None,
        optimizers: Iterable[Optimizer] = (),
    ) -> None:
        """Masks more filters; those that are masked already stay so. Arguments and errors as in `mask_filters`."""
        modules = modules_by_name(self.model)
        filters = filters.anomaly_filters if isinstance(filters, AnomalyReport) else filters
        if not isinstance(filters, Mapping):
            raise ValueError(
                "Parameter `filters` should be `{layer: [filter, ...]}` or an AnomalyReport. "
                f"Found a {type(filters).__name__}."
            )
        optimizers = _as_list(optimizers)
        new = {layer: self._check(modules, layer, indices) for layer, indices in filters.items()}
        new = {layer: indices for layer, indices in new.items() if indices}
        flow = self._known_flow(modules, list(new), flow, example_input)
        masked = self.masked
        for layer, indices in new.items():
            masked[layer] = sorted([*masked.get(layer, []), *indices])
        zeros, ends = spread_zeros(flow, masked, modules)
        rows: list[Rows] = []
        for layer, indices in new.items():
            rows += conv_rows(layer, modules[layer], indices)
        for layer, channels in zeros.items():
            fresh = sorted(channels - self._zeros.get(layer, set()))
            if fresh and is_norm(modules[layer]):
                rows += norm_rows(layer, modules[layer], fresh)
        # Everything is checked by now: the model is either masked as asked or not touched.
        for added in rows:
            added.saved = added.read()
            added.zero()
        news = [end for end in ends if end.layer not in self._zeros]
        self._filters, self._zeros, self._norms = masked, zeros, _maskable(flow, modules)
        self._rows += rows
        self.keep(optimizers)
        for followed, message in _WARNINGS.items():
            names = [
                f"'{end.layer}' -> '{end.norm}' ({type(modules[end.norm]).__name__})"
                for end in news
                if end.followed is followed
            ]
            if names:
                warnings.warn(message.format(", ".join(names)), stacklevel=3)

    def keep_gradients(self) -> None:
        """Zeroes the masked filters' gradients. Call it before gradients are clipped and the optimizer steps."""
        for rows in self._rows:
            rows.zero_gradient()

    def keep(self, optimizers: Iterable[Optimizer] = ()) -> None:
        """Zeroes the masked filters again. Call it after the optimizer has stepped.

        Gradients of zero are not enough: momentum, weight decay and Adam's averages move a parameter without any.

        Args:
            optimizers: Optimizers whose state belongs to the masked filters; in it every floating-point tensor of a
                parameter's shape is zeroed like the parameter, anything else (step counts, factored averages, codes of
                8-bit optimizers) is left alone.
        """
        states = [optimizer.state for optimizer in _as_list(optimizers)]
        for rows in self._rows:
            rows.zero()
            for state in states:
                rows.zero_state(state.get(rows.tensor, {}))

    def verify(self) -> bool:
        """Whether every masked filter is at zero right now."""
        return all(rows.is_zero() for rows in self._rows)

    def restore(self) -> None:
        """Puts the values back that the filters had when they were masked, bit for bit, and ends the mask.

        Parameters and running statistics come back; the optimizers' state of these filters starts from zero.

        Raises:
            RuntimeError: The mask was made from a state, which holds no values.
        """
        if any(rows.saved is None for rows in self._rows):
            raise RuntimeError(
                "A mask made by `FilterMask.from_state_dict` cannot restore its filters: their values are not part of "
                "its state."
            )
        # Backwards: where two masked layers share a tensor, the first one saw it unmasked.
        for rows in reversed(self._rows):
            rows.restore()
        self._rows, self._filters, self._norms, self._zeros = [], {}, {}, {}

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """The mask in plain values: `{"filters": {layer: [filter, ...]}, "norms": {layer: [fed, ...]}}`.

        `norms` is that of a `NormFlow`, without the norms that are left alone.
        """
        return {"filters": self.masked, "norms": plain_norms(self._norms)}

    @classmethod
    def from_state_dict(cls, model: nn.Module, state: Mapping[str, Any]) -> FilterMask:
        """Masks a model, or a copy or an average of it, like the one whose mask gave the state.

        Args:
            model: A model with the same layers, changed in place.
            state: What `state_dict` gave.

        Returns:
            A mask that can do everything but `restore`.

        Raises:
            ValueError: The state is not one, or the model does not have its layers.
        """
        if set(state) != {"filters", "norms"} or not set(state["filters"]) <= set(state["norms"]):
            raise ValueError(
                f"Parameter `state` should be what `FilterMask.state_dict()` gave. Found `state = {state}`."
            )
        mask = cls(model)
        mask.add(state["filters"], flow=NormFlow(state["norms"]))
        for rows in mask._rows:
            rows.saved = None
        return mask

    def _check(self, modules: Mapping[str, nn.Module], layer: str, indices: Iterable[int]) -> list[int]:
        """The filters of a layer that are not masked yet, ascending, or an error."""
        module = modules.get(layer)
        if not isinstance(module, _ConvNd):
            found = f"'{layer}'" if module is None else f"'{layer}', a {type(module).__name__}"
            convs = [name for name, module in modules.items() if isinstance(module, _ConvNd)]
            raise ValueError(f"Parameter `filters` should name convolutions of the model, {convs}. Found {found}.")
        count = module.out_channels
        if not isinstance(indices, Iterable):
            raise ValueError(
                f"Parameter `filters` should hold a list of filters for layer '{layer}', such as [{indices!r}]. "
                f"Found {indices!r}."
            )
        asked = list(indices)
        for index in asked:
            if isinstance(index, bool) or not isinstance(index, Integral) or not 0 <= int(index) < count:
                raise ValueError(
                    f"Parameter `filters` should hold integers from 0 to {count - 1} for layer '{layer}'. "
                    f"Found {index!r}."
                )
        before = set(self._filters.get(layer, ()))
        after = before | {int(index) for index in asked}
        if len(after) == count:
            raise ValueError(
                f"Parameter `filters` should leave at least one filter of layer '{layer}' unmasked. "
                f"Found {len(asked)} to mask and {len(before)} masked before, of the {count} it has."
            )
        return sorted(after - before)

    def _known_flow(
        self, modules: Mapping[str, nn.Module], layers: list[str], flow: NormFlow | None, example_input: Any
    ) -> NormFlow:
        """What is known of the model by now, which is enough for the layers."""
        unseen = [layer for layer in layers if layer not in self._norms]
        if flow is None and unseen and any(is_norm(module) for module in modules.values()):
            if example_input is None:
                raise ValueError(
                    "Parameter `flow` or `example_input` should be given for a model with normalisation layers, which "
                    "may follow a masked layer. Found neither."
                )
            flow = observe_flow(self.model, example_input)
        flow = flow or NormFlow(dict.fromkeys(unseen, ()))
        for layer in unseen:
            if layer not in flow.norms:
                raise ValueError(
                    f"Parameter `flow` (or the pass with `example_input`) should have seen a call of layer '{layer}'. "
                    f"Found calls of {list(flow.norms)}."
                )
        before = {layer: feds for layer, feds in self._norms.items() if layer in modules}  # others are gone
        return NormFlow({**before, **flow.norms}, flow.shared, flow.lost)


def _as_list(optimizers: Iterable[Optimizer]) -> list[Optimizer]:
    if isinstance(optimizers, Optimizer):
        raise ValueError(
            f"Parameter `optimizers` should be a list of optimizers. Found a {type(optimizers).__name__}: give "
            "`[optimizer]`."
        )
    return list(optimizers)


def _maskable(flow: NormFlow, modules: Mapping[str, nn.Module]) -> dict[str, list[Fed]]:
    """The norms of a flow, without those that are left alone."""
    passing = {name for name, module in modules.items() if passes_zeros(module)}.difference(flow.shared)
    return {layer: [fed for fed in feds if fed_name(fed) in passing] for layer, feds in flow.norms.items()}
