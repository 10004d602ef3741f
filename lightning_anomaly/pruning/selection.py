"""Which filters to mask: those flagged in enough reports, and as many others for comparison."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from lightning_anomaly.pruning.filter_rows import filters_first
from lightning_anomaly.report import AnomalyReport
from lightning_anomaly.verdicts.anomalies import LIVE

Criterion = Literal["anomaly", "random", "l1"]

# One report in plain values: `{layer: [outlier samples of filter 0, of filter 1, ...]}`, where 0 is a normal filter and
# -1 one that could not be clustered, because it is dead or has NaN.
Summary = dict[str, list[int]]


def summarize(report: AnomalyReport) -> Summary:
    """Reduce a report to what the choice needs."""
    summary: Summary = {}
    for name, layer in report.layers.items():
        outliers: list[int] = layer.outliers.sum(1).tolist()
        live = [verdict in LIVE for verdict in layer.verdicts]
        summary[name] = [count if alive else -1 for count, alive in zip(outliers, live, strict=True)]
    return summary


def choose_filters(
    summaries: Sequence[Summary],
    masked: Mapping[str, Collection[int]],
    *,
    min_votes: int,
    max_fraction: float,
) -> dict[str, list[int]]:
    """Choose the anomaly filters to mask: `{layer: [filter, ...]}`, worst first, layers without any left out.

    A filter's votes are the last reports that flag it. Worse is a filter with more votes; among equals one with more
    outlier samples, summed over the reports; among equals again the one with the smaller number, so that there is one
    answer. In all, those masked already included, at most `max_fraction` of a layer is masked, and never all of it.

    Examples:
        >>> reports = [{"conv": [0, 2, 0, 1]}, {"conv": [0, 4, 3, 1]}]
        >>> choose_filters(reports, {}, min_votes=2, max_fraction=0.5)
        {'conv': [1, 3]}
        >>> choose_filters(reports, {"conv": [0]}, min_votes=1, max_fraction=0.5)
        {'conv': [1]}
    """
    chosen: dict[str, list[int]] = {}
    for layer, last in (summaries[-1] if summaries else {}).items():
        size, gone = len(last), set(masked.get(layer, ()))
        columns = [summary[layer] for summary in summaries if layer in summary]
        votes = [sum(column[i] > 0 for column in columns) for i in range(size)]
        outliers = [sum(max(0, column[i]) for column in columns) for i in range(size)]
        flagged = [i for i in range(size) if votes[i] >= min_votes and i not in gone]
        flagged.sort(key=lambda i: (-votes[i], -outliers[i], i))
        room = min(int(max_fraction * size), size - 1) - len(gone)
        if flagged[: max(0, room)]:
            chosen[layer] = flagged[:room]
    return chosen


def choose_others(
    chosen: Mapping[str, Sequence[int]],
    last: Summary,
    masked: Mapping[str, Collection[int]],
    norms: Mapping[str, Sequence[float]] | None,
    seed: str,
) -> dict[str, list[int]]:
    """Choose as many filters of each layer as `choose_filters` chose, by a criterion that knows nothing of outliers.

    They come from the filters that could have been chosen: not masked, and neither dead nor nonfinite in the last
    report. Masking a dead filter changes nothing and would be no comparison; only where the live ones do not suffice
    are dead ones taken too. Filters with the smallest `norms` come first; without norms a random draw decides.
    """
    others: dict[str, list[int]] = {}
    for layer, filters in chosen.items():
        candidates = [i for i in range(len(last[layer])) if i not in set(masked.get(layer, ()))]
        # Seeded by the layer's name as well: what is drawn there does not depend on the other layers.
        generator = random.Random(f"{seed} {layer}")
        order = [generator.random() for _ in last[layer]] if norms is None else norms[layer]
        candidates.sort(key=lambda i: (last[layer][i] < 0, order[i], i))
        others[layer] = candidates[: len(filters)]
    return others


def filter_norms(conv: Any) -> list[float]:
    """Sum the absolute weights of each filter of a convolution of any kind."""
    norms: list[float] = filters_first(conv).detach().cpu().double().abs().flatten(1).sum(1).tolist()
    return norms
