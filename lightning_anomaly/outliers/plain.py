"""Convert named tuples and dataclasses to dicts, lists and tensors, which `torch.load(weights_only=True)` reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

_KIND = "kind"


def to_plain(value: Any) -> Any:
    """Convert named tuples and dataclasses to dicts with the names of their classes, and move tensors to the CPU."""
    names = getattr(value, "_fields", None) or ([field.name for field in fields(value)] if is_dataclass(value) else [])
    if names or (isinstance(value, tuple) and type(value) is not tuple):
        return {_KIND: type(value).__name__, **{name: to_plain(getattr(value, name)) for name in names}}
    if isinstance(value, Mapping):
        return {key: to_plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(entry) for entry in value]
    return value.cpu() if hasattr(value, "cpu") else value


def from_plain(value: Any, classes: Iterable[type]) -> Any:
    """Invert `to_plain`, but for tuples, which become lists; KeyError for a class that is not in `classes`."""
    by_name = {kind.__name__: kind for kind in classes}

    def restore(value: Any) -> Any:
        if isinstance(value, dict):
            entries = {key: restore(entry) for key, entry in value.items() if key != _KIND}
            return by_name[value[_KIND]](**entries) if _KIND in value else entries
        return [restore(entry) for entry in value] if isinstance(value, list) else value

    return restore(value)
