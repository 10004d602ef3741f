"""Notes of a report: `{key: sentence}`; a problem has the same key in every report."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping

from lightning_anomaly._internal.tabular import listed


def nonfinite_note(name: str, count: int, filters: int, ending: str) -> dict[str, str]:
    """Note that some filters of a layer have NaN or infinite values; `ending` ends the sentence."""
    return {f"{name} nonfinite": f"Layer '{name}': {count} of {filters} filters have NaN or infinite values {ending}."}


def merge_notes(notes: Mapping[str, str]) -> dict[str, str]:
    """Merge the notes on several layers that differ only in numbers, under the key of the first."""
    groups: dict[str, list[str]] = {}
    for key, note in notes.items():
        kind = re.sub(r"'.*?'|\d+", "", note) if note.startswith("Layer '") else key
        groups.setdefault(kind, []).append(key)
    merged = {}
    for first, *others in groups.values():
        layers = [repr(notes[key].split("'")[1]) for key in others]
        merged[first] = notes[first] + (f" The same holds for {listed(layers)}." if layers else "")
    return merged


def warn_of(notes: Mapping[str, str]) -> None:
    """Warn of notes, at the line that called the caller of this function."""
    for note in merge_notes(notes).values():
        warnings.warn(note, stacklevel=3)
