"""Set filters to zero in place, and keep them there during training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_anomaly._internal.notes import warn_of
from lightning_anomaly.filters.anomaly_report import AnomalyReport
from lightning_anomaly.network.layers import CONVOLUTIONS, modules_by_name
from lightning_anomaly.pruning.norms import CHANNEL_NORMS, FoundNorms, call_model, find_norms


def mask_filters(
    model: nn.Module,
    filters: AnomalyReport | Mapping[str, Iterable[int]],
    *,
    example_input: Any = None,
    optimizers: Iterable[Optimizer] = (),
) -> FilterMask:
    """Set filters to zero in place, so that their output is exactly 0 in training and in evaluation.

    Weights and biases of the filters become 0, and so do those of the BatchNorm and InstanceNorm channels that depend
    on masked filters only: these would turn zeros into a constant. So does the optimizers' state of all these. Norms
    that mix channels are not changed, and a warning names them. Checkpoints of the model stay ordinary ones. During
    training, call the mask's `keep_gradients` before and `keep` after every optimizer step.

    Args:
        model: The model, changed in place.
        filters: `{layer: [filter, ...]}` with names as in `model.named_modules()`, or a report, whose anomaly filters
            are masked.
        example_input: Input to call the model with, on its device, to find the norms that follow the filters; a tuple
            for several arguments. Models without normalization layers need none.
        optimizers: Optimizers of the model's parameters.

    Returns:
        The mask, which keeps the filters at zero.

    Raises:
        TypeError: If `model` or `filters` has a wrong type.
        ValueError: If a layer or filter does not exist, a whole layer would be masked, a layer has a parametrized
            weight, or the call with `example_input` does not reach a layer.

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
    warn_of(mask.add(filters, example_input=example_input, optimizers=optimizers))
    return mask


class FilterMask:
    """The masked filters of a model, made by `mask_filters` or `FilterMask.from_state_dict`.

    Args:
        model: The model; also an attribute. Nothing is masked before `add`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._filters: dict[str, list[int]] = {}
        self._zeros: dict[str, list[int]] = {}  # `{norm: [channel, ...]}`
        self._rows: list[FilterRows] = []

    @property
    def masked(self) -> dict[str, list[int]]:
        """The masked filters, `{layer: [filter, ...]}`, ascending."""
        return {layer: list(filters) for layer, filters in self._filters.items()}

    @property
    def parameter_fraction(self) -> float:
        """Fraction of the model's parameters that belong to masked filters and the norm channels behind them."""
        masked = sum(rows.read().numel() for rows in self._rows if isinstance(rows.tensor, nn.Parameter))
        return masked / max(1, sum(parameter.numel() for parameter in self.model.parameters()))

    def add(
        self,
        filters: AnomalyReport | Mapping[str, Iterable[int]],
        *,
        example_input: Any = None,
        norms: FoundNorms | None = None,
        optimizers: Iterable[Optimizer] = (),
    ) -> dict[str, str]:
        """Mask more filters, and note what may surprise; arguments and errors are those of `mask_filters`.

        `norms`, the result of `find_norms` for these filters and those masked before, replaces `example_input`.
        """
        modules = modules_by_name(self.model)
        filters = filters.anomaly_filters if isinstance(filters, AnomalyReport) else filters
        if not isinstance(filters, Mapping):
            raise TypeError(
                "Parameter `filters` should be an AnomalyReport or a mapping from layer names to filters. Found "
                f"{type(filters).__name__}."
            )
        new = {layer: self._filters_to_mask(modules, layer, indices) for layer, indices in filters.items()}
        new = {layer: indices for layer, indices in new.items() if indices}
        masked = self._filters | {layer: sorted([*self._filters.get(layer, ()), *new[layer]]) for layer in new}
        if norms is None:
            norms = find_norms(self.model, masked if new else {}, partial(call_model, self.model, example_input))
            if uncalled := [layer for layer in new if layer not in norms.called]:
                raise ValueError(
                    "Parameter `example_input` should make the model call the layers to mask. Found no call of "
                    f"{uncalled}."
                )
        rows = [row for layer, indices in new.items() for row in conv_rows(layer, modules[layer], indices)]
        zeros = dict(self._zeros)
        for norm, channels in norms.channels.items():
            if fresh := sorted({*channels} - {*zeros.get(norm, ())}):
                zeros[norm] = sorted([*zeros.get(norm, ()), *fresh])
                rows += norm_rows(modules[norm], fresh)
        # All errors have been raised above, before the model changes.
        self._filters, self._zeros, self._rows = masked, zeros, self._rows + rows
        self.keep(optimizers)
        notes = {}
        if mixing := [f"'{norm}' ({type(modules[norm]).__name__})" for norm in norms.mixing]:
            notes["mixing"] = (
                f"Masked filters feed normalization layers that mix channels: {', '.join(mixing)}. Their output is 0 "
                "before these layers but not after them, and the output of other filters may change there."
            )
        if tied := [f"'{layer}' with {names}" for layer in new if (names := _tied_layers(modules, layer, masked))]:
            notes["tied"] = (
                f"Masked layers share parameters: {', '.join(tied)}. These are zero in both, though the output of the "
                "others may be a constant."
            )
        return notes

    def keep_gradients(self) -> None:
        """Zero the gradients of masked filters. Call it before gradients are clipped and the optimizer steps."""
        for rows in self._rows:
            if rows.tensor.grad is not None:
                rows.zero(rows.tensor.grad)

    def keep(self, optimizers: Iterable[Optimizer] = ()) -> None:
        """Zero the masked filters again. Call it after every optimizer step.

        Zero gradients are not enough: momentum, weight decay and Adam's averages also move a parameter.

        Args:
            optimizers: Optimizers of the model's parameters. Tensors in their state that have a parameter's shape are
                zeroed like the parameter; step counts and factored averages are not.
        """
        optimizers = list(optimizers)
        for rows in self._rows:
            rows.zero(rows.tensor)
            for optimizer in optimizers:
                for value in optimizer.state.get(rows.tensor, {}).values():
                    if isinstance(value, Tensor) and value.shape == rows.tensor.shape:
                        rows.zero(value)

    def verify(self) -> bool:
        """Check whether all masked filters are zero."""
        return not any(bool(rows.read().any()) for rows in self._rows)

    def state_dict(self) -> dict[str, dict[str, list[int]]]:
        """Return the mask as plain values: `{"filters": {layer: [filter, ...]}, "zeros": {norm: [channel, ...]}}`."""
        return {"filters": self.masked, "zeros": {norm: list(channels) for norm, channels in self._zeros.items()}}

    @classmethod
    def from_state_dict(cls, model: nn.Module, state: Mapping[str, Any]) -> FilterMask:
        """Mask the same filters and norm channels in another instance, copy or average of a masked model.

        Args:
            model: The model to mask, changed in place.
            state: The result of `state_dict`.

        Raises:
            ValueError: If the model does not have the layers in the state.
        """
        mask, modules = cls(model), modules_by_name(model)
        zeros = state["zeros"]
        if unknown := [norm for norm in zeros if not isinstance(modules.get(norm), CHANNEL_NORMS)]:
            raise ValueError(f"Parameter `state` should name norms of the model. Found {unknown}.")
        mask.add(state["filters"], norms=FoundNorms(zeros, [], set()))
        return mask

    def _filters_to_mask(self, modules: Mapping[str, nn.Module], layer: str, indices: Iterable[int]) -> list[int]:
        """Return the filters of a layer that are not masked yet, ascending; raise ValueError for wrong ones."""
        module = modules.get(layer)
        if not isinstance(module, CONVOLUTIONS):
            convs = [name for name, module in modules.items() if isinstance(module, CONVOLUTIONS)]
            raise ValueError(f"Parameter `filters` should name convolutions of the model, {convs}. Found '{layer}'.")
        count, indices = module.out_channels, list(indices)
        if wrong := [index for index in indices if isinstance(index, bool) or index not in range(count)]:
            raise ValueError(
                f"Parameter `filters` should hold integers from 0 to {count - 1} for layer '{layer}'. Found {wrong}."
            )
        before = set(self._filters.get(layer, ()))
        after = before | {int(index) for index in indices}
        if len(after) == count:
            raise ValueError(
                f"Parameter `filters` should leave at least one of the {count} filters of layer '{layer}' unmasked. "
                f"Found {len(indices)} to mask and {len(before)} masked before."
            )
        return sorted(after - before)


def _tied_layers(modules: Mapping[str, nn.Module], layer: str, masked: Mapping[str, list[int]]) -> list[str]:
    """Return the modules that have a parameter of a layer, but for those whose same filters are masked."""
    own = {id(parameter) for parameter in modules[layer].parameters(recurse=False)}
    shares = {name: own & {*map(id, module.parameters(recurse=False))} for name, module in modules.items()}
    return [name for name, ids in shares.items() if ids and masked.get(name) != masked[layer]]


@dataclass
class FilterRows:
    """The rows of one tensor that belong to some filters of a layer."""

    owner: nn.Module
    name: str  # of the tensor in `owner`
    index: tuple[Tensor, ...]  # of the rows, one entry per indexed axis

    @property
    def tensor(self) -> Tensor:
        """The whole tensor, looked up each time because `load_state_dict(assign=True)` replaces it."""
        tensor: Tensor = getattr(self.owner, self.name)
        return tensor

    def read(self) -> Tensor:
        """Copy the rows."""
        return self.tensor.detach()[self._index_on(self.tensor.device)]

    @torch.no_grad()
    def zero(self, like: Tensor) -> None:
        """Zero the rows of the tensor, or of one of its shape, such as its gradient."""
        like[self._index_on(like.device)] = 0.0

    def _index_on(self, device: torch.device) -> tuple[Tensor, ...]:
        if self.index[0].device != device:
            self.index = tuple(part.to(device) for part in self.index)
        return self.index


def conv_rows(layer: str, conv: Any, filters: list[int]) -> list[FilterRows]:
    """Find the rows of weight and bias of some filters; raise ValueError if these are no plain parameters."""
    if not all(isinstance(part, nn.Parameter) for part in (conv.weight, conv.bias) if part is not None):
        raise ValueError(
            "Parameter `filters` should name layers with a plain weight and bias, not with parametrized ones. Found "
            f"'{layer}' with {[name for name, _ in conv.named_parameters()]}."
        )
    channels = torch.tensor(filters, device="cpu")
    index: tuple[Tensor, ...] = (channels,)
    if conv.transposed:
        # The weight is (inputs, outputs per group, ...): a filter is one column of its group's inputs.
        inputs, outputs = conv.in_channels // conv.groups, conv.out_channels // conv.groups
        group, column = channels // outputs, channels % outputs
        index = (group[:, None] * inputs + torch.arange(inputs, device="cpu"), column[:, None])
    rows = [FilterRows(conv, "weight", index)]
    if conv.bias is not None:
        rows.append(FilterRows(conv, "bias", (channels,)))
    return rows


def norm_rows(norm: Any, channels: list[int]) -> list[FilterRows]:
    """Find the rows of weight and bias of some channels of a BatchNorm or InstanceNorm."""
    index = (torch.tensor(channels, device="cpu"),)
    # Without a weight the output in evaluation is (0 - running mean) / std, so the running mean has to be 0.
    parts = ("running_mean",) if norm.weight is None else ("weight", "bias")
    return [FilterRows(norm, part, index) for part in parts if getattr(norm, part) is not None]
