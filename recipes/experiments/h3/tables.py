"""Tables of H3, made from its lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from statistics import mean

import numpy as np
from scipy.stats import binomtest

from recipes.experiments.common.tables import Line, group, markdown, spread

__all__ = [
    "MOMENTS",
    "READING_NAMES",
    "average",
    "contest_table",
    "flagged_runs",
    "flagged_table",
    "loss_table",
    "matching_table",
    "memory_table",
    "standing",
    "tables",
    "values",
]

ARMS = ("anomaly", "random", "matched", "l1", "fpgm", "sparsest")
MOMENTS = {"0": "right after masking", "1": "after 1 further epoch", "3": "after 3 further epochs"}
READING_NAMES = {"default": "default settings", "paper": "paper's settings"}
_LARGER_IS_BETTER = ("val_acc", "test_acc", "train_acc", "wrong_undone")
_PERMUTATIONS = 20_000


def values(line: Line, reading: str, arm: str, moment: str, measure: str, state: str = "last") -> list[float]:
    """A measure of every mask of an arm, "nothing" included; empty where nothing was flagged or it does not exist."""
    arms = line["readings"][reading][state].get("arms")
    if arms is None:
        return []
    rows = line["nothing"][state] if arm == "nothing" else arms.get(arm, {})
    place = line["measures"].index(measure)
    return [row[place] for row in rows.get(moment, []) if row[place] is not None]


def average(line: Line, reading: str, arm: str, moment: str, measure: str, state: str = "last") -> float | None:
    """The mean of `values`; None where there are none."""
    found = values(line, reading, arm, moment, measure, state)
    return mean(found) if found else None


def standing(own: float, others: Sequence[float], measure: str) -> float:
    """Share of the other masks that a mask beats, ties counted half."""
    sign = 1 if measure in _LARGER_IS_BETTER else -1
    return mean((sign * own > sign * other) + (own == other) / 2 for other in others)


def permutation_p(runs: Sequence[Sequence[float]], measure: str) -> tuple[float, float]:
    """Is the first mask of every run a mask like the others?

    Args:
        runs: The measure of the masks of each run, the one in question first.
        measure: Its name.

    Returns:
        The mean of its standings among the others, and how often (two-sided) a mask picked at random in each run has a
        mean as far from one half: the permutation test of the hypothesis that all masks of a run are exchangeable.
    """
    standings = [[standing(own, [*run[:i], *run[i + 1 :]], measure) for i, own in enumerate(run)] for run in runs]
    found = mean(each[0] for each in standings)
    random = np.random.default_rng(0)
    picked = [np.array(each)[random.integers(len(each), size=_PERMUTATIONS)] for each in standings]
    distances = np.abs(np.mean(picked, axis=0) - 0.5)
    extreme = int((distances >= abs(found - 0.5) - 1e-12).sum())
    return found, (1 + extreme) / (1 + _PERMUTATIONS)


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _against(pairs: Sequence[tuple[float, float]], measure: str) -> str:
    """In how many runs the first of a pair is better, ties left out, with the p-value of the sign test."""
    sign = 1 if measure in _LARGER_IS_BETTER else -1
    better = sum(sign * a > sign * b for a, b in pairs)
    decided = sum(a != b for a, b in pairs)
    return f"{better} of {decided} ({_p(binomtest(better, decided).pvalue)})" if decided else "-"


def flagged_runs(lines: Iterable[Line], reading: str, moment: str = "0", state: str = "last") -> list[Line]:
    """The runs in which something was flagged, and the mask measured at that moment."""
    return [line for line in lines if values(line, reading, "anomaly", moment, "val_loss", state)]


def _counts(runs: Sequence[Line], reading: str, state: str) -> str:
    found = [run["readings"][reading][state] for run in runs]
    layers = found[0]["masked"]
    return ", ".join(
        f"{mean(one['masked'][layer] for one in found):.1f} of {mean(one['live'][layer] for one in found):.0f}"
        for layer in layers
    )


def flagged_table(lines: Iterable[Line]) -> str:
    """For each network, data set and condition: flagged filters of the live ones of each layer, mean over the seeds."""
    rows = []
    for key, runs in group(lines, "network", "data", "condition").items():
        nothing = [[run["nothing"][state]["0"][0][0] for run in runs] for state in ("best", "last")]
        cells = [
            f"{_counts(runs, reading, state)} ({len(flagged_runs(runs, reading, state=state))})"
            for reading in READING_NAMES
            for state in ("best", "last")
        ]
        rows.append((*key, len(runs), f"{mean(nothing[0]):.2f} → {mean(nothing[1]):.2f}", *cells))
    header = ["network", "data", "condition", "seeds", "validation loss, best → last epoch"]
    for name in READING_NAMES.values():
        header += [f"{name}, best epoch (runs with any)", "last epoch (runs with any)"]
    return markdown(header, rows)


def loss_table(lines: Iterable[Line], reading: str, moment: str, measure: str = "val_loss", state: str = "last") -> str:
    """For each network, data set and condition: a measure under every kind of mask, where anything was flagged."""
    digits = 2 if measure.endswith("loss") else 3
    rows = []
    for key, runs in group(flagged_runs(lines, reading, moment, state), "network", "data", "condition").items():
        cells = [
            spread([average(run, reading, arm, moment, measure, state) for run in runs], digits)
            for arm in ("nothing", *ARMS)
        ]
        ranks = [
            standing(
                values(run, reading, "anomaly", moment, measure, state)[0],
                values(run, reading, "random", moment, measure, state),
                measure,
            )
            for run in runs
        ]
        rows.append((*key, len(runs), *cells, spread(ranks)))
    header = ("network", "data", "condition", "seeds", "nothing masked", *ARMS, "share of random draws beaten")
    return markdown(header, rows)


def _cases(lines: Sequence[Line]) -> Iterator[tuple[str, str, str, list[Line]]]:
    """Reading, state, moment and the runs that have them."""
    for reading in READING_NAMES:
        for state, moment in (("best", "0"), *(("last", moment) for moment in MOMENTS)):
            runs = flagged_runs(lines, reading, moment, state)
            if runs:
                yield reading, state, moment, runs


def contest_table(
    lines: Sequence[Line], measures: Sequence[str] = ("val_loss", "val_acc", "val_ece", "test_loss", "test_acc")
) -> str:
    """Over all runs: does the mask of anomaly filters beat the others? For the number of runs, p-values are small."""
    rows = []
    for measure in measures:
        for reading, state, moment, runs in _cases(lines):
            own = [values(run, reading, "anomaly", moment, measure, state)[0] for run in runs]
            draws = [values(run, reading, "random", moment, measure, state) for run in runs]
            masks = [[mask, *others] for mask, others in zip(own, draws, strict=True)]
            share, p = permutation_p(masks, measure)
            cells = []
            for arm in (*ARMS[1:], "nothing"):
                others = [average(run, reading, arm, moment, measure, state) for run in runs]
                pairs = [(a, b) for a, b in zip(own, others, strict=True) if b is not None]
                cells.append(_against(pairs, measure))
            when = "best epoch, " + MOMENTS["0"] if state == "best" else MOMENTS[moment]
            rows.append((measure, READING_NAMES[reading], when, len(runs), f"{share:.2f} ({_p(p)})", *cells))
    header = (
        "measure", "reading", "when", "runs", "share of random draws beaten (permutation p)",
        "better than the mean random draw in (sign test p)", "than matched draws", "than l1", "than fpgm",
        "than sparsest", "than nothing masked",
    )  # fmt: skip
    return markdown(header, rows)


def _mislabelled(lines: Iterable[Line], reading: str, moment: str) -> list[Line]:
    return [line for line in flagged_runs(lines, reading, moment) if line["cell"]["condition"] != "overfitting"]


def memory_table(lines: Sequence[Line], reading: str) -> str:
    """Mislabelled training images: predicted as their wrong label / as what they are; is what was memorised lost?"""
    rows = []
    for moment in ("0", "3"):
        for key, runs in group(_mislabelled(lines, reading, moment), "network", "data", "condition").items():
            cells = []
            for arm in ("nothing", *ARMS):
                kept, undone = (
                    spread([average(run, reading, arm, moment, name) for run in runs])
                    for name in ("wrong_kept", "wrong_undone")
                )
                cells.append(f"{kept} / {undone}")
            rows.append((*key, len(runs), MOMENTS[moment], *cells))
    return markdown(("network", "data", "condition", "seeds", "when", "nothing masked", *ARMS), rows)


def kind_table(lines: Sequence[Line]) -> str:
    """What kind of filters is flagged: how sparse, whether L1 and FPGM mask them too, whether masking does anything."""
    rows = []
    for reading, state, moment, cases in _cases(lines):
        for (network,), runs in group(cases if moment == "0" else [], "network").items():
            found = [run["readings"][reading][state] for run in runs]
            sparsity = [each for one in found for each in one["sparsity"].values()]
            losses = [
                [values(run, reading, arm, "0", "val_loss", state)[0] for run in runs] for arm in ("nothing", "anomaly")
            ]
            same = sum(a == b for a, b in zip(*losses, strict=True))
            rows.append(
                (
                    f"{READING_NAMES[reading]}, {state} epoch",
                    network,
                    len(runs),
                    spread([sum(one["masked"].values()) for one in found], 1),
                    spread([each[0] for each in sparsity]),
                    spread([each[1] for each in sparsity if len(each) > 1]),
                    *(spread([one["shared"].get(arm) for one in found]) for arm in ("l1", "fpgm", "sparsest")),
                    f"{same} of {len(runs)}",
                )
            )
    header = (
        "reading", "network", "runs", "flagged filters", "their sparsity", "sparsity of the layers' normal filters",
        "flagged filters that l1 masks too", "that fpgm masks too", "that sparsest masks too",
        "validation loss the same in",
    )  # fmt: skip
    return markdown(header, rows)


def matching_table(lines: Sequence[Line]) -> str:
    """How well random draws could be matched on the training accuracy right after masking, at the last epoch."""
    rows = []
    for reading in READING_NAMES:
        for (network,), runs in group(flagged_runs(lines, reading), "network").items():
            found = [run["readings"][reading]["last"]["matching"] for run in runs]
            usable = [one for one in found if one["matched"]]
            gaps = [abs(mean(one["matched"]) - one["anomaly"]) for one in usable]
            inside = sum(one["pool"][0] <= one["anomaly"] <= one["pool"][1] for one in usable)
            rows.append(
                (
                    READING_NAMES[reading],
                    network,
                    len(runs),
                    spread([average(run, reading, "nothing", "0", "train_acc") for run in runs], 3),
                    spread([one["anomaly"] for one in found], 3),
                    spread([mean(one["matched"]) for one in usable], 3),
                    f"{max(gaps):.3f}" if gaps else "-",
                    f"{inside} of {len(usable)}",
                )
            )
    header = (
        "reading", "network", "runs", "training accuracy, nothing masked", "anomaly filters masked",
        "matched draws", "largest difference", "within the draws' range in",
    )  # fmt: skip
    return markdown(header, rows)


def tables(lines: Sequence[Line]) -> str:
    """All tables with a heading each; those for which there is nothing are left out."""
    parts = [("Flagged filters of each layer's live ones", flagged_table(lines))]
    if any(_cases(lines)):
        parts.append(("What kind of filters is flagged", kind_table(lines)))
    for reading, name in READING_NAMES.items():
        for moment in ("0", "3"):
            if flagged_runs(lines, reading, moment):
                parts.append((f"Validation loss, {name}, {MOMENTS[moment]}", loss_table(lines, reading, moment)))
        if _mislabelled(lines, reading, "0"):
            title = f"Mislabelled training images, {name}: wrong label kept / undone"
            parts.append((title, memory_table(lines, reading)))
    if any(_cases(lines)):
        parts.append(("Anomaly mask against the others, over all runs", contest_table(lines)))
    if any(flagged_runs(lines, reading) for reading in READING_NAMES):
        parts.append(("How well the matched draws match", matching_table(lines)))
    return "\n\n".join(f"### {title}\n\n{table}" for title, table in parts)
