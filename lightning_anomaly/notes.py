"""Notes of a report: what could not be used and why, by a key; what several layers have in common is told once."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping

from lightning_anomaly.tables import listed

__all__ = ["left_out", "nonfinite", "told_together", "warn_of"]

_LEFT_OUT, _NONFINITE = " left out", " nonfinite"  # how the keys of notes on single layers end


def left_out(name: str, problem: str) -> dict[str, str]:
    """The note on a layer that is left out."""
    return {name + _LEFT_OUT: f"Layer '{name}' is left out of the analysis: {problem}."}


def nonfinite(name: str, found: int, filters: int, rest: str) -> dict[str, str]:
    """The note on filters of a layer that are left out; `rest` says where these values are and what follows."""
    return {name + _NONFINITE: f"Layer '{name}': {found} of {filters} filters have NaN or infinite values {rest}."}


def told_together(notes: Mapping[str, str]) -> dict[str, str]:
    """What to warn about: notes that say the same of several layers are one, by the key of the first of them."""
    alike: dict[str, list[tuple[str, str]]] = {}
    for key, note in notes.items():
        name = next((key.removesuffix(end) for end in (_LEFT_OUT, _NONFINITE) if key.endswith(end)), None)
        kind = key if name is None else re.sub(r"\d+", "", note.removeprefix(f"Layer '{name}'"))
        alike.setdefault(kind, []).append((key, f"'{name}'"))
    told = {}
    for (key, _), *others in alike.values():
        told[key] = notes[key] + (f" Likewise {listed([name for _, name in others])}." if others else "")
    return told


def warn_of(notes: Mapping[str, str]) -> None:
    """Warns of notes, at the line that called the function that calls this."""
    for note in told_together(notes).values():
        warnings.warn(note, stacklevel=3)
