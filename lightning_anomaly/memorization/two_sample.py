"""Test a finished model: do its output and its filters respond differently to training and to validation images?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_anomaly._internal.notes import nonfinite_note, warn_of
from lightning_anomaly.images.image_source import ImageSource
from lightning_anomaly.memorization.comparison import compare_outputs
from lightning_anomaly.memorization.memorization_report import LayerComparison, MemorizationReport
from lightning_anomaly.memorization.ranks import (
    DIVISIONS,
    MIN_SAMPLES,
    SIGNIFICANCE,
    layer_p_values,
    random_divisions,
    rank_test,
    responding_filters,
)
from lightning_anomaly.network.class_scores import Scores
from lightning_anomaly.network.layer_maps import MapCapture, usable_layers
from lightning_anomaly.network.layers import convolution_notes, find_logits_call, select_layers

_VALUES = 2**21  # values tested in one operation, of which a few copies exist: 16 MB each


def two_sample_test(
    model: nn.Module,
    train_inputs: Any,
    val_inputs: Any,
    *,
    layers: Iterable[str] | None = None,
    batch_size: int | None = None,
    logits_from: str | None = None,
) -> MemorizationReport:
    """Test whether a network treats its training images differently, by its output and by its filters.

    The output says *whether* it does: an overfitted network is more confident on training images, by its largest
    softmax probability. The filters say *where*, by their largest rectified value on each image: a filter counts if a
    rank test of it has a p-value of at most 1%. Chance gives 1% of the filters on average, and sometimes 10%: the
    report's `filter_p_value` allows for that. Only strong overfitting shows there, see `docs/results/two_sample.md`.

    **Give training images without augmentation, as validation sees them**, and draw both kinds at random: the test
    finds any other difference between them as well. The model runs as in `analyze`.

    Args:
        model: Any model, on any device. Its output is compared if it is logits or probabilities `(N, C)`, one logit or
            probability `(N,)` or `(N, 1)` of two classes, or a mapping with such `logits`. For outputs `(N, C, ...)`
            the mean over the positions counts. Anything else gives a note.
        train_inputs: Images that the model was trained on, like `inputs` of `analyze`.
        val_inputs: Images that it was not trained on. Give about 1,000 of each kind; fewer find less.
        layers: Names of the layers to compare; None takes every convolution. For a convolution followed by a BatchNorm,
            name the BatchNorm.
        batch_size: See `analyze`.
        logits_from: Name of a method or submodule that takes the images and returns logits, even if all lie in 0 to 1;
            None calls the model.

    Returns:
        The report. Its `notes` say what could not be compared and are also issued as warnings.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If a layer or what `logits_from` names does not exist, inputs hold no images or are of another type,
            or the two kinds differ in shape.

    Examples:
        >>> images = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> conv = nn.Conv2d(1, 2, 3)
        >>> _ = nn.init.ones_(conv.weight)
        >>> two_sample_test(conv, images[:100] + 1, images[100:]).filters
        {'': [0, 1]}
    """
    train = ImageSource(train_inputs, "train_inputs", batch_size)
    val = ImageSource(val_inputs, "val_inputs", batch_size)
    # The largest rectified value of each map `(n, F)`.
    capture = MapCapture(select_layers(model, layers), summary=lambda maps: maps[..., None].flatten(2).amax(2).relu())
    call, scores = find_logits_call(model, logits_from), Scores(reading=None if logits_from is None else "logits")
    report = compare_outputs(model, train, val, call, scores, capture=capture)
    n_train, n_val = report.n_train, report.n_val
    maps, _, unusable = usable_layers(capture.maps, n_train + n_val)
    notes, maps = convolution_notes(model, layers) | unusable, maps if min(n_train, n_val) >= MIN_SAMPLES else {}
    values = {name: layer.maps.T.cpu() for name, layer in maps.items()}
    compared, chance = _compare_filters(values, n_train, n_train + n_val)
    finite = {name: int(filters.isfinite().all(1).sum()) for name, filters in values.items()}
    for name, filters in values.items():
        if finite[name] < len(filters):
            notes |= nonfinite_note(name, len(filters) - finite[name], len(filters), "and are not compared")
    if any(finite.values()) and not any(layer.tested.any() for layer in compared.values()):
        notes["none tested"] = (
            f"None of the {sum(finite.values())} filters responds to enough of the {n_train} training and {n_val} "
            "validation images to be compared: give more images, or other `layers`."
        )
    report = replace(report, layers=compared, chance=chance, notes={**notes, **report.notes})
    warn_of(report.notes)
    return report


def _compare_filters(
    values: Mapping[str, Tensor], n_train: int, n_samples: int
) -> tuple[dict[str, LayerComparison], Tensor]:
    """Test the filters of each layer by their values on all images `(F, n_samples)`, training images first.

    Also return the fraction of the tested filters that is significant in each of 999 random divisions.
    """
    actual = torch.arange(n_samples, device="cpu")[:, None] < n_train
    divisions = torch.cat([actual, random_divisions(n_train, n_samples)], 1)
    tests: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    counts = torch.zeros(1 + DIVISIONS, dtype=torch.float64, device="cpu")
    deviations = counts.repeat(len(values), 1)
    for (name, filters), deviation in zip(values.items(), deviations, strict=True):
        tested = responding_filters(filters, n_train)
        area, p_value = (filters.new_full(tested.shape, value, dtype=torch.float64) for value in (0.5, 1.0))
        for batch in torch.split(tested.nonzero()[:, 0], max(1, _VALUES // max(divisions.shape))):
            areas, p_values = rank_test(filters[batch], divisions)
            area[batch], p_value[batch] = areas[:, 0], p_values[:, 0]
            counts += (p_values <= SIGNIFICANCE).sum(0)
            deviation += (areas - 0.5).square().sum(0)
        tests[name] = tested, area, p_value
    rows = zip(tests.items(), layer_p_values(deviations), strict=True)
    layers = {name: LayerComparison(*test, share_p_value=p_value) for (name, test), p_value in rows}
    return layers, counts[1:] / max(1, sum(int(layer.tested.sum()) for layer in layers.values()))
