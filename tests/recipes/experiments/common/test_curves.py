"""What is read from the curves of a training."""

import math

import numpy as np
import pytest
import scipy.stats
from h1_lines import line

from recipes.experiments.common import curves


def test_signals_are_read_from_a_line() -> None:
    some = line(fraction=[0.1, 0.2, 0.4], val_loss=[2.0, 1.0, 3.0])
    assert curves.signal(some, "fraction") == pytest.approx([0.1, 0.2, 0.4])
    assert curves.signal(some, "fraction", "val_paper", "0") == pytest.approx([0.1, 0.2, 0.4])
    assert curves.signal(some, "epoch") == [0, 1, 2]
    assert curves.best_epoch(some) == 1
    assert curves.after_best(some, [5, 6, 7]) == [6, 7]


def test_partial_correlation_is_that_of_the_matrix_inverse() -> None:
    rng = np.random.default_rng(0)
    given = rng.normal(size=40)
    a, b = given + rng.normal(size=40), given + rng.normal(size=40)
    precision = np.linalg.inv(np.corrcoef([scipy.stats.rankdata(values) for values in (a, b, given)]))
    expected = -precision[0, 1] / math.sqrt(precision[0, 0] * precision[1, 1])
    assert curves.partial_correlation(a, b, given) == pytest.approx(expected)
    assert curves.partial_correlation(given, b, given) == 0
    assert curves.partial_correlation(a, b, np.zeros(40)) == pytest.approx(curves.correlation(a, b))


def test_a_constant_curve_follows_nothing_and_a_short_one_says_nothing() -> None:
    assert curves.correlation([1, 1, 1, 1, 1], [1, 2, 3, 4, 5]) == 0
    assert curves.correlation([1, 2, 3, 4, 5], [1, 2, 3, 4, 5]) == pytest.approx(1)
    assert curves.correlation([1, 2, 3, 4], [1, 2, 3, 4]) is None
    assert curves.partial_correlation([1, 2, 3, 4], [1, 2, 3, 4], [1, 1, 1, 1]) is None
    assert curves.auroc([1.0, 2.0], [True, True]) is None
    assert curves.auroc([1.0, 2.0, 2.0], [False, True, False]) == 0.75


def test_the_late_change_compares_quarters() -> None:
    assert curves.late_change([9, 9, 1, 3, 0, 0, 5, 7]) == pytest.approx(6 - 2)


def test_smoothing_takes_the_epochs_before() -> None:
    assert curves.smoothed([3.0, 0.0, 6.0, 3.0], 1) == [3.0, 0.0, 6.0, 3.0]
    assert curves.smoothed([3.0, 0.0, 6.0, 3.0], 3) == [3.0, 1.5, 3.0, 3.0]
