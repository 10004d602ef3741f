"""Outlier samples against the rest: ratios with intervals, of gradient norms and of losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_anomaly import AnomalyReport
from recipes.experiments.common.ranks import rank_correlation

__all__ = ["gradient_ratios", "means", "medians", "ratio_with_interval", "vote_count"]


def vote_count(report: AnomalyReport) -> Tensor:
    """Of how many anomaly filters each sample is an outlier `(N,)`."""
    return torch.tensor(report.outlier_samples)


def means(values: Tensor) -> Tensor:
    """Mean of each row of values `(R, N)`: `(R,)`."""
    return values.mean(1)


def medians(values: Tensor) -> Tensor:
    """Median of each row of values `(R, N)`, the lower of two: `(R,)`."""
    return values.median(1).values


def ratio_with_interval(
    group: Tensor, rest: Tensor, reduce: Callable[[Tensor], Tensor] = means, draws: int = 500
) -> list[float]:
    """Ratio of the means (or medians) of two groups of values, and the bounds of its 95% bootstrap interval.

    The percentile interval of Efron, "Bootstrap Methods: Another Look at the Jackknife" (1979): both groups are drawn
    anew with replacement, always in the same way.

    Args:
        group: Values `(n,)`.
        rest: Values `(m,)`.
        reduce: Gives one number for each row, `means` or `medians`.
        draws: Draws.

    Returns:
        Ratio, lower and upper bound; not finite where the rest's is 0.
    """
    generator = torch.Generator().manual_seed(0)
    resampled = [
        reduce(values[torch.randint(len(values), (draws, len(values)), generator=generator)].double())
        for values in (group, rest)
    ]
    bounds = torch.quantile(resampled[0] / resampled[1], torch.tensor([0.025, 0.975], dtype=torch.float64))
    ratio = reduce(group.double()[None]) / reduce(rest.double()[None])
    return [ratio.item(), *bounds.tolist()]


def gradient_ratios(report: AnomalyReport, layers: dict[str, Tensor], losses: Tensor) -> dict[str, Any]:
    """Gradient norms of outlier samples against those of the rest, for the outliers of every layer and of any.

    Args:
        report: Of `N` samples.
        layers: Their gradient norms `(N,)` in each layer of the network.
        losses: Their losses `(N,)` (nats).

    Returns:
        `spearman` of votes and overall norm; for the group "all" and for each convolution the number `n` of outlier
        samples, the ratio of `mean` and `median` overall norms with its interval, and likewise of the mean `loss` and
        of the mean norms of the layer's `own` gradients. No ratios where a group has fewer than 3 samples.
    """
    overall = torch.stack(list(layers.values())).norm(dim=0)
    votes = vote_count(report)
    groups = {"all": votes > 0, **{name: layer.outliers.any(0) for name, layer in report.layers.items()}}
    found: dict[str, Any] = {"spearman": rank_correlation(votes.double(), overall)}
    for name, group in groups.items():
        found[name] = {"n": int(group.sum())}
        if 3 <= group.sum() <= len(group) - 3:
            found[name]["mean"] = ratio_with_interval(overall[group], overall[~group], means)
            found[name]["median"] = ratio_with_interval(overall[group], overall[~group], medians)
            found[name]["loss"] = ratio_with_interval(losses[group], losses[~group], means)
            if name in layers:
                found[name]["own"] = ratio_with_interval(layers[name][group], layers[name][~group], means)
    return found
