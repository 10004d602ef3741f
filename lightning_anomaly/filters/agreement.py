"""Filters that single out the same samples, and samples that many filters single out.

A filter singles out the samples that it isolates or has in a rare cluster.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_anomaly.filters.layer_report import LayerReport

_SHARED = 0.5  # of the samples that two filters single out together; chance hardly gives as much
_FILTERS = 2_000  # compared, those that single out the fewest samples: memory grows with the square
_ONE_SIGMA = 0.841  # quantile one standard deviation above the mean
_CHANCE = 0.01  # probability that chance lists any sample, if filters choose theirs at random


def singled_out(layers: Mapping[str, LayerReport]) -> Tensor:
    """Return whether each filter of all layers singles out each sample `(F, N)`."""
    return torch.cat([layer.isolated | layer.outliers for layer in layers.values()])


def agreements(layers: Mapping[str, LayerReport]) -> list[tuple[list[int], list[int]]]:
    """List groups of filters that agree with one of them, numbered through all layers, and their samples.

    Two filters agree if at least half of the samples that either singles out are singled out by both. The samples of a
    group are those that at least half of its filters single out. The largest group comes first.
    """
    chosen = singled_out(layers) if layers else torch.zeros(0, 0, dtype=torch.bool, device="cpu")
    sizes = chosen.sum(1)
    numbers = sizes.nonzero()[:, 0]
    numbers = numbers[sizes[numbers].argsort(stable=True)[:_FILTERS]].sort().values
    members, sizes = chosen[numbers].float(), sizes[numbers]
    shared = members @ members.T
    agree = shared >= _SHARED * (sizes[:, None] + sizes - shared)
    counts, groups = agree.sum(1), []
    while len(counts) and counts.max() > 1:
        group = agree[counts.argmax()].nonzero()[:, 0]
        samples = (members[group].mean(0) >= _SHARED).nonzero()[:, 0]
        groups.append((numbers[group].tolist(), samples.tolist()))
        counts -= agree[:, group].sum(1)
        agree[group], agree[:, group], counts[group] = False, False, 0
    return groups


def most_singled_out(layers: Mapping[str, LayerReport]) -> dict[int, int]:
    """Return `{sample: number of filters that single it out}` where chance does not explain it, the largest first.

    If each filter chose as many samples at random, the number for one sample would hardly exceed a Poisson variable of
    the same mean. As filters depend on each other, its variance is that of most samples, if that is larger.
    """
    counts = singled_out(layers).sum(0).double()
    mean = counts.mean()
    spread = counts.quantile(_ONE_SIGMA) - counts.median()
    scale = (spread**2 / mean).nan_to_num().clamp(min=1)  # quasi-Poisson
    surprising = torch.special.gammainc((counts / scale).clamp(min=1), mean / scale) <= _CHANCE / len(counts)
    order = counts.argsort(descending=True, stable=True)
    return {sample: int(counts[sample]) for sample in order.tolist() if surprising[sample] and counts[sample]}
