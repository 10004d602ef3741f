"""Notes of a report: what could not be used and why, by a key that stays the same from report to report."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping

from lightning_anomaly.tables import listed

_LEFT_OUT, _NONFINITE = " left out", " nonfinite"  # how the keys of notes on single layers end


def left_out(name: str, problem: str) -> dict[str, str]:
    """Note that a layer is left out."""
    return {name + _LEFT_OUT: f"Layer '{name}' is left out of the analysis: {problem}."}


def nonfinite(name: str, found: int, filters: int, rest: str) -> dict[str, str]:
    """Note that filters of a layer have NaN or infinite values; `rest` says where, and what follows."""
    return {name + _NONFINITE: f"Layer '{name}': {found} of {filters} filters have NaN or infinite values {rest}."}


def merge_notes(notes: Mapping[str, str]) -> dict[str, str]:
    """Merge notes that say the same of several layers, under the key of the first of them."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for key, note in notes.items():
        name = next((key.removesuffix(end) for end in (_LEFT_OUT, _NONFINITE) if key.endswith(end)), None)
        kind = key if name is None else re.sub(r"\d+", "", note.removeprefix(f"Layer '{name}'"))
        groups.setdefault(kind, []).append((key, f"'{name}'"))
    return {
        key: notes[key] + (f" Likewise {listed([name for _, name in others])}." if others else "")
        for (key, _), *others in groups.values()
    }


def warn_of(notes: Mapping[str, str]) -> None:
    """Warn of notes, at the line that called the function that calls this."""
    for note in merge_notes(notes).values():
        warnings.warn(note, stacklevel=3)
