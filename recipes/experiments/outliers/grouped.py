"""The outlier score learnt from one sample of each group of near-duplicates: so many alike cannot hide.

What is ordinary is learnt from all samples of a probe alike. A twentieth of them with the same damage makes a direction
of its own, in which they lie only a few standard deviations from the centre. Damaged images are more alike than
ordinary ones: with one sample of each neighbourhood a group counts once, and is found as a single sample would be. Of
ordinary samples, some are left out too, which changes little. Axes: `N` samples, `F` filters, `S` statistics, `V`
numbers that vary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_anomaly.scores import Ordinary, in_spreads

__all__ = ["apart", "grouped_scores"]


def grouped_scores(statistics: Tensor) -> Tensor:
    """Outlier scores `(N,)` of samples among themselves, from a layer's finite statistics `(N, F, S)`."""
    kept = apart(statistics)
    ordinary = Ordinary.fit(statistics[kept])
    if ordinary is None:
        return torch.zeros(len(statistics))
    lengths, _ = ordinary.lengths(statistics)
    return in_spreads(lengths, lengths[kept])


def apart(statistics: Tensor) -> Tensor:
    """Which samples `(N,)` have none before them, in random order, in their neighbourhood.

    Its radius is the median distance of a sample to its nearest one, in the normal scores of the ranks.
    """
    flat = statistics.flatten(1).float()
    flat = flat[:, (flat != flat[:1]).any(0)]
    vectors = _normal_scores(flat)
    distances = torch.cdist(vectors, vectors).fill_diagonal_(torch.inf)
    order = torch.randperm(len(flat), generator=torch.Generator().manual_seed(0))
    near = distances[order][:, order] <= distances.amin(1).median()
    kept = torch.empty(len(flat), dtype=torch.bool)
    kept[order] = ~near.tril(-1).any(1)
    return kept


def _normal_scores(flat: Tensor) -> Tensor:
    """Of each column of `(N, V)`, by mid-ranks."""
    columns = flat.T.contiguous()
    ordered = columns.sort(1).values
    ranks = torch.searchsorted(ordered, columns) + torch.searchsorted(ordered, columns, right=True)
    return torch.special.ndtri(ranks.T / (2 * len(flat)))
