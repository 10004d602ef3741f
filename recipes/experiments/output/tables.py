"""Tables of when to stop by the output, made from the lines."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean, median

from lightning_anomaly.two_sample.rise import THRESHOLD, WINDOW
from recipes.experiments.common.curves import auroc, best_epoch, signal
from recipes.experiments.common.tables import Line, is_long, is_overfitting, kinds, markdown
from recipes.experiments.common.trainings import DATA
from recipes.experiments.h1.stopping_rules import RULES as OTHERS
from recipes.experiments.output.follow import SIZES

__all__ = [
    "RULES",
    "chosen_on",
    "ended",
    "first_above",
    "largest_rise",
    "loss_over_best",
    "output_rules",
    "output_runs",
    "output_scores",
    "output_summary",
    "rise_rules",
]

_TRIED = (0.05, 0.075, 0.1, 0.15, 0.2, 0.3)
# Known when a rise had to exceed three standard errors, and when the ratio was preferred to log-odds: network, data and
# seed.
_CHOSEN_ON = {
    ("lenet5", "cifar10", 3),
    ("simple_cnn", "fashion_mnist", 2),
    ("lenet5", "fashion_mnist", 0),
    ("simple_cnn", "fashion_mnist", 0),
}


def first_above(values: Sequence[float], threshold: float) -> int | None:
    """Position of the first value above a threshold; None without any."""
    return next((place for place, value in enumerate(values) if value > threshold), None)


def _rises(line: Line, name: str = "confidence_rise", window: int = WINDOW) -> list[float]:
    """A rise as it was measured; of other numbers, how far the mean of `window` is above its lowest at each validation.

    The `confidence_error_ratio` rises by a fraction, as `confidence_rise` does, but whatever the standard error.
    """
    values = signal(line, name)
    if name.startswith("confidence_rise"):
        return values
    if name == "confidence_error_ratio":
        return [math.expm1(rise) for rise in _above_lowest([math.log(ratio) for ratio in values], window)]
    return _above_lowest(values, window)


def _above_lowest(values: Sequence[float], window: int) -> list[float]:
    means = [fmean(values[end - window : end]) for end in range(window, len(values) + 1)]
    return [0.0] * (len(values) - len(means)) + [now - min(means[: end + 1]) for end, now in enumerate(means)]


def largest_rise(line: Line) -> float:
    """How far the ratio of expected errors rises at most."""
    return max(_rises(line))


def _by_rise(line: Line) -> int | None:
    """Where `AnomalyEarlyStopping` stops a training, if it does."""
    return first_above(_rises(line), THRESHOLD)


def _as_others(rule: str, line: Line) -> int | None:
    """Where one of the rules of `stopping_rules` stops a training, if it does."""
    last = OTHERS[rule](line).last
    return last if last < len(line["epochs"]) - 1 else None


# Where each rule stops a training, if it does; the network is the one of that epoch.
RULES: dict[str, Callable[[Line], int | None]] = {
    "ratio of expected errors, rise of 10% (`AnomalyEarlyStopping`)": _by_rise,
    "the same ratio without standard errors, rise of 10%": lambda line: first_above(
        _rises(line, "confidence_error_ratio"), 0.1
    ),
    "the same, rise of 15%": lambda line: first_above(_rises(line, "confidence_error_ratio"), 0.15),
    "log-odds gap, rise of 0.25": lambda line: first_above(_rises(line, "log_odds_gap"), 0.25),
    "gap, rise of 0.025": lambda line: first_above(_rises(line, "confidence_gap"), 0.025),
    "area, rise of 0.03": lambda line: first_above(_rises(line, "confidence_auc"), 0.03),
    "area, above 0.55": lambda line: first_above(signal(line, "confidence_auc"), 0.55),
    "area, p-value below 1%": lambda line: first_above([-p for p in signal(line, "confidence_p_value")], -0.01),
    "errors made over those expected, with labels, rise of 30%": lambda line: first_above(
        _rises(line, "log_overconfidence"), math.log(1.3)
    ),
    "loss with labels, rise of 0.03": lambda line: first_above(_rises(line, "loss_auc"), 0.03),
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
    return (cell["network"], cell["data"], cell["seed"]) in _CHOSEN_ON


def _parts(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """The trainings that had a part in the choice, and the others, by data; those on all images apart."""
    kinds = ("chosen on", "others", "all images")

    def part(line: Line) -> tuple[int, str]:
        return 0 if chosen_on(line) else 1 + is_long(line), line["cell"]["data"]

    parts: dict[str, list[Line]] = {}
    for line in sorted(lines, key=part):
        kind, data = part(line)
        parts.setdefault(f"{kinds[kind]}: {data}", []).append(line)
    return parts


def _stopped(rule: Callable[[Line], int | None], lines: Sequence[Line]) -> str:
    """How many trainings a rule stops."""
    return f"{sum(_stop(rule, line) is not None for line in lines)} of {len(lines)}" if lines else "-"


def _stop(rule: Callable[[Line], int | None], line: Line) -> int | None:
    """Where a rule stops a training; None also at its last epoch, where there is nothing to stop."""
    end = ended(rule, line)
    return end if end < len(line["epochs"]) - 1 else None


def ended(rule: Callable[[Line], int | None], line: Line) -> int:
    """The epoch at which a rule ends a training: where it stops it, or the last one."""
    stop = rule(line)
    return len(line["epochs"]) - 1 if stop is None else stop


def loss_over_best(rule: Callable[[Line], int | None], line: Line) -> float:
    """Validation loss where a rule ends a training, over the smallest of the training."""
    loss = signal(line, "val_loss")
    return loss[ended(rule, line)] / min(loss)


def _cells(rule: Callable[[Line], int | None], lines: Sequence[Line]) -> tuple[str, ...]:
    """What a rule stops, and what the overfitting ones cost then: see `output_rules`."""
    bad, good = kinds(lines)
    stopped = _stopped(rule, bad), _stopped(rule, good)
    if not bad:
        return *stopped, "-", "-", "-", "-"
    ratios = [loss_over_best(rule, line) for line in bad]
    spent = [(ended(rule, line) + 1) / len(line["epochs"]) for line in bad]
    accuracies = [signal(line, "test_acc") for line in bad]
    lost = [100 * (max(own) - own[ended(rule, line)]) for line, own in zip(bad, accuracies, strict=True)]
    return *stopped, f"{median(ratios):.2f}", f"{max(ratios):.2f}", f"{100 * fmean(spent):.0f}%", f"{fmean(lost):.1f}"


def output_rules(lines: Sequence[Line]) -> str:
    """For each rule: how many trainings it stops, and what the overfitting ones cost then.

    Validation loss at the stop over the smallest (of a training that is not stopped, at its end), epochs trained of
    those there are, and test accuracy below that of the best epoch.
    """
    rows = [(name, rule, *_cells(stop, some)) for name, some in _parts(lines).items() for rule, stop in RULES.items()]
    header = ("trainings", "rule", "overfitting: stopped", "healthy: stopped", "loss over the best, median", "largest",
              "epochs spent", "accuracy lost (points)")  # fmt: skip
    return markdown(header, rows)


def output_summary(lines: Sequence[Line]) -> str:
    """For each rule: what it stops of the trainings that had no part in the choice, and the loss then, see `_cells`."""
    parts = {name.removeprefix("others: "): some for name, some in _parts(lines).items() if "chosen" not in name}
    rows = [
        (rule, *(cell for some in parts.values() for cell in _cells(stop, some)[:3])) for rule, stop in RULES.items()
    ]
    columns = ("overfitting", "healthy", "loss")
    return markdown(("rule", *(f"{name}: {column}" for name in parts for column in columns)), rows)


def rise_rules(lines: Sequence[Line]) -> str:
    """For each part and rise of the ratio: how many trainings it stops, and the loss there over the best."""

    def above(rise: float) -> Callable[[Line], int | None]:
        return lambda line: first_above(_rises(line), rise)

    rows = [(name, f"{100 * rise:g}%", *_cells(above(rise), some)[:-1]) for name, some in _parts(lines).items()
            for rise in _TRIED]  # fmt: skip
    header = ("trainings", "rise", "overfitting: stopped", "healthy: stopped", "loss over the best, median", "largest",
              "epochs spent")  # fmt: skip
    return markdown(header, rows)


def output_runs(lines: Sequence[Line]) -> str:
    """Each training: its losses, the areas, and where it is stopped."""
    rows = []
    for line in sorted(lines, key=lambda own: (not is_overfitting(own), own["key"])):
        loss, area, best = signal(line, "val_loss"), signal(line, "confidence_auc"), best_epoch(line)
        ratio = signal(line, "confidence_error_ratio")
        stop = _stop(_by_rise, line)
        rows.append(
            (
                line["key"],
                f"{loss[best]:.2f} → {loss[-1]:.2f}",
                best + 1,
                f"{ratio[0]:.2f} → {ratio[best]:.2f} → {ratio[-1]:.2f}",
                f"{area[0]:.3f} → {area[best]:.3f} → {area[-1]:.3f}",
                f"{100 * largest_rise(line):.0f}%",
                "-" if stop is None else stop + 1,
                "-" if stop is None else f"{loss[stop] / loss[best]:.2f}",
            )
        )
    header = ("training", "validation loss, best → end", "best epoch", "ratio, first epoch → best → end",
              "area", "largest rise of the former", "stopped after epoch", "loss over the best")  # fmt: skip
    return markdown(header, rows)


def output_scores(lines: Sequence[Line]) -> str:
    """How well the largest rise of each number tells the trainings that had no part in the choice.

    The probability that it is larger in an overfitting training than in a healthy one, the least in an overfitting one,
    and the most in a healthy one; of short trainings by data, and of all, the long ones too. In brackets the number of
    trainings, where some do not have the number.
    """
    names = {"ratio of expected errors": "confidence_rise"}
    names |= {f"the same, {size} images": f"confidence_rise {size}" for size in SIZES}
    raw = "the same without standard errors"
    windows = {f"{raw}, of single validations": 1, raw: WINDOW, f"{raw}, means of five": 5}
    names |= dict.fromkeys(windows, "confidence_error_ratio")
    names |= {
        "log-odds gap": "log_odds_gap",
        "gap of the largest softmax probability": "confidence_gap",
        "area by the same": "confidence_auc",
        "area by the entropy": "entropy_auc",
        "area by the margin": "margin_auc",
        "area by the energy": "energy_auc",
        "area by the loss, with labels": "loss_auc",
        "errors made over those expected, with labels, as a logarithm": "log_overconfidence",
    }
    header, rows, parts = ["by"], [[label] for label in names], _parts(lines)
    compared = {data: parts.get(f"others: {data}", []) for data in DATA}
    compared["all"] = [line for line in lines if not chosen_on(line)]
    for data, some in compared.items():
        bad = sum(map(is_overfitting, some))
        header += [f"{data}: AUROC", f"least of {bad} overfitting", f"most of {len(some) - bad} healthy"]
        for row, (label, name) in zip(rows, names.items(), strict=True):
            have = [line for line in some if name in line["epochs"][0]]
            rises = [(max(_rises(line, name, windows.get(label, WINDOW))), is_overfitting(line)) for line in have]
            area = auroc([rise for rise, _ in rises], [kind for _, kind in rises])
            ends = [
                pick([rise for rise, kind in rises if kind == wanted], default=None)
                for pick, wanted in ((min, True), (max, False))
            ]
            few = f" ({len(have)})" if len(have) < len(some) else ""
            row.append("-" if area is None else f"{area:.2f}{few}")
            row += ["-" if end is None else f"{end:.3f}" for end in ends]
    return markdown(header, rows)
