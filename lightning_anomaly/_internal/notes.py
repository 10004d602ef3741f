"""Notes of a report: `{key: sentence}`; a problem has the same key in every report."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from lightning_anomaly._internal.tables import listed


class Note(str):
    """A sentence or a part of one, which may hold the numbers of one layer."""

    kind: str  # the text without numbers, equal for layers with the same problem
    layer: str  # empty for a part of a sentence

    def __new__(cls, text: str, *numbers: object, layer: str = "", kind: str = "") -> Note:
        """Put numbers into the `{}` of a text."""
        note = super().__new__(cls, text.format(*numbers) if numbers else text)
        note.kind, note.layer = kind or text, layer
        return note


def left_out(name: str, problem: str) -> dict[str, str]:
    """Note that a layer is left out."""
    kind = getattr(problem, "kind", problem)
    return {f"{name} left out": Note(f"Layer '{name}' is left out of the analysis: {problem}.", layer=name, kind=kind)}


def nonfinite(name: str, count: int, filters: int, ending: str) -> dict[str, str]:
    """Note that some filters of a layer have NaN or infinite values; `ending` ends the sentence."""
    text = f"Layer '{name}': {count} of {filters} filters have NaN or infinite values {ending}."
    return {f"{name} nonfinite": Note(text, layer=name, kind="nonfinite")}


def merge_notes(notes: Mapping[str, str]) -> dict[str, str]:
    """Merge the notes on several layers with the same problem, under the key of the first."""
    groups: dict[str, list[str]] = {}
    for key, note in notes.items():
        groups.setdefault(note.kind if isinstance(note, Note) else key, []).append(key)
    merged = {}
    for first, *others in groups.values():
        layers = [f"'{note.layer}'" for note in map(notes.get, others) if isinstance(note, Note)]
        merged[first] = notes[first] + (f" The same holds for {listed(layers)}." if layers else "")
    return merged


def warn_of(notes: Mapping[str, str]) -> None:
    """Warn of notes, at the line that called the caller of this function."""
    for note in merge_notes(notes).values():
        warnings.warn(note, stacklevel=3)
