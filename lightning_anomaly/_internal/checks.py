"""Check arguments: TypeError for a wrong type, ValueError for a wrong value of the right type.

Each check returns the value as a plain Python type: NumPy's numbers are allowed too, but checkpoints that are read with
`weights_only=True` and JSON can only hold plain values.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any


def _error(right_type: bool, sentence: str) -> Exception:
    return (ValueError if right_type else TypeError)(sentence)


def check_bool(name: str, value: Any) -> bool:
    """Check that `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"Parameter `{name}` should be True or False. Found `{name} = {value!r}`.")
    return value


def check_fraction(name: str, value: Any, *, zero: bool, largest: float = 1) -> float:
    """Check that `value` is a number from 0 (or, without `zero`, above 0) to `largest`."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not 0 <= value <= largest or (value == 0 and not zero):
        allowed = f"{'[' if zero else '('}0, {largest}]"
        raise _error(number, f"Parameter `{name}` should be a number in {allowed}. Found `{name} = {value!r}`.")
    return float(value)


def check_integer(name: str, value: Any, smallest: int, largest: int | None = None) -> int:
    """Check that `value` is an integer from `smallest` to `largest`."""
    integer = isinstance(value, Integral) and not isinstance(value, bool)
    if not integer or int(value) < smallest or (largest is not None and int(value) > largest):
        allowed = f"of at least {smallest}" if largest is None else f"from {smallest} to {largest}"
        raise _error(integer, f"Parameter `{name}` should be an integer {allowed}. Found `{name} = {value!r}`.")
    return int(value)


def check_names(name: str, value: Any, kind: str) -> list[str] | None:
    """Check that `value` is None or a collection of one or more strings, called `kind` in the error."""
    if value is None:
        return None
    try:
        names = [value] if isinstance(value, str) else list(value)
    except TypeError:  # it cannot be iterated
        names = [value]
    right_type = not isinstance(value, str) and all(isinstance(text, str) for text in names)
    if not names or not right_type:
        raise _error(right_type, f"Parameter `{name}` should be a list of {kind} or None. Found {value!r}.")
    return names


def check_one_of(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    """Check that `value` is one of the `allowed` strings."""
    if not isinstance(value, str) or value not in allowed:
        sentence = f"Parameter `{name}` should be one of {list(allowed)}. Found `{name} = {value!r}`."
        raise _error(isinstance(value, str), sentence)
    return str(value)


def check_text(name: str, value: Any) -> str:
    """Check that `value` is a non-empty string."""
    if not isinstance(value, str) or not value:
        sentence = f"Parameter `{name}` should be a string of at least one character. Found {value!r}."
        raise _error(isinstance(value, str), sentence)
    return value


def check_labels(labels: Sequence[Any], count: int) -> list[Any]:
    """Return the labels of `count` images, None for NaN, from a list, tensor, array or column of a table."""
    sized = hasattr(labels, "__len__")
    size = len(labels) if sized else type(labels).__name__
    if size != count:
        raise _error(sized, f"Parameter `labels` should have {count} entries, one for each image. Found {size}.")
    # A column of a table has NaN for a missing label, which turns its integers into floating-point numbers.
    plain = [value.tolist() if hasattr(value, "tolist") else value for value in labels]
    numbers = [int(value) if isinstance(value, float) and value.is_integer() else value for value in plain]
    return [None if type(value).__name__ == "NAType" or value != value else value for value in numbers]
