"""The chart of a run has losses on the left and counts of filters on the right, at every validation."""

import math

import numpy as np

from lightning_anomaly.filters.curves_figure import curves_figure


def test_losses_and_counts_are_those_of_each_validation_and_a_missing_loss_is_a_gap() -> None:
    losses = [{"train_loss": 2.0, "val_loss": 3.0}, {}, {"val_loss": 1.0}]
    history = [
        {"epoch": epoch, "step": 9 * epoch, "metrics": {"count": 4.0 + epoch, "isolated": 2.0}, "losses": logged}
        for epoch, logged in enumerate(losses)
    ]
    left, right = curves_figure(history).axes
    found = {line.get_label(): line.get_ydata() for axes in (left, right) for line in axes.get_lines()}
    assert list(found) == ["train_loss", "val_loss", "isolated filters", "anomaly filters"]
    expected = [2, math.nan, math.nan], [3, math.nan, 1], [2, 2, 2], [4, 5, 6]
    np.testing.assert_array_equal(list(found.values()), expected)
    assert (left.get_ylabel(), right.get_ylabel(), right.get_ylim()[0]) == ("loss", "filters", 0)
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["0", "1", "2"]
    assert curves_figure([{**history[0], "losses": {}}]).axes[0].get_ylabel() == ""
