"""Nested named tuples and dataclasses as dicts, lists and tensors, which `torch.load(weights_only=True)` reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

_KIND = "kind"


def to_plain(value: Any) -> Any:
    """Turn named tuples and dataclasses into dicts with the names of their classes, tensors into those of the CPU."""
    names = getattr(value, "_fields", None) or ([field.name for field in fields(value)] if is_dataclass(value) else [])
    if names or (isinstance(value, tuple) and type(value) is not tuple):
        return {_KIND: type(value).__name__, **{name: to_plain(getattr(value, name)) for name in names}}
    if isinstance(value, Mapping):
        return {key: to_plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(entry) for entry in value]
    return value.cpu() if hasattr(value, "cpu") else value


def from_plain(value: Any, classes: Iterable[type]) -> Any:
    """Restore what `to_plain` was called on, lists for tuples; KeyError if a class is not among those given."""
    known = {one.__name__: one for one in classes}

    def restore(value: Any) -> Any:
        if isinstance(value, dict):
            entries = {key: restore(entry) for key, entry in value.items() if key != _KIND}
            return known[value[_KIND]](**entries) if _KIND in value else entries
        return [restore(entry) for entry in value] if isinstance(value, list) else value

    return restore(value)
