"""Arguments at their limits are returned as plain Python values; those beyond give errors that name them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from lightning_anomaly._internal import checks

COUNT = partial(checks.check_integer, "n", smallest=2, largest=9)
SHARE = partial(checks.check_fraction, "n", zero=False, largest=0.5)
NAMES = partial(checks.check_names, "n", kind="layers")
ONE_OF = partial(checks.check_one_of, "n", allowed=("a", "b"))


@pytest.mark.parametrize(
    ("check", "given", "expected"),
    [
        (COUNT, np.int64(2), 2),
        (COUNT, 9, 9),
        (partial(checks.check_integer, "n", smallest=0), 10**9, 10**9),
        (SHARE, np.float32(0.5), 0.5),
        (partial(checks.check_fraction, "n", zero=True), 0, 0.0),
        (partial(checks.check_fraction, "n", zero=True), 1, 1.0),
        (partial(checks.check_bool, "n"), False, False),
        (NAMES, None, None),
        (NAMES, ("a", "b"), ["a", "b"]),
        (ONE_OF, np.array(["b"])[0], "b"),
        (partial(checks.check_text, "n"), "a", "a"),
    ],
)
def test_allowed_values_become_plain_ones(check: Callable[[Any], Any], given: Any, expected: Any) -> None:
    found = check(value=given)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("check", "wrong_types", "wrong_values"),
    [
        (COUNT, [True, 2.0, "3"], [1, 10]),
        (SHARE, [True, "0.1"], [0, -0.1, 0.51, float("nan")]),
        (partial(checks.check_bool, "n"), [1, None], []),
        (NAMES, ["a", 3, ["a", 3]], [[]]),
        (ONE_OF, [1, None], ["c"]),
        (partial(checks.check_text, "n"), [1, None], [""]),
    ],
)
def test_other_values_are_refused(check: Callable[[Any], Any], wrong_types: list[Any], wrong_values: list[Any]) -> None:
    for error, values in ((TypeError, wrong_types), (ValueError, wrong_values)):
        for value in values:
            with pytest.raises(error, match=r"^Parameter `n` should be .*Found"):
                check(value=value)


def test_labels_are_plain_values_and_none_where_one_is_missing() -> None:
    given = [np.int64(3), 2.0, 2.5, float("nan"), None, "cat", torch.tensor(4)]
    assert checks.check_labels(given, 7) == [3, 2, 2.5, None, None, "cat", 4]
    with pytest.raises(ValueError, match="7 entries"):
        checks.check_labels(given[1:], 7)
    with pytest.raises(TypeError, match="Found int"):
        checks.check_labels(7, 7)  # type: ignore[arg-type]
