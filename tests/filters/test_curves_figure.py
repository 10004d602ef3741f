"""The chart of a run has losses on the left and counts of filters on the right, at every validation."""

import math

import numpy as np
import pytest

from lightning_anomaly.filters.filter_figures import curves_figure

NAMES = {"training": "train_loss", "validation": "val_loss"}


def test_losses_and_counts_are_those_of_each_validation_and_a_missing_value_is_a_gap() -> None:
    losses = [{"val_loss": 3.0}, {"train_loss": 2.0}, {"val_loss": 1.0}]  # a training loss is known later
    history = [
        {"epoch": epoch, "step": 9 * epoch, "metrics": {"count": 4.0 + epoch, "isolated": 2.0}, "logged": logged}
        for epoch, logged in enumerate(losses)
    ]
    left, right = curves_figure([*history, {**history[0], "epoch": 3, "metrics": {}}], NAMES).axes
    found = {line.get_label(): line.get_ydata() for axes in (left, right) for line in axes.get_lines()}
    assert list(found) == ["train_loss", "val_loss", "isolated filters", "anomaly filters"]
    gap = math.nan
    expected = [gap, 2, gap, gap], [3, gap, 1, 3], [2, 2, 2, gap], [4, 5, 6, gap]
    np.testing.assert_array_equal(list(found.values()), expected)
    assert (left.get_ylabel(), right.get_ylabel(), right.get_ylim()[0]) == ("loss", "filters", 0)
    assert [line.get_linestyle() for line in left.get_lines()] == ["-", "--"]
    assert curves_figure([{**history[0], "logged": {}}], {}).axes[0].get_ylabel() == ""


@pytest.mark.parametrize(
    ("epochs", "label", "numbers"),
    [
        ([4, 9, 14], "epoch", ["4", "9", "14"]),
        ([*range(10)], "epoch", [*"0123456789"]),
        ([0, 0, 1], "step", ["7", "14", "21"]),
    ],
)
def test_validations_are_numbered_by_epoch_or_by_step(epochs: list[int], label: str, numbers: list[str]) -> None:
    history = [{"epoch": epoch, "step": 7 * place + 7, "metrics": {}} for place, epoch in enumerate(epochs)]
    axes = curves_figure(history, {}).axes[0]
    assert axes.get_xlabel() == label
    assert [tick.get_text() for tick in axes.get_xticklabels()] == numbers


@pytest.mark.parametrize(("metrics", "said"), [({"count": 0.0, "isolated": 0.0}, ""), ({}, ": not measured")])
def test_counts_of_0_and_none_have_whole_ticks_and_none_is_said(metrics: dict[str, float], said: str) -> None:
    _, right = curves_figure([{"epoch": 0, "step": 9, "metrics": metrics}], {}).axes
    assert all(tick == round(tick) for tick in right.get_yticks())
    assert [line.get_label() for line in right.get_lines()] == [f"isolated filters{said}", f"anomaly filters{said}"]
