"""The checks of arguments take any kind of number, give back plain values, and name what is wrong."""

from fractions import Fraction

import numpy as np
import pytest

from lightning_anomaly.checks import (
    check_bool,
    check_fraction,
    check_integer,
    check_names,
    check_one_of,
    check_text,
)


@pytest.mark.parametrize("value", [5, np.int64(5), np.int32(5), np.uint8(5)])
def test_an_integer_is_an_integer_and_comes_back_as_python_s_own(value):
    found = check_integer("n", value, 1)
    assert found == 5
    assert type(found) is int


@pytest.mark.parametrize("value", [np.bool_(True), np.float64(5), np.array([5]), "5"])
def test_what_is_no_integer_is_an_error(value):
    with pytest.raises(ValueError, match=r"`n` should be an integer of at least 0\. Found `n = "):
        check_integer("n", value, 0)


@pytest.mark.parametrize("value", [0.5, np.float64(0.5), np.float32(0.5), np.float16(0.5), Fraction(1, 2)])
def test_a_real_number_is_a_number_and_comes_back_as_python_s_own(value):
    found = check_fraction("part", value, zero=False)
    assert found == 0.5
    assert type(found) is float
    assert type(check_fraction("part", np.int64(1), zero=False)) is float


def test_a_fraction_has_bounds():
    assert check_fraction("part", 0, zero=True) == 0
    assert check_fraction("part", 0.5, zero=False, largest=0.5) == 0.5
    with pytest.raises(ValueError, match=r"`part` should be a number in \(0, 1\]\. Found `part = 0`\."):
        check_fraction("part", 0, zero=False)
    with pytest.raises(ValueError, match=r"`part` should be a number in \[0, 1\]\. Found `part = 1\.5`\."):
        check_fraction("part", 1.5, zero=True)
    with pytest.raises(ValueError, match=r"`part` should be a number in \(0, 0\.5\]\. Found `part = np.*0\.75"):
        check_fraction("part", np.float32(0.75), zero=False, largest=0.5)


def test_a_choice_comes_back_as_python_s_own_string():
    found = check_one_of("rule", np.array(["vote"])[0], ("vote", "best"))
    assert found == "vote"
    assert type(found) is str
    with pytest.raises(ValueError, match=r"`rule` should be one of \['vote', 'best'\]\. Found `rule = array"):
        check_one_of("rule", np.array(["vote", "best"]), ("vote", "best"))


def test_true_and_false_are_all_that_a_switch_can_be():
    assert check_bool("on", True) is True
    assert check_bool("on", False) is False
    for value in ("no", 0, None):
        with pytest.raises(ValueError, match=rf"`on` should be True or False\. Found `on = {value!r}`\."):
            check_bool("on", value)


def test_names_are_a_list_of_strings_or_none():
    assert check_names("layers", None, "layer names") is None
    assert check_names("layers", ("a", "b"), "layer names") == ["a", "b"]
    assert check_names("layers", (name for name in "ab"), "layer names") == ["a", "b"]
    assert check_names("layers", [""], "layer names") == [""]  # a model that is a single layer


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("conv1", r"'conv1': give \['conv1'\]\."),
        ("", r"''\."),
        (3, r"3\."),
        ([], r"\[\]\."),
        ([0], r"\[0\]\."),
        (["conv1", None], r"\['conv1', None\]\."),
    ],
)
def test_names_of_another_kind_are_an_error_that_says_what_to_give(value, found):
    with pytest.raises(
        ValueError, match=rf"^Parameter `layers` should be a list of layer names or None\. Found {found}$"
    ):
        check_names("layers", value, "layer names")


def test_a_text_is_a_string_that_is_not_empty():
    assert check_text("prefix", "a") == "a"
    for value in ("", 3, None):
        with pytest.raises(ValueError, match=r"`prefix` should be a string of at least one character\. Found "):
            check_text("prefix", value)
