"""Choose the filters to mask: those flagged in enough reports."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from lightning_anomaly.filters.anomaly_report import AnomalyReport

Summary = dict[str, list[int]]  # a report in plain values: `{layer: [outlier samples of filter 0, of filter 1, ...]}`


def summarize_report(report: AnomalyReport) -> Summary:
    """Count the outlier samples of each filter; only anomaly filters have any."""
    return {name: layer.outliers.sum(1).tolist() for name, layer in report.layers.items()}


def choose_filters(
    summaries: Sequence[Summary], masked: Mapping[str, Collection[int]], *, min_votes: int, max_fraction: float
) -> dict[str, list[int]]:
    """Choose filters to mask, `{layer: [filter, ...]}`, by votes of reports, then outlier samples, then index.

    At most `max_fraction` of a layer is masked, including the filters masked before, and never all of it.
    """
    chosen: dict[str, list[int]] = {}
    for layer, last in (summaries[-1] if summaries else {}).items():
        size, masked_before = len(last), set(masked.get(layer, ()))
        columns = [summary[layer] for summary in summaries if layer in summary]
        votes = [sum(column[i] > 0 for column in columns) for i in range(size)]
        outliers = [sum(column[i] for column in columns) for i in range(size)]
        flagged = [i for i in range(size) if votes[i] >= min_votes and i not in masked_before]
        flagged.sort(key=lambda i: (-votes[i], -outliers[i], i))
        room = max(0, min(int(max_fraction * size), size - 1) - len(masked_before))
        if flagged[:room]:
            chosen[layer] = flagged[:room]
    return chosen
