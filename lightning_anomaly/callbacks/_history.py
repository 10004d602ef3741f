"""What a fit remembers of its validations, and how far the anomaly fraction has risen in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_anomaly.report import AnomalyReport

HOLD = 5  # validations that make a level: for so long a value has to stay before it counts, below and above
# The rise that callbacks act on by default. In simulations of 1,000 runs of 100 validations with 160 filters, each
# flagged with a constant probability, independently and anew at each validation, at 0.05, 0.1 and 0.3 no run is
# stopped, at 0.5 three are; with 22 filters at 0.05 five. A step from 0.05 to 0.25 is found within `PATIENCE`
# validations in every run, one to 0.15 in 7 of 10, and in 9 of 10 within twice as many. Where each filter keeps its
# verdict from one validation to the next with probability 0.8, 48 runs are stopped at 0.05, but 714 at 0.3, and one
# with a threshold of 0.15.
THRESHOLD = 0.05
PATIENCE = 6  # validations that a rise has to last until it stops a training


def rise(fractions: Sequence[float]) -> float:
    """The sustained rise of a series over the lowest level that it held before.

    With windows of `HOLD = 5` consecutive values `x`,

        rise = max(0, min(x[-5:]) - min over all earlier windows w of max(w)),

    where a window is earlier if it ends before the last five values begin. All of the last five values lie at least
    that far above all five of some earlier stretch. A single odd value, high or low, raises nothing; fluctuation around
    a constant is taken off at both ends instead of being averaged; there is no noise level to be estimated and no
    weight to be chosen. It is 0 while the series is flat or falls, and before there are ten values. A step shows from
    the fifth value after it on, as the height of the step.
    """
    earlier = [max(fractions[end - HOLD : end]) for end in range(HOLD, len(fractions) - HOLD + 1)]
    return max(0.0, min(fractions[-HOLD:]) - min(earlier)) if earlier else 0.0


def remember(
    history: list[dict[str, Any]],
    place: Mapping[str, int],
    values: dict[str, float],
    report: AnomalyReport | None,
    signal_layers: list[str] | None,
) -> None:
    """Add a validation, of which `values` are logged, and set their `rise`; None repeats the last report."""
    last: dict[str, Any] = history[-1] if history else {"signal": 0.0}
    signal, found, live = last["signal"], last.pop("anomaly_filters", {}), False
    if report is not None:
        found = report.anomaly_filters
        layers = signal_layers or list(report.layers)
        live = bool(report.live_in(layers)) and "few samples" not in report.notes
        if live:  # else the layers are not in use yet, say: no level from which a fraction could rise
            signal = report.fraction_in(layers)
            # What is only repeated must not look sustained.
            values["rise"] = rise([*(entry["signal"] for entry in history if entry["live"]), signal])
    metrics, analysed = dict(values), report is not None
    history.append(
        {**place, "metrics": metrics, "analysed": analysed, "live": live, "signal": signal, "anomaly_filters": found}
    )
