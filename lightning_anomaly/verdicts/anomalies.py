"""Which samples are outliers of a filter, and with them which filters are anomalies."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from lightning_anomaly.clustering.engine import SAME
from lightning_anomaly.clustering.mixtures import Clustering, first_largest

_SHARE = 2 / 3  # of the votes, for `rule="index"`; with half of them verdicts are less stable, see `docs/method.md`

NORMAL, ANOMALY, DEAD, NONFINITE = "normal", "anomaly", "dead", "nonfinite"
LIVE = (NORMAL, ANOMALY)  # filters that could be clustered, see `Reduction.live`


def rare_samples(labels: Tensor, rare_fraction: float) -> Tensor:
    """Whether each sample is in a rare cluster `(..., N)`: one with at most `rare_fraction` of the samples."""
    # Tolerates the rounding of rare_fraction * N only; a cluster of all the samples is not rare as the fraction is < 1.
    return _own_sizes(labels) <= rare_fraction * labels.shape[-1] * (1 + 1e-12)


def _own_sizes(labels: Tensor) -> Tensor:
    """How many samples are in the cluster of each sample `(..., N)`."""
    clusters = int(labels.max()) + 1 if labels.numel() else 1
    sizes = torch.zeros(*labels.shape[:-1], clusters, dtype=torch.int64, device=labels.device)
    return sizes.scatter_add_(-1, labels, torch.ones_like(labels)).gather(-1, labels)


def outlier_samples(clustering: Clustering, rare_fraction: float, rule: str) -> Tensor:
    """Whether each sample is an outlier of each filter `(F, N)`; a filter that has any is an anomaly filter.

    With the rule `"index"` it is rare in clusterings that have more than two thirds of the sum of the Calinski-Harabasz
    indices, with `"best"` in the one with the largest.
    """
    rare, index = rare_samples(clustering.labels, rare_fraction), clustering.calinski_harabasz
    if rule == "best":
        votes = one_hot(first_largest(index), index.shape[1]).to(index)
    else:  # in units of the largest, so that no sum is too large; where none is defined nothing is rare
        votes = index / index.amax(1, keepdim=True).clamp(min=torch.finfo(index.dtype).tiny)
    return (rare * votes[:, :, None]).sum(1) > (_SHARE + SAME) * votes.sum(1, keepdim=True)


def verdicts_of(flagged: Tensor, constant: Tensor, finite: Tensor) -> tuple[str, ...]:
    """The verdict on each filter: whether it has outlier samples, and `Reduction.constant` and `finite`, all `(F,)`."""
    return tuple(
        NONFINITE if not known else DEAD if same else ANOMALY if found else NORMAL
        for found, same, known in zip(flagged.tolist(), constant.tolist(), finite.tolist(), strict=True)
    )


def shown_clustering(clustering: Clustering, outliers: Tensor, rare_fraction: float) -> Tensor:
    """The clustering that shows the verdict best: position `(F,)`.

    That with the largest Calinski-Harabasz index; for an anomaly filter among those in which all its outliers are rare,
    or, if there is none, in which most of them are.
    """
    agreeing = (rare_samples(clustering.labels, rare_fraction) & outliers[:, None]).sum(2)
    candidates = agreeing == agreeing.amax(1, keepdim=True)
    return first_largest(torch.where(candidates, clustering.calinski_harabasz, -1.0))


def smallest_share(labels: Tensor) -> Tensor:
    """Share of the samples in the smallest occupied cluster `(...)` of labels `(..., N)`."""
    return _own_sizes(labels).amin(-1).double() / labels.shape[-1]
