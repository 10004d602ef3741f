"""Tables of what finds images that do not belong, made from the lines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import mean

from recipes.experiments.common.tables import Line, group, markdown, spread
from recipes.experiments.h2.planted import KINDS, SHARES
from recipes.experiments.outliers.detect import CHOSEN_ON, MEASURES, SCORES, was_chosen_on

__all__ = [
    "ALL_KINDS",
    "all_table",
    "kind_table",
    "network_table",
    "reported",
    "trained_on_table",
    "values_of",
    "wins_table",
]

ALL_KINDS = (*KINDS, "foreign", "mixed")
_MEASURES = dict(zip(MEASURES, ("AUROC", "average precision", "false positives at 95% recall"), strict=True))
_HEADER = ("outlier score", *SCORES[1:])


def reported(lines: Iterable[Line]) -> list[Line]:
    """The trainings of networks and data sets that had no part in the choice of the score."""
    return [line for line in lines if not was_chosen_on(line["cell"]["network"], line["cell"]["data"])]


def values_of(
    lines: Iterable[Line], score: str, kind: str | None = None, share: float | None = None, measure: str = "auroc"
) -> list[float]:
    """A measure of a score in the probes, one for each training, kind of damage and share.

    Args:
        lines: Trainings.
        score: One of `SCORES`.
        kind: One of `ALL_KINDS`; None takes all.
        share: One of `SHARES`; None takes all.
        measure: One of `MEASURES`.
    """
    found = [
        result[measure][SCORES.index(score)]
        for line in lines
        for key, result in line["probe"].items()
        if kind in (None, key.partition("/")[0]) and share in (None, float(key.partition("/")[2]))
    ]
    return [value for value in found if value is not None]


def _text(values: Sequence[float]) -> str:
    return f"{mean(values):.2f}" if values else "-"


def _cells(
    lines: Sequence[Line], kind: str | None = None, share: float | None = None, measure: str = "auroc"
) -> list[str]:
    return [_text(values_of(lines, score, kind, share, measure)) for score in SCORES]


def network_table(lines: Sequence[Line]) -> str:
    """For each network, data set and condition the mean AUROC of every score, over the kinds and shares."""
    rows = []
    for key, runs in group(lines, "network", "data", "condition").items():
        for seeds in ([CHOSEN_ON], sorted({run["cell"]["seed"] for run in runs} - {CHOSEN_ON})):
            some = [run for run in runs if run["cell"]["seed"] in seeds]
            if some:
                course = (
                    f"{mean(run['train']['loss'] for run in some):.2f} / {mean(run['val']['loss'] for run in some):.2f}"
                )
                rows.append((*key, ", ".join(map(str, seeds)), course, *_cells(some)))
    return markdown(("network", "data", "condition", "seeds", "loss, training / validation", *_HEADER), rows)


def kind_table(lines: Sequence[Line]) -> str:
    """The mean AUROC of every score for each kind of damage, and for each share, on what had no part in the choice."""
    some = reported(lines)
    rows: list[tuple[str, ...]] = [(kind, *_cells(some, kind)) for kind in ALL_KINDS]
    rows += [(f"{100 * share:g}% of the probe", *_cells(some, share=share)) for share in SHARES]
    return markdown(("damage", *_HEADER), rows)


def all_table(lines: Sequence[Line]) -> str:
    """Every measure of every score, mean over all that had no part in the choice; of the AUROC also the spread.

    The spread is the standard deviation of the trainings' means.
    """
    some = reported(lines)
    by_training = [[values_of([line], score) for line in some] for score in SCORES]
    rows: list[tuple[str, ...]] = [(label, *_cells(some, measure=name)) for name, label in _MEASURES.items()]
    means = [[mean(values) for values in found if values] for found in by_training]
    rows.insert(1, ("AUROC by training", *(spread(found) for found in means)))
    return markdown(("measure", *_HEADER), rows)


def _wins(lines: Iterable[Line], rival: str, kind: str) -> float | None:
    """The mean area of a rival, in the probes that it was measured in, if the outlier score's is smaller there."""
    results = [own for line in lines for key, own in line["probe"].items() if key.partition("/")[0] == kind]
    pairs = [[own["auroc"][SCORES.index(name)] for name in (rival, "score")] for own in results]
    known = [(theirs, ours) for theirs, ours in pairs if theirs is not None and ours is not None]
    if not known:
        return None
    theirs, ours = (mean(column) for column in zip(*known, strict=True))
    return theirs if theirs > ours else None


def wins_table(lines: Sequence[Line]) -> str:
    """For each kind of damage and data set: the outlier score, and the rivals that do better, best first."""
    rows = []
    for (data,), runs in group(reported(lines), "data").items():
        for kind in ALL_KINDS:
            ours = values_of(runs, "score", kind)
            if not ours:
                continue
            better = {name: theirs for name in SCORES[1:] if (theirs := _wins(runs, name, kind)) is not None}
            ranked = sorted(better, key=lambda name: -better[name])
            rows.append((data, kind, _text(ours), ", ".join(f"{name} {better[name]:.2f}" for name in ranked) or "none"))
    return markdown(("data", "damage", "outlier score", "what does better"), rows)


def trained_on_table(lines: Sequence[Line]) -> str:
    """What finds the damaged images of all kinds among those trained on: AUROC and average precision."""
    places = [place for place, name in enumerate(SCORES) if name != "votes"]
    rows = []
    for key, runs in group([line for line in lines if line["trained_on"]], "network", "data").items():
        found = [run["trained_on"]["mixed"] for run in runs]

        def both(place: int, found: Sequence[Line] = found) -> str:
            pairs = [[one[name][place] for one in found] for name in ("auroc", "precision")]
            return "-" if None in pairs[0] else " / ".join(_text(values) for values in pairs)

        planted = ", ".join(
            f"{one['planted']} of {run['cell']['train_size']}" for one, run in zip(found, runs, strict=True)
        )
        rows.append((*key, planted, *map(both, places)))
    header = ("network", "data", "damaged", *(_HEADER[place] for place in places))
    return markdown(header, rows)
