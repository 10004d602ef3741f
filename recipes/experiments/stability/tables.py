"""The table of the rules, made from their lines."""

from __future__ import annotations

from collections.abc import Sequence

from recipes.experiments.common.tables import Line, markdown
from recipes.experiments.stability.measure import DAMAGED, RULES

__all__ = ["ENOUGH", "reaches", "stability_table"]

ENOUGH = {"seeds": 0.95, "left out": 0.85}  # what is wanted
_CHOSEN_ON = ("overfitting", "augmented")  # the conditions


def _parts(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """Trainings that had a part in the choice and the others, small networks and AlexNet."""
    parts: dict[str, list[Line]] = {}
    for line in sorted(lines, key=lambda own: own["cell"]["condition"] not in _CHOSEN_ON):
        chosen = "chosen on" if line["cell"]["condition"] in _CHOSEN_ON else "others"
        network = "AlexNet" if line["cell"]["network"] == "alexnet" else "small networks"
        parts.setdefault(f"{chosen}: {network}", []).append(line)
    return parts


def _share(lines: Sequence[Line], damaged: int, rule: str, what: str) -> float | None:
    """Filters shared, of those that either flags, over all trainings together; None if there are none."""
    pairs = [line["damaged"][str(damaged)][rule][what] for line in lines]
    shared, either = (sum(column) for column in zip(*pairs, strict=True))
    return shared / either if either else None


def reaches(lines: Sequence[Line], rule: str) -> bool:
    """Whether a rule is as stable as is wanted, on probes without and with damaged images, wherever it flags any."""
    shares = [(_share(lines, count, rule, what), least) for count in DAMAGED for what, least in ENOUGH.items()]
    return all(share is None or share >= least for share, least in shares)


def stability_table(lines: Sequence[Line]) -> str:
    """For each rule and part of the trainings: filters flagged, and the four overlaps, ordinary / damaged probes."""
    parts = _parts(lines)
    rows = []
    for rule in ("best", *reversed(RULES[2:]), "vote"):
        for name, some in parts.items():
            columns = [
                " / ".join(
                    f"{sum(line['damaged'][str(count)][rule]['flagged'] for line in some):.0f}" for count in DAMAGED
                )
            ]
            for what in ("seeds", "left out", "selected", "other probe"):
                shares = [_share(some, count, rule, what) for count in DAMAGED]
                columns.append(" / ".join("-" if share is None else f"{share:.3f}" for share in shares))
            rows.append((rule, f"{name} ({len(some)})", *columns, "yes" if reaches(some, rule) else "no"))
    header = ("rule", "trainings", "flagged", "two seeds", "2% left out", "the index's", "another probe", "stable")
    return markdown(header, rows)
