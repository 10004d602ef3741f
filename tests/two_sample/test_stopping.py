"""The decision to stop, as a function of what was measured."""

import math

import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lightning_anomaly.two_sample.stopping import SMOOTHING, decide, since_best

LOSSES = st.lists(st.floats(0.01, 10), min_size=1, max_size=30)


@given(LOSSES)
@settings(max_examples=50)
def test_it_waits_since_the_lowest_of_pandas_exponential_average(losses: list[float]) -> None:
    losses = [round(loss, 3) for loss in losses]
    average = pd.Series(losses).ewm(alpha=1 - SMOOTHING, adjust=False).mean().round(9)
    assume(average.is_unique)  # rounding decides between equal ones
    assert since_best(losses) == len(losses) - 1 - int(average.argmin())


def test_one_low_loss_among_many_does_not_start_the_wait_anew_and_nan_is_no_improvement() -> None:
    assert since_best([0.5, 0.6, 0.7, 0.8, 0.48]) == 4
    assert since_best([0.5, 0.6, 0.7, 0.8, 0.0]) == 0
    assert since_best([1.0, 0.9, math.nan, math.inf]) == 2
    assert since_best([math.nan, math.nan]) == 2
    assert since_best([math.nan, 1.0]) == 0
    assert since_best([0.8, 1.5, math.nan, 0.79]) == 3  # the average goes on
    assert since_best([1.5, 1.4, 0.3, 1.1, 2.0, 0.5]) == 2  # with a weight of 0.6 it were 3, of 0.8 none
    assert since_best([]) == 0


@pytest.mark.parametrize(
    ("rises", "losses", "stops"),
    [
        ([0.0, 0.06], [1.0, 1.1, 1.1, 1.1], True),
        ([0.0, 0.05], [1.0, 1.1, 1.1, 1.1], False),  # at the threshold
        ([0.2, 0.04], [1.0, 1.1, 1.1, 1.1], False),  # the gap has closed
        ([0.0, 0.06], [1.0, 1.1, 1.1], False),  # two validations without a lower loss
        ([0.0, 0.06], [1.0, 2.0, 2.0, 3.0], False),  # a spike: its average is 2.0
        ([0.0, 0.06], [1.0, 2.0, 2.0, 1.6, 1.5], True),
        ([0.0, 0.06], [1.0, 1.1, 1.1, 3.0, 1.1], True),  # the spike is over
        ([0.0, 0.06], [1.0, 1.1, 1.1, math.nan], True),
        ([0.0, 0.06], [], False),
        ([], [1.0] * 9, False),
        ([0.06, 0.06, 0.06], None, True),
        ([0.06, 0.05, 0.06, 0.06], None, False),
        ([], None, False),
    ],
)
def test_it_stops_with_an_open_gap_and_no_lower_loss(
    rises: list[float], losses: list[float] | None, stops: bool
) -> None:
    assert decide(rises, losses, 0.05, 3)[0] == stops


def test_the_reason_names_the_threshold_and_the_wait() -> None:
    assert decide([0.5], [1, 1.1, 1.1, 1.1, 1.2], 0.25, 3)[1] == (
        "is above 0.25 and the validation loss has not improved for 4 validations"
    )
    assert decide([0.1, 0.5], None, 0.25, 1)[1] == "has been above 0.25 for 1 validation"
