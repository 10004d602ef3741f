"""Compare what a network makes of training images and of validation images: its output and its filters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_anomaly.capture.hooks import MapCapture
from lightning_anomaly.capture.layers import linear_layers, select_layers, unseen_layers
from lightning_anomaly.capture.maps import LayerMaps
from lightning_anomaly.capture.probe import Inputs, open_inputs, run, usable_layers
from lightning_anomaly.checks import check_fraction
from lightning_anomaly.images.source import ImageSource, tensors_in
from lightning_anomaly.notes import nonfinite, warn_of
from lightning_anomaly.tables import listed
from lightning_anomaly.two_sample.confidence import ExpectedErrors, compare_confidences, mean_error
from lightning_anomaly.two_sample.rank_test import (
    DIVISIONS,
    MIN_SAMPLES,
    live_filters,
    random_divisions,
    rank_test,
    shares_of_chance,
)
from lightning_anomaly.two_sample.report import LayerComparison, TwoSampleReport

_VALUES = 2**21  # tested in one operation: 16 MB, of which there are a few copies


def two_sample_test(
    model: nn.Module,
    train_inputs: Any,
    val_inputs: Any,
    *,
    layers: Iterable[str] | None = None,
    significance: float = 0.01,
    batch_size: int | None = None,
) -> TwoSampleReport:
    """Find out whether a network knows its training images: by its output, and by which filters.

    The output says *whether*: a network that overfits is surer of training images, by its largest softmax probability.
    `confidence_auc` is 0.5 where it treats both alike. Its p-value depends on the number of images; the area does not.

    The filters say *where*. As long as a network treats both alike, `significance` of its filters are found by chance;
    a share well above it says that convolutions have learnt the training images themselves, and in which layers.
    Filters of a network see the same images, so false alarms come together: most draws of images give none, a few give
    10%. The report's `p_value` allows for that: it compares the share with those of random divisions of the same
    images. What is compared is a filter's largest rectified value on an image: of a convolution with a
    BatchNorm behind it, name the BatchNorm in `layers`. The units of linear layers with outputs `(N, F)` are judged in
    the same way, for `where`.

    **Give training images as validation sees them, without augmentation**, and of both kinds as they come, drawn at
    random: whatever else sets the two apart is found as well. Filters show strong overfitting of convolutions, single
    units hardly any; see `docs/results/two_sample.md`.

    The model runs in evaluation mode without gradients; its flags, buffers and hooks and the global random state are
    afterwards as before, also after an exception.

    Args:
        model: Any model, on any device. Its output is compared if it is logits or probabilities `(N, C)`, or
            `(N, C, ...)`, of which the mean over the positions counts, one logit `(N,)` or `(N, 1)` of two classes, or
            a mapping with such `logits`; else a note says so. Numbers of another meaning, as of several labels at once,
            a regression or an embedding, are taken for logits, and their confidence says nothing.
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
    train = open_inputs(train_inputs, "train_inputs", batch_size)
    val = open_inputs(val_inputs, "val_inputs", batch_size)
    report = compare_groups(model, train, val, layers, significance)
    warn_of(report.notes)
    return report


def compare_groups(
    model: nn.Module,
    train_inputs: Inputs,
    val_inputs: Inputs,
    layers: Iterable[str] | None,
    significance: float,
) -> TwoSampleReport:
    """Do what `two_sample_test` does, without warnings."""
    significance = check_fraction("significance", significance, zero=False)
    check_groups(train_inputs, val_inputs)
    watched = select_layers(model, layers)
    linear = {name: layer for name, layer in linear_layers(model).items() if name not in watched}
    output = ExpectedErrors()
    train = _run(model, train_inputs, watched, linear, output)
    val = _run(model, val_inputs, watched, linear, ExpectedErrors(output.probabilities))
    notes = unseen_layers(model, layers) | train.notes | val.notes
    n_train, n_val = train.n_samples, val.n_samples
    chance = torch.zeros(DIVISIONS, dtype=torch.int64, device="cpu")
    if min(n_train, n_val) < MIN_SAMPLES:
        notes["few images"] = (
            f"The {n_train} training and {n_val} validation images in `train_inputs` and `val_inputs` are too few for "
            f"a rank test: give at least {MIN_SAMPLES} of each, better 1,000."
        )
        return TwoSampleReport({}, n_train, n_val, significance, chance.double(), notes)
    actual = torch.arange(n_train + n_val, device="cpu")[:, None] < n_train
    divisions = torch.cat([actual, random_divisions(n_train, n_train + n_val)], 1)
    compared: dict[str, _Compared] = {}
    finite = 0
    for name in [name for name in train.maps if name in val.maps]:
        values = torch.cat([group.maps[name].maps.T for group in (train, val)], 1).cpu()
        compared[name] = _compare(values, divisions, significance)
        if name in linear:
            continue
        chance += compared[name].found[1:]
        unknown = int((~values.isfinite().all(1)).sum())
        finite += len(values) - unknown
        if unknown:
            notes |= nonfinite(name, unknown, len(values), "and are not compared")
    every = _judge(compared)
    filters, units = (
        {name: layer for name, layer in every.items() if (name in linear) is kind} for kind in (False, True)
    )
    live = sum(int(layer.live.sum()) for layer in filters.values())
    if finite and not live:
        notes["none live"] = (
            f"None of the {finite} filters responds to enough of the {n_train} training and {n_val} validation images "
            "to be judged: give more images, or other `layers`."
        )
    report = TwoSampleReport(filters, n_train, n_val, significance, chance.double() / max(1, live), notes, units=units)
    if train.errors is None or val.errors is None:
        return report
    area, gap, p_value = compare_confidences(-train.errors, -val.errors)
    return replace(
        report,
        confidence_auc=area,
        confidence_gap=gap,
        confidence_error_ratio=mean_error(val.errors) / mean_error(train.errors),
        confidence_p_value=p_value,
        train_errors=train.errors,
        val_errors=val.errors,
    )


def check_groups(train_inputs: Inputs, val_inputs: Inputs) -> None:
    """Raise ValueError for inputs of different shapes."""
    shapes, others = (
        [inputs.shape] if isinstance(inputs, ImageSource) else [tuple(part.shape[1:]) for part in tensors_in(inputs)]
        for inputs in (train_inputs, val_inputs)
    )
    if {*shapes} != {*others}:  # the largest of more values is larger
        raise ValueError(
            "Parameters `train_inputs` and `val_inputs` should hold images of the same shape. "
            f"Found {listed(shapes)} and {listed(others)}."
        )


class _Group(NamedTuple):
    """What a network makes of the images of one kind."""

    maps: dict[str, LayerMaps]  # the largest value of each filter's map, or that of each unit of linear layers `(n, F)`
    n_samples: int
    notes: dict[str, str]
    errors: Tensor | None  # see `ExpectedErrors.result`


def _run(
    model: nn.Module,
    inputs: Inputs,
    layers: dict[str, nn.Module],
    linear: dict[str, nn.Module],
    output: ExpectedErrors,
) -> _Group:
    """Run a network on the images of one kind, once."""
    capture = MapCapture({**layers, **linear}, summary=_largest)
    run(model, inputs, capture, take_output=output.update)
    source = inputs if isinstance(inputs, ImageSource) else None
    given = None if source is None else len(source.positions) - len(source.unreadable)
    filters, n_samples, notes = usable_layers({name: capture.maps[name] for name in layers}, given)
    notes |= {} if source is None else source.notes()
    n_samples = n_samples or len(output)  # where no layer tells
    usable, _, _ = usable_layers({name: capture.maps[name] for name in linear}, n_samples)
    units = {name: layer for name, layer in usable.items() if layer.size == ()}
    errors = output.result(n_samples)
    if errors is None:
        notes["output"] = f"The output is not compared: {output.problem}."
    return _Group({**filters, **units}, n_samples, notes, errors)


def _largest(maps: Tensor) -> Tensor:
    """The largest rectified value of each map: `(n, F, ...)` gives `(n, F)`."""
    return (maps.flatten(2).amax(2) if maps.ndim > 2 else maps).clamp(min=0)


class _Compared(NamedTuple):
    """One layer, by the actual division of the images and by random ones."""

    comparison: LayerComparison
    found: Tensor  # how many filters each division finds, the actual one first `(1 + 999,)`
    smallest: Tensor  # the smallest p-value of a filter in each


def _compare(values: Tensor, divisions: Tensor, significance: float) -> _Compared:
    """Test the filters of a layer by their values on all images `(F, n + m)`."""
    live = live_filters(values, int(divisions[:, 0].sum()))
    found = torch.zeros(divisions.shape[1], dtype=torch.int64, device=values.device)
    smallest = torch.ones(divisions.shape[1], dtype=torch.float64, device=values.device)
    area, p_value = (values.new_full(live.shape, value, dtype=torch.float64) for value in (0.5, 1.0))
    for batch in torch.split(live.nonzero()[:, 0], max(1, _VALUES // max(divisions.shape))):
        areas, p_values = rank_test(values[batch], divisions)
        area[batch], p_value[batch] = areas[:, 0], p_values[:, 0]
        found += (p_values <= significance).sum(0)
        smallest = torch.cat([smallest[None], p_values]).amin(0)
    return _Compared(LayerComparison(live, area, p_value), found, smallest)


def _judge(layers: Mapping[str, _Compared]) -> dict[str, LayerComparison]:
    """Compute the `share_p_value` of each layer, corrected for the number of layers."""
    if not layers:
        return {}
    comparisons, found, smallest = zip(*layers.values(), strict=True)
    shares = shares_of_chance(torch.stack(found), torch.stack(smallest))
    return {
        name: replace(layer, share_p_value=share)
        for name, layer, share in zip(layers, comparisons, shares, strict=True)
    }
