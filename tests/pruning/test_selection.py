"""The selection of filters to mask, within limits."""

import pytest
from reports import layer as made_up

from lightning_anomaly import AnomalyReport
from lightning_anomaly.pruning.selection import Summary, choose_filters, summarize_report


def choose(*summaries: Summary, masked: dict | None = None, votes: int = 1, fraction: float = 1.0) -> dict:
    return choose_filters(summaries, masked or {}, min_votes=votes, max_fraction=fraction)


def test_a_summary_counts_outlier_samples() -> None:
    verdicts = ("normal", "anomaly", "dead", "anomaly", "nonfinite")
    report = AnomalyReport({"conv": made_up(*verdicts, outliers={1: [3, 5], 3: [2]})}, 60)
    assert summarize_report(report) == {"conv": [0, 2, 0, 1, 0]}


def test_filters_are_ordered_by_votes_then_outlier_samples_then_index() -> None:
    first = {"conv": [1, 5, 2, 0, 2, 0]}
    second = {"conv": [1, 0, 3, 9, 3, 0]}
    assert choose(first, second) == {"conv": [2, 4, 0, 3, 1]}
    assert choose(first, second, votes=2) == {"conv": [2, 4, 0]}
    assert choose(first, second, votes=3) == {}
    assert choose() == {}


@pytest.mark.parametrize(("fraction", "room"), [(0.01, 0), (0.25, 2), (0.5, 4), (0.75, 6), (1.0, 7)])
def test_at_most_a_fraction_of_a_layer_is_selected_and_never_all(fraction: float, room: int) -> None:
    summary = {"conv": [1, 2, 3, 4, 5, 6, 7, 8]}
    assert choose(summary, fraction=fraction).get("conv", []) == [7, 6, 5, 4, 3, 2, 1][:room]
    left = max(0, room - 2)
    assert choose(summary, masked={"conv": [0, 7]}, fraction=fraction).get("conv", []) == [6, 5, 4, 3, 2][:left]


def test_a_layer_that_is_missing_in_a_report_gets_no_vote_from_it() -> None:
    assert choose({"gone": [4, 4]}, {"conv": [0, 1, 1]}, fraction=0.7) == {"conv": [1, 2]}
