"""A report as a table, with layers in rows, and in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from lightning_anomaly.filters.layer_report import ANOMALY, CLUSTERED, DEAD, NONFINITE, LayerReport

_MOST_ROWS = 12  # layers in a printed table
_SPARSE = 0.7  # from this share of zeros on, many filters are flagged without any odd image, see `docs/method.md`

_HEADING = ("layer", "filters", "anomaly", "isolated", "dead", "sparsity", "maps", "anomaly filters (outlier samples)")


def layer_table_rows(layers: Mapping[str, LayerReport], measured: bool) -> list[tuple[str, ...]]:
    """Describe each layer in a row, below a heading; of more than twelve, those with the most anomaly filters.

    Where nothing was `measured`, a dash stands for a count of anomaly or isolated filters.
    """
    rows: list[tuple[str, ...]] = [_HEADING]
    shown = set(layers)
    if len(layers) > _MOST_ROWS:
        shown = {*sorted(layers, key=lambda name: -len(layers[name].filters(ANOMALY)))[: _MOST_ROWS - 1]}
    for name in [name for name in layers if name in shown]:
        layer = layers[name]
        anomalies = layer.filters(ANOMALY)
        first = [f"{index} ({len(layer.outliers_of(index))})" for index in anomalies[:6]]
        size, analyzed = ("x".join(map(str, sides)) or "1" for sides in (layer.map_size, layer.analyzed_size))
        maps = size if size == analyzed else f"{size} pooled to {analyzed}"
        if len(anomalies) > 6:
            first.append("...")
        rows.append((name or "(the model)", *_layer_table_counts([layer], measured), maps, ", ".join(first)))
    if others := [layer for name, layer in layers.items() if name not in shown]:
        rows.append((f"{len(others)} others", *_layer_table_counts(others, measured), "", ""))
    return rows


def _layer_table_counts(layers: Sequence[LayerReport], measured: bool) -> list[str]:
    """Count all, anomaly, isolated and dead filters of some layers, and compute their mean sparsity."""
    kinds = ((layer.verdicts, layer.filters(ANOMALY), layer.isolated_filters, layer.filters(DEAD)) for layer in layers)
    total, anomalies, isolated, dead = (str(sum(map(len, kind))) for kind in zip(*kinds, strict=True))
    if not (measured and any(verdict != NONFINITE for layer in layers for verdict in layer.verdicts)):
        anomalies = isolated = "-"
    return [total, anomalies, isolated, dead, f"{torch.cat([layer.sparsity for layer in layers]).mean().item():.2f}"]


def layer_table_sentences(layers: Mapping[str, LayerReport]) -> list[str]:
    """Say how many filters isolate a sample, and how many are flagged, of sparse filters and of others."""
    verdicts = {True: list[str](), False: list[str]()}  # on filters that were clustered, sparse ones and others
    for layer in layers.values():
        for verdict, sparsity in zip(layer.verdicts, layer.sparsity.tolist(), strict=True):
            if verdict in CLUSTERED:
                verdicts[sparsity >= _SPARSE].append(verdict)
    clustered = verdicts[True] + verdicts[False]
    share, among_sparse, among_others = (
        f"{100 * part.count(ANOMALY) / max(1, len(part)):.1f}%" for part in (clustered, *verdicts.values())
    )
    isolating = sum(len(layer.isolated_filters) for layer in layers.values())
    return [
        f"{isolating} filters isolate a sample; chance gives up to {math.ceil(0.01 * len(clustered))}",
        f"anomaly filters: {clustered.count(ANOMALY)}, {share} of those with varying maps: {among_sparse} where at "
        f"least {100 * _SPARSE:.0f}% of the values are zero, as sparsity alone makes rare clusters, {among_others} "
        "elsewhere",
    ]
