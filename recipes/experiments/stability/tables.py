"""The table and the figure of the rules, made from their lines."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from recipes.experiments.common.tables import Line, markdown
from recipes.experiments.stability.measure import DAMAGED, RULES

__all__ = ["ENOUGH", "draw", "reaches", "stability_table"]

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


def draw(lines: Sequence[Line]) -> Figure:
    """Each rule a point: filters that it shares with the clustering that the index selects, and those left without 2%.

    Of ordinary probes, AlexNet and small networks apart; rules that are stable in each part of the table are filled.
    """
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    stable = {rule: all(reaches(part, rule) for part in _parts(lines).values()) for rule in RULES}
    for axis, alexnet in zip(figure.subplots(1, 2, sharey=True), (True, False), strict=True):
        some = [line for line in lines if (line["cell"]["network"] == "alexnet") == alexnet]
        for rule in RULES:
            place = _share(some, 0, rule, "selected"), _share(some, 0, rule, "left out")
            if None in place:
                continue
            colour = "#0072B2" if rule in _NAMED else "0.6"
            axis.scatter(*place, s=28, facecolors=colour if stable[rule] else "none", edgecolors=colour)
            if rule in _NAMED:
                axis.annotate(_NAMED[rule], place, xytext=(5, -11), textcoords="offset points", fontsize=8)
        axis.axhline(ENOUGH["left out"], color="black", linewidth=0.8, linestyle=":")
        axis.set(title=f"{'AlexNet' if alexnet else 'small networks'} ({len(some)} trainings)", xlim=(0.2, 1.2))
        axis.set_xlabel("shared with the clustering that the index selects")
    figure.axes[0].set_ylabel("left without 2% of the probe")
    return figure


_NAMED = {"best": "largest index", "index^1 > 0.667": "two thirds of the votes", "vote": "majority"}
