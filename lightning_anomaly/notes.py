"""Notes of a report: what could not be used and why, by a key that stays the same from report to report."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from lightning_anomaly.tables import listed


class Note(str):
    """A sentence, or a part of one, with the numbers of one layer in it."""

    kind: str  # the same for other layers, whatever the numbers
    layer: str  # of a whole sentence

    def __new__(cls, kind: str, *numbers: object, layer: str = "") -> Note:
        """Put numbers into the `{}` of a text."""
        note = super().__new__(cls, kind.format(*numbers) if numbers else kind)
        note.kind, note.layer = kind, layer
        return note


def left_out(name: str, problem: str) -> dict[str, str]:
    """Note that a layer is left out."""
    note = Note(f"Layer '{name}' is left out of the analysis: {problem}.", layer=name)
    note.kind = getattr(problem, "kind", problem)
    return {f"{name} left out": note}


def nonfinite(name: str, found: int, filters: int, rest: str) -> dict[str, str]:
    """Note that filters of a layer have NaN or infinite values; `rest` says where, and what follows."""
    note = Note(f"Layer '{name}': {found} of {filters} filters have NaN or infinite values {rest}.", layer=name)
    note.kind = "nonfinite"
    return {f"{name} nonfinite": note}


def merge_notes(notes: Mapping[str, str]) -> dict[str, str]:
    """Merge notes of one kind on several layers, under the key of the first of them."""
    groups: dict[str, list[str]] = {}
    for key, note in notes.items():
        groups.setdefault(note.kind if isinstance(note, Note) else key, []).append(key)
    merged = {}
    for first, *others in groups.values():
        layers = [f"'{note.layer}'" for note in map(notes.get, others) if isinstance(note, Note)]
        merged[first] = notes[first] + (f" Likewise {listed(layers)}." if layers else "")
    return merged


def warn_of(notes: Mapping[str, str]) -> None:
    """Warn of notes, at the line that called the function that calls this."""
    for note in merge_notes(notes).values():
        warnings.warn(note, stacklevel=3)
