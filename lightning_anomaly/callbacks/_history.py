"""What a fit remembers of its validations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_anomaly.report import AnomalyReport
from lightning_anomaly.stopping import rise


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
