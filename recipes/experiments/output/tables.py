"""Tables of when to stop by the output, made from the lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from statistics import mean, median

from lightning_anomaly.callbacks._output_rise import output_rise
from recipes.experiments.common.curves import auroc, best_epoch, signal
from recipes.experiments.common.tables import Line, is_long, is_overfitting, markdown
from recipes.experiments.common.trainings import DATA
from recipes.experiments.h1.stopping_rules import RULES as OTHERS
from recipes.experiments.output.follow import SIZES

__all__ = ["RULES", "chosen_on", "first_above", "gap_rules", "output_rules", "output_runs", "output_scores"]

_TRIED = (0.015, 0.02, 0.025, 0.03, 0.04)
RISE = 0.025  # of the gap, see `AnomalyEarlyStopping`


def first_above(values: Sequence[float], threshold: float) -> int | None:
    """Position of the first value above a threshold; None without any."""
    return next((place for place, value in enumerate(values) if value > threshold), None)


def _rises(line: Line, name: str = "confidence_gap") -> list[float]:
    values = signal(line, name)
    return [output_rise(values[:end]) for end in range(1, len(values) + 1)]


def _as_others(rule: str, line: Line) -> int | None:
    """Where one of the rules of `stopping_rules` stops a training, if it does."""
    last = OTHERS[rule](line).last
    return last if last < len(line["epochs"]) - 1 else None


# Where each rule stops a training, if it does; the network is the one of that epoch.
RULES: dict[str, Callable[[Line], int | None]] = {
    "gap, rise of 0.025 (`AnomalyEarlyStopping`)": lambda line: first_above(_rises(line), RISE),
    "gap, above 0.025": lambda line: first_above(signal(line, "confidence_gap"), RISE),
    "area, rise of 0.03": lambda line: first_above(_rises(line, "confidence_auc"), 0.03),
    "area, above 0.55": lambda line: first_above(signal(line, "confidence_auc"), 0.55),
    "area, p-value below 1%": lambda line: first_above([-p for p in signal(line, "confidence_p_value")], -0.01),
    "loss with labels, rise of 0.03": lambda line: first_above(_rises(line, "loss_auc"), RISE),
    **{
        rule: partial(_as_others, rule)
        for rule in (
            "validation loss, patience 3",
            "validation loss, patience 5",
            "validation loss, patience 10",
            "Label Wave, patience 5",
            "gradient disparity, patience 5",
            "rise of weight variance",
        )
    },
    "none: train to the end": lambda line: None,
}


def chosen_on(line: Line) -> bool:
    """Whether a training had a part in choosing the rule."""
    cell = line["cell"]
    return cell["seed"] == 0 and cell["data"] == "cifar10" and cell["network"] in ("lenet5", "simple_cnn")


def _parts(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """The trainings that had a part in the choice, and the others, by data; those on all images apart."""
    kinds = ("chosen on", "others", "all images")

    def part(line: Line) -> tuple[int, str]:
        return 2 if is_long(line) else int(not chosen_on(line)), line["cell"]["data"]

    parts: dict[str, list[Line]] = {}
    for line in sorted(lines, key=part):
        kind, data = part(line)
        parts.setdefault(f"{kinds[kind]}: {data}", []).append(line)
    return parts


def _stopped(rule: Callable[[Line], int | None], lines: Sequence[Line]) -> str:
    return f"{sum(rule(line) is not None for line in lines)} of {len(lines)}" if lines else "-"


def output_rules(lines: Sequence[Line]) -> str:
    """For each rule: how many trainings it stops, and what the overfitting ones cost then.

    Validation loss at the stop over the smallest (of a training that is not stopped, at its end), epochs trained of
    those there are, and test accuracy below that of the best epoch.
    """
    rows = []
    for name, some in _parts(lines).items():
        bad = [line for line in some if is_overfitting(line)]
        good = [line for line in some if not is_overfitting(line)]
        for rule, stop in RULES.items():
            ends = [(line, len(line["epochs"]) - 1 if stop(line) is None else int(stop(line) or 0)) for line in bad]
            ratios = [signal(line, "val_loss")[end] / min(signal(line, "val_loss")) for line, end in ends]
            spent = [(end + 1) / len(line["epochs"]) for line, end in ends]
            lost = [100 * (max(signal(line, "test_acc")) - signal(line, "test_acc")[end]) for line, end in ends]
            costs = (f"{median(ratios):.2f}", f"{max(ratios):.2f}", f"{100 * mean(spent):.0f}%", f"{mean(lost):.1f}")
            rows.append((name, rule, _stopped(stop, bad), _stopped(stop, good), *(costs if bad else ["-"] * 4)))
    header = ("trainings", "rule", "overfitting: stopped", "healthy: stopped", "loss over the best, median", "largest",
              "epochs spent", "accuracy lost (points)")  # fmt: skip
    return markdown(header, rows)


def gap_rules(lines: Sequence[Line]) -> str:
    """For each part and rise of the gap: how many trainings of `two_sample` it stops, and the loss there over the best.

    Args:
        lines: Those of `two_sample`, in which the gap is called `confidence`.
    """
    rows = []
    for name, some in _parts(lines).items():
        for rise in _TRIED:
            ends = [(line, first_above(_rises(line, "confidence"), rise)) for line in some]
            bad = [(line, end) for line, end in ends if is_overfitting(line)]
            good = [end is not None for line, end in ends if not is_overfitting(line)]
            ratios = [
                signal(line, "val_loss")[-1 if end is None else end] / min(signal(line, "val_loss"))
                for line, end in bad
            ]
            spent = [(len(line["epochs"]) if end is None else end + 1) / len(line["epochs"]) for line, end in bad]
            rows.append(
                (
                    name,
                    f"{rise:g}",
                    f"{sum(end is not None for _, end in bad)} of {len(bad)}",
                    f"{sum(good)} of {len(good)}",
                    f"{median(ratios):.2f}",
                    f"{max(ratios):.2f}",
                    f"{100 * mean(spent):.0f}%",
                )
            )
    header = ("trainings", "rise", "overfitting: stopped", "healthy: stopped", "loss over the best, median", "largest",
              "epochs spent")  # fmt: skip
    return markdown(header, rows)


def output_runs(lines: Sequence[Line]) -> str:
    """Each training: its losses, the areas, and where it is stopped."""
    rows = []
    for line in sorted(lines, key=lambda own: (not is_overfitting(own), own["key"])):
        loss, area, best = signal(line, "val_loss"), signal(line, "confidence_auc"), best_epoch(line)
        gap = signal(line, "confidence_gap")
        stop = first_above(_rises(line), RISE)
        rows.append(
            (
                line["key"],
                f"{loss[best]:.2f} → {loss[-1]:.2f}",
                best + 1,
                f"{gap[0]:.3f} → {gap[best]:.3f} → {gap[-1]:.3f}",
                f"{area[0]:.3f} → {area[best]:.3f} → {area[-1]:.3f}",
                f"{max(_rises(line)):.3f}",
                "-" if stop is None else stop + 1,
                "-" if stop is None else f"{loss[stop] / loss[best]:.2f}",
            )
        )
    header = ("training", "validation loss, best → end", "best epoch", "gap, first epoch → best → end",
              "area", "largest rise of the gap", "stopped after epoch", "loss over the best")  # fmt: skip
    return markdown(header, rows)


def output_scores(lines: Sequence[Line]) -> str:
    """How well the largest rise of each number tells the short trainings that had no part in the choice, by data.

    The probability that it is larger in an overfitting training than in a healthy one, the least in an overfitting one,
    and the most in a healthy one.
    """
    names = {"gap of the largest softmax probability": "confidence_gap"}
    names |= {f"area by the same, {size} images": f"confidence_auc {size}" for size in SIZES}
    names |= {
        "area by the same, 1024 images": "confidence_auc",
        "area by the entropy": "entropy_auc",
        "area by the margin": "margin_auc",
        "area by the energy": "energy_auc",
        "area by the loss, with labels": "loss_auc",
    }
    header, rows, parts = ["by"], [[label] for label in names], _parts(lines)
    for data in DATA:
        some = parts.get(f"others: {data}", [])
        kinds = [is_overfitting(line) for line in some]
        header += [f"{data}: AUROC", f"least of {sum(kinds)} overfitting", f"most of {len(kinds) - sum(kinds)} healthy"]
        for row, name in zip(rows, names.values(), strict=True):
            rises = [max(_rises(line, name)) for line in some]
            area = auroc(rises, kinds)
            ends = [
                pick([rise for rise, kind in zip(rises, kinds, strict=True) if kind == wanted], default=None)
                for pick, wanted in ((min, True), (max, False))
            ]
            row += ["-" if area is None else f"{area:.2f}", *("-" if end is None else f"{end:.3f}" for end in ends)]
    return markdown(header, rows)
