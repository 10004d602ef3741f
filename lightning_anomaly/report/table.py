"""A report as a table: layers in rows for a console, filters in columns for pandas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_anomaly.verdicts.anomalies import ANOMALY, DEAD
from lightning_anomaly.verdicts.layer_report import LayerReport

_HEADING = ("layer", "filters", "anomaly", "isolated", "dead", "sparsity", "maps", "anomaly filters (outlier samples)")
_COLUMNS = ("n_components", "calinski_harabasz", "smallest_share", "outliers", "isolated", "explained", "sparsity")


def layer_rows(layers: Mapping[str, LayerReport]) -> list[tuple[str, ...]]:
    """Describe each layer in a row, below a heading."""
    rows: list[tuple[str, ...]] = [_HEADING]
    for name, layer in layers.items():
        anomalies = layer.filters(ANOMALY)
        first = [f"{index} ({len(layer.outliers_of(index))})" for index in anomalies[:6]]
        counts = len(layer.verdicts), len(anomalies), len(layer.isolated_filters), len(layer.filters(DEAD))
        sparsity = f"{layer.sparsity.mean().item():.2f}"
        size, analyzed = ("x".join(map(str, sides)) or "1" for sides in (layer.map_size, layer.analyzed_size))
        maps = size if size == analyzed else f"{size} pooled to {analyzed}"
        listing = ", ".join(first + ["..."] * (len(anomalies) > 6))
        rows.append((name or "(the model)", *map(str, counts), sparsity, maps, listing))
    return rows


def filter_columns(layers: Mapping[str, LayerReport]) -> dict[str, list[Any]]:
    """Collect the columns of `AnomalyReport.to_frame`, with an entry for each filter."""
    columns: dict[str, list[Any]] = {key: [] for key in ("layer", "filter", "verdict", *_COLUMNS)}
    for name, layer in layers.items():
        columns["layer"] += [name] * len(layer.verdicts)
        columns["filter"] += range(len(layer.verdicts))
        columns["verdict"] += layer.verdicts
        for key in _COLUMNS:
            values = getattr(layer, key)
            columns[key] += (values.sum(1) if values.ndim == 2 else values).tolist()
    return columns
