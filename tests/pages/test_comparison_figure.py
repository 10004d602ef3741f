"""The figure of comparisons shows the given numbers in their places and is legible."""

import math
from typing import Any

import numpy as np
import pytest
from figures import assert_legible
from matplotlib.figure import Figure

from lightning_anomaly.pages.comparison_figure import comparison_figure


def entry(epoch: int, shares: dict[str, float], p_values: dict[str, float], **other: Any) -> dict[str, Any]:
    output = {"confidence_auc": 0.5 + epoch / 100, "confidence_p_value": 0.5 if epoch < 2 else 0.001}
    metrics = {**output, **{f"layer/{name}": share for name, share in shares.items()}}
    found: Any = {"epoch": epoch, "step": 10 * epoch, "metrics": metrics, "compares_output": True}
    return {**found, "share_p_values": p_values, **other}


def long(layers: int, validations: int, name: str = "layer4.{}.downsample.0") -> list[dict[str, Any]]:
    shares = {name.format(i): i / layers for i in range(layers)}
    return [entry(epoch, shares, dict.fromkeys(shares, 0.001)) for epoch in range(validations)]


def drawn(history: list[dict[str, Any]]) -> Figure:
    return comparison_figure(history, 0.005)


def cells(figure: Figure) -> np.ndarray:
    """The drawn shares `(layers, validations)`, NaN for none."""
    (mesh,) = figure.axes[1].collections
    return mesh.get_array().filled(np.nan)


HISTORY = [
    entry(0, {"a": 0.0, "b": 0.25, "c": 0.0}, {"a": 1.0, "b": 0.2}),
    entry(1, {"a": 0.0, "b": 0.5, "c": 0.1}, {"a": 0.001, "b": 0.005, "c": 0.006}),
    entry(2, {"a": 0.0, "b": 0.5, "c": 0.1}, {}, compares_output=False),
    entry(3, {"a": 0.125, "b": 0.75, "c": 1.0}, {"a": 0.3, "b": 0.001, "c": 0.002}),
]


def test_shares_above_chance_are_in_their_cells_and_others_are_0() -> None:
    figure, gap = drawn(HISTORY), math.nan
    np.testing.assert_array_equal(cells(figure), [[0, 0, gap, 0], [0, 0.5, gap, 0.75], [gap, 0, gap, 1]])
    edges = figure.axes[1].collections[0].get_coordinates()  # cells are centered on their validation and layer
    assert edges[0, :, 0].tolist() == [-0.5, 0.5, 1.5, 2.5, 3.5]
    assert edges[:, 0, 1].tolist() == [-0.5, 0.5, 1.5, 2.5]


def test_the_output_is_drawn_above_on_the_same_axis_with_its_p_values() -> None:
    whether, where, *_ = drawn(HISTORY).axes
    reference, curve = whether.get_lines()
    assert set(reference.get_ydata()) == {0.5}
    np.testing.assert_array_equal(curve.get_ydata(), [0.5, 0.51, math.nan, 0.53])
    shown = [np.asarray(points.get_offsets()) for points in whether.collections]
    shown = [[tuple(point) for point in points if not np.isnan(point).any()] for points in shown]
    assert shown == [[(0, 0.5), (1, 0.51)], [(3, 0.53)]]
    assert whether.get_xlim() == where.get_xlim() == (-0.5, 3.5)


def test_each_layer_is_labeled_with_its_name_and_its_last_share() -> None:
    whether, where, *bars = drawn(HISTORY).axes
    legend = [text.get_text() for text in whether.get_legend().get_texts()]
    assert [text[:8] for text in (*legend, *(bar.get_xlabel() for bar in bars))] == ["p > 0.00", *["p ≤ 0.00"] * 2]
    assert [label.get_text() for label in where.get_yticklabels()] == ["a", "b", "c"]
    assert where.get_ylabel() == ""  # as every layer is named
    last = [(text.get_text(), text.get_weight()) for text in where.texts]
    assert last == [("12%", "normal"), ("75%", "bold"), ("100%", "bold")]
    assert "hatched" in where.get_title()
    assert "hatched" not in drawn(HISTORY[1:2]).axes[1].get_title()
    assert [text.get_text() for text in drawn(HISTORY[:3]).axes[1].texts] == ["-"] * 3


@pytest.mark.parametrize(
    ("epochs", "label", "numbers"),
    [
        ([4, 9, 14], "epoch", ["4", "9", "14"]),
        ([*range(10)], "epoch", [*"0123456789"]),
        ([0, 0, 1], "step", ["7", "14", "21"]),
    ],
)
def test_validations_are_numbered_by_epoch_or_by_step(epochs: list[int], label: str, numbers: list[str]) -> None:
    history = [entry(epoch, {"a": 0.0}, {"a": 1.0}, step=7 * place + 7) for place, epoch in enumerate(epochs)]
    where = drawn(history).axes[1]
    assert where.get_xlabel() == label
    assert [tick.get_text() for tick in where.get_xticklabels()] == numbers


def test_layers_or_the_output_may_be_missing() -> None:
    whether, where, *_ = drawn([entry(0, {}, {})]).axes
    assert "no layer" in where.get_title()
    assert "not compared" not in whether.get_title()
    nothing = entry(0, {}, {}, metrics={}, compares_output=False)
    assert all("not measured" in axes.get_title() for axes in drawn([nothing]).axes[:2])
    whether, where, *_ = drawn([entry(0, {"a": 0.5}, {"a": 0.001}, compares_output=False)]).axes
    assert "not compared" in whether.get_title()
    assert "no layer" not in where.get_title()


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "validations"), [(3, 200), (150, 300)])
def test_nothing_overlaps_or_lies_outside(layers: int, validations: int) -> None:
    figure = drawn(long(layers, validations))
    assert (figure.get_size_inches() <= (7, 16)).all()
    whether, where, *_ = figure.axes
    named = where.get_yticklabels()
    assert len(named) == len(where.texts)
    assert len(named) == layers or where.get_ylabel().startswith("one layer in ")
    texts = [*named, *where.texts, *where.get_xticklabels(), whether.title, where.title, whether.get_legend()]
    assert_legible(figure, texts)
    top = where.bbox.height / layers
    assert top * math.ceil(layers / len(named)) >= 10  # pixels for a name
    assert where.bbox.height / len(named) <= 40  # and at most the height of two names
