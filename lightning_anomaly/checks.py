"""Checks of arguments, whose errors name the argument, what was found and what is allowed."""

from __future__ import annotations

from typing import Any

__all__ = ["check_fraction", "check_integer", "check_one_of"]


def check_fraction(name: str, value: Any, *, zero: bool) -> None:
    """Raises ValueError unless `value` is a number from 0 (or, without `zero`, above 0) to 1."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1 or (value == 0 and not zero):
        allowed = "[0, 1]" if zero else "(0, 1]"
        raise ValueError(f"Parameter `{name}` should be a number in {allowed}. Found `{name} = {value!r}`.")


def check_integer(name: str, value: Any, smallest: int) -> None:
    """Raises ValueError unless `value` is an integer of at least `smallest`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
        raise ValueError(f"Parameter `{name}` should be an integer of at least {smallest}. Found `{name} = {value!r}`.")


def check_one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Raises ValueError unless `value` is one of the strings `allowed`."""
    if value not in allowed:
        raise ValueError(f"Parameter `{name}` should be one of {list(allowed)}. Found `{name} = {value!r}`.")
