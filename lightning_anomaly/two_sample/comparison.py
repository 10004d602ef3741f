"""Whether a network tells training images from validation images, by its output, and by which of its filters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_anomaly.capture.hooks import MapCapture
from lightning_anomaly.capture.layers import linear_layers, select_layers, unseen_layers
from lightning_anomaly.capture.maps import LayerMaps
from lightning_anomaly.capture.probe import check_inputs, run, usable_layers
from lightning_anomaly.checks import check_fraction, check_integer
from lightning_anomaly.notes import left_out, nonfinite, warn_of
from lightning_anomaly.two_sample.confidence import ExpectedErrors, compare_confidences, error_ratio
from lightning_anomaly.two_sample.rank_test import (
    DIVISIONS,
    enough_samples,
    live_filters,
    random_divisions,
    rank_test,
    samples_needed,
    samples_to_be_live,
    share_of_chance,
)
from lightning_anomaly.two_sample.report import LayerComparison, TwoSampleReport

__all__ = ["check_groups", "compare_groups", "two_sample_test"]

_TOGETHER = 512  # filters judged in one operation, with all divisions: 20 MB


def two_sample_test(
    model: nn.Module,
    train_inputs: Any,
    val_inputs: Any,
    *,
    layers: Iterable[str] | None = None,
    significance: float = 0.01,
    batch_size: int = 64,
) -> TwoSampleReport:
    """Find out whether a network knows its training images: by its output, and by which filters.

    The output says *whether*: a network that overfits is surer of training images, by its largest softmax probability.
    `confidence_auc` is 0.5 where it treats both alike. Its p-value depends on the number of images; the area does not.

    The filters say *where*. As long as a network treats both alike, `significance` of its filters are found by chance;
    a share well above it says that convolutions have learnt the training images themselves, and in which layers.
    Filters of a network see the same images, so by chance too they are found together: for most draws of images none,
    for a few a tenth of them. The report's `p_value` knows that: it compares the share with those of random divisions
    of the same images. What is compared is a filter's largest rectified value on an image: of a convolution with a
    BatchNorm behind it, name the BatchNorm in `layers`. The units of linear layers with outputs `(N, F)` are judged in
    the same way, for `where`.

    **Give training images as validation sees them, without augmentation**, and of both kinds as they come, drawn at
    random: whatever else sets the two apart is found as well. Filters show strong overfitting of convolutions, single
    units hardly any; see `docs/results/two_sample.md`.

    The model runs in evaluation mode without gradients; its flags, buffers and hooks and the global random state are
    afterwards as before, also after an exception.

    Args:
        model: Any model, on any device. Its output is compared if it is logits `(N, C)`, or `(N, C, ...)`, of which the
            mean over the positions counts; of another shape, a note says so. Numbers of another meaning, as of several
            labels at once, a regression or an embedding, are taken for logits, and their confidence says nothing.
        train_inputs: Images that it was trained on; as `inputs` of `analyze`.
        val_inputs: Images that it was not trained on, likewise. Give about 1,000 of each kind: fewer find less.
        layers: Names of the layers to compare; None takes every convolution. Linear layers are too, for `where`.
        significance: The p-value up to which a filter counts.
        batch_size: See `analyze`.

    Returns:
        The report. Whatever could not be compared is in its `notes`, which are also warnings.

    Raises:
        ValueError: If a layer does not exist, there are no images, they come in another way, those of one kind have
            another shape, or `significance` is not a number in (0, 1].

    Examples:
        >>> images = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> conv = nn.Conv2d(1, 2, 3)
        >>> _ = nn.init.ones_(conv.weight)
        >>> two_sample_test(conv, images[:100] + 1, images[100:]).filters
        {'': [0, 1]}
    """
    report = compare_groups(model, train_inputs, val_inputs, layers, significance, batch_size)
    warn_of(report.notes)
    return report


def compare_groups(
    model: nn.Module,
    train_inputs: Any,
    val_inputs: Any,
    layers: Iterable[str] | None,
    significance: float,
    batch_size: int,
) -> TwoSampleReport:
    """`two_sample_test`, for somebody else to warn of what could not be compared."""
    significance = check_fraction("significance", significance, zero=False)
    batch_size = check_integer("batch_size", batch_size, 1)
    check_groups(train_inputs, val_inputs)
    watched = select_layers(model, layers)
    linear = {name: layer for name, layer in linear_layers(model).items() if name not in watched}
    notes = unseen_layers(model, layers)
    train = _observe(model, train_inputs, watched, linear, batch_size)
    val = _observe(model, val_inputs, watched, linear, batch_size)
    notes |= train.notes | val.notes
    # For all batches alike: one image with a value that is no probability would change what is said of its batch.
    probabilities = train.expected.probabilities and val.expected.probabilities
    errors = [group.expected.of(group.n_samples, probabilities) for group in (train, val)]
    for problem in [group.expected.problem for group in (train, val) if group.expected.problem is not None]:
        notes["output"] = f"The output is not compared: {problem}."
    n_train, n_val = train.n_samples, val.n_samples
    # Where nothing can be judged there may be no sample either.
    judged = (train.filters and val.filters) or (train.units and val.units)
    divisions = (
        random_divisions(n_train, n_train + n_val)
        if judged
        else torch.zeros(0, DIVISIONS, dtype=torch.bool, device="cpu")
    )
    compared: dict[str, LayerComparison] = {}
    values: dict[str, Tensor] = {}
    by_chance = torch.zeros(DIVISIONS, dtype=torch.int64, device="cpu")
    for name in [name for name in train.filters if name in val.filters]:
        layer, other = train.filters[name], val.filters[name]
        if layer.size != other.size:  # the largest of more values is larger
            sizes_found = f"{layer.size} for training images and {other.size} for validation images"
            notes |= left_out(name, f"the size of its maps is {sizes_found}")
            continue
        values[name] = _values(layer, other)
        compared[name], of_layer = _compare(values[name], n_train, divisions, significance)
        by_chance += of_layer
        unknown = int((~values[name].isfinite().all(1)).sum())
        if unknown:
            notes |= nonfinite(name, unknown, len(values[name]), "and are not compared")
    live = sum(int(layer.live.sum()) for layer in compared.values())
    enough = enough_samples(n_train, n_val, significance)
    if (values or "output" not in notes) and not (live and enough):
        notes |= _too_few(list(values.values()), n_train, n_val, significance)
    units = {
        name: _compare(_values(train.units[name], val.units[name]), n_train, divisions, significance)[0]
        for name in train.units
        if name in val.units
    }
    share_by_chance = by_chance.double() / max(1, live)
    output = _confidence(*errors) if enough else {}
    return TwoSampleReport(compared, n_train, n_val, significance, share_by_chance, notes, units=units, **output)


def _confidence(train_errors: Tensor | None, val_errors: Tensor | None) -> dict[str, Any]:
    """What a report says of the output; nothing where it cannot be compared."""
    if train_errors is None or val_errors is None:
        return {}
    area, gap, p_value = compare_confidences(-train_errors, -val_errors)
    return {
        "confidence_auc": area,
        "confidence_gap": gap,
        "confidence_error_ratio": error_ratio(train_errors, val_errors),
        "confidence_p_value": p_value,
        "train_errors": train_errors,
        "val_errors": val_errors,
    }


@dataclass(frozen=True)
class _Group:
    """What a network says of the images of one kind.

    Attributes:
        filters: By layer, the largest value of each filter's map `(n, F)`.
        units: By linear layer, the value of each unit `(n, F)`.
        n_samples: Number of images, n.
        expected: What the output says of them.
        notes: What could not be used and why.
    """

    filters: dict[str, LayerMaps]
    units: dict[str, LayerMaps]
    n_samples: int
    expected: ExpectedErrors
    notes: dict[str, str]


def _observe(
    model: nn.Module, inputs: Any, layers: dict[str, nn.Module], linear: dict[str, nn.Module], batch_size: int
) -> _Group:
    """Run a network on the images of one kind, once."""
    capture, expected = MapCapture({**layers, **linear}, summary=_largest), ExpectedErrors()
    run(model, inputs, capture, batch_size=batch_size, take_output=expected.take)
    given = len(inputs) if isinstance(inputs, Tensor) else None
    filters, n_samples, notes = usable_layers({name: capture.maps[name] for name in layers}, given)
    n_samples = n_samples or len(expected)  # where no layer says how many
    fitting, _, _ = usable_layers({name: capture.maps[name] for name in linear}, n_samples)
    units = {name: layer for name, layer in fitting.items() if layer.size == ()}
    return _Group(filters, units, n_samples, expected, notes)


def check_groups(train_inputs: Any, val_inputs: Any) -> None:
    """Raises ValueError for what cannot be compared."""
    check_inputs(train_inputs, "train_inputs")
    check_inputs(val_inputs, "val_inputs")
    if isinstance(train_inputs, Tensor) and isinstance(val_inputs, Tensor):
        shapes = tuple(train_inputs.shape[1:]), tuple(val_inputs.shape[1:])
        if shapes[0] != shapes[1]:
            raise ValueError(
                "Parameters `train_inputs` and `val_inputs` should hold images of the same shape. "
                f"Found {shapes[0]} and {shapes[1]}."
            )


def _too_few(layers: list[Tensor], n_train: int, n_val: int, significance: float) -> dict[str, str]:
    """What is missing, of layers' values `(F, n_train + n_val)` that cannot tell, and how many images are enough."""
    if not enough_samples(n_train, n_val, significance):
        note = (
            f"Parameters `train_inputs` and `val_inputs` hold {n_train} and {n_val} images, too few for a rank test at "
            f"`significance = {significance}`: give at least {samples_needed(significance)} of each."
        )
        return {"few images": note}
    values = torch.cat([own[own.isfinite().all(1)] for own in layers]) if layers else torch.zeros(0, 1, device="cpu")
    if not len(values):
        return {}
    needed = samples_to_be_live(values)
    note = (
        f"None of the {len(values)} filters responds to enough of the {n_train} training and {n_val} validation images "
        "to be judged: "
    )
    return {"none live": note + ("name other `layers`." if needed is None else f"give at least {needed} of each.")}


def _largest(maps: Tensor) -> Tensor:
    """The largest rectified value of each map: `(n, F, ...)` gives `(n, F)`."""
    return (maps.flatten(2).amax(2) if maps.ndim > 2 else maps).clamp(min=0)


def _values(layer: LayerMaps, other: LayerMaps) -> Tensor:
    """The values of a layer's filters `(F, n + m)` on the CPU."""
    return torch.cat([layer.maps.T, other.maps.T], 1).cpu()


def _compare(values: Tensor, n_train: int, divisions: Tensor, significance: float) -> tuple[LayerComparison, Tensor]:
    """The filters of a layer from their values on all images `(F, n + m)`, the training images first.

    Returns:
        The comparison, and how many filters each random division finds `(999,)`.
    """
    live = live_filters(values, n_train)
    made = torch.arange(values.shape[1], device=values.device)[:, None] < n_train
    groups = torch.cat([made, divisions], 1)
    found = torch.zeros(groups.shape[1], dtype=torch.int64, device=values.device)
    smallest = torch.ones(groups.shape[1], dtype=torch.float64, device=values.device)
    area, p_value = (values.new_full(live.shape, value, dtype=torch.float64) for value in (0.5, 1.0))
    for some in torch.split(live.nonzero()[:, 0], _TOGETHER):
        areas, p_values = rank_test(values[some], groups)
        area[some], p_value[some] = areas[:, 0], p_values[:, 0]
        found += (p_values <= significance).sum(0)
        smallest = torch.minimum(smallest, p_values.amin(0)) if len(some) else smallest
    # Of as many filters the one with the smallest p-value decides: in a layer of one or two there is hardly more.
    evidence = found - smallest
    return LayerComparison(live, area, p_value, share_of_chance(evidence[0].item(), evidence[1:])), found[1:]
