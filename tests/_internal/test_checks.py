"""Checks of arguments accept any kind of number, return plain values, and name the wrong argument."""

import re
from fractions import Fraction

import numpy as np
import pytest

from lightning_anomaly._internal.checks import (
    check_bool,
    check_fraction,
    check_integer,
    check_names,
    check_one_of,
    check_text,
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((check_integer("n", value, 1), 5) for value in (5, np.int32(5), np.uint8(5))),
        (check_integer("n", 1, 1), 1),
        *((check_fraction("part", value, zero=False), 0.5) for value in (0.5, np.float16(0.5), Fraction(1, 2))),
        (check_integer("n", 2**64 - 1, 0, 2**64 - 1), 2**64 - 1),
        (check_fraction("part", np.int64(1), zero=False), 1.0),
        (check_fraction("part", 0, zero=True), 0.0),
        (check_fraction("part", 0.5, zero=False, largest=0.5), 0.5),
        (check_one_of("rule", np.array(["vote"])[0], ("vote", "best")), "vote"),
        (check_bool("on", False), False),
        (check_names("layers", None, "layer names"), None),
        (check_names("layers", (name for name in "ab"), "layer names"), ["a", "b"]),
        (check_names("layers", [""], "layer names"), [""]),  # a model that is a single layer
        (check_text("prefix", "a"), "a"),
    ],
)
def test_valid_values_are_returned_as_plain_values(value, expected):
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("check", "name", "values", "types"),
    [
        (
            lambda value: check_integer("n", value, 1),
            "n",
            [0],
            [np.bool_(True), True, np.float64(5), np.array([5]), "5"],
        ),
        (lambda value: check_integer("n", value, 0, 2**64 - 1), "n", [-1, 2**64], [None]),
        (lambda value: check_fraction("part", value, zero=False), "part", [0, 1.5, -0.1, float("nan")], [True, "1"]),
        (lambda value: check_fraction("part", value, zero=True, largest=0.5), "part", [np.float32(0.75), -0.1], [1j]),
        (lambda value: check_one_of("rule", value, ("vote", "best")), "rule", [""], [np.array(["vote", "best"]), 3]),
        (lambda value: check_bool("on", value), "on", [], ["no", 0, None]),
        (lambda value: check_names("layers", value, "names"), "layers", [[]], ["conv1", "", 3, [0], ["a", None]]),
        (lambda value: check_text("prefix", value), "prefix", [""], [3, None]),
    ],
)
def test_an_error_names_the_argument_and_its_value_and_tells_types_from_values(check, name, values, types):
    for error, wrong in ((ValueError, values), (TypeError, types)):
        for value in wrong:
            with pytest.raises(error, match=rf"`{name}` .*{re.escape(repr(value))}"):
                check(value)


def test_an_error_names_the_allowed_values():
    for check, allowed in (
        (lambda: check_integer("n", 0, 1), "of at least 1"),
        (lambda: check_integer("n", 0, 2, 255), "from 2 to 255"),
        (lambda: check_fraction("part", 2, zero=True), r"\[0, 1\]"),
        (lambda: check_fraction("part", 2, zero=False, largest=0.5), r"\(0, 0.5\]"),
    ):
        with pytest.raises(ValueError, match=allowed):
            check()
