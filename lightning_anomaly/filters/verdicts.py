"""Find the outlier samples of each filter, and with them the anomaly filters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from lightning_anomaly.filters.layer_report import ANOMALY, DEAD, NONFINITE, NORMAL

if TYPE_CHECKING:  # as `mixtures` imports numba, which takes long
    from lightning_anomaly.filters.mixtures import Clustering

_SAME = 1e-9  # relative difference up to which values are equal; absolute for values below 1
_SHARE = 2 / 3  # of the votes, for `rule="votes"`; half of them would be less stable, see `docs/method.md`


def rare_samples(labels: Tensor, rare_fraction: float) -> Tensor:
    """Find the samples in rare clusters, those with at most `rare_fraction` of the samples; bool `(..., N)`."""
    # The tolerance covers only the rounding of the product.
    return _cluster_sizes(labels) <= rare_fraction * labels.shape[-1] * (1 + 1e-12)


def _cluster_sizes(labels: Tensor) -> Tensor:
    """Count the samples in the cluster of each sample `(..., N)`."""
    clusters = int(labels.max()) + 1 if labels.numel() else 1
    sizes = torch.zeros(*labels.shape[:-1], clusters, dtype=torch.int64, device=labels.device)
    return sizes.scatter_add_(-1, labels, torch.ones_like(labels)).gather(-1, labels)


def outlier_samples(clustering: Clustering, rare_fraction: float, rule: str) -> Tensor:
    """Find the outlier samples of each filter, bool `(F, N)`; a filter with any is an anomaly filter.

    By the rule `"votes"`, a sample is an outlier if it is rare in clusterings with more than two thirds of the sum of
    the Calinski-Harabasz indices; by `"best"`, if it is rare in the clustering with the largest index.
    """
    rare, index = rare_samples(clustering.labels, rare_fraction), clustering.calinski_harabasz
    if rule == "best":
        votes = one_hot(first_largest(index), index.shape[1]).to(index)
    else:  # relative to the largest, so that no sum overflows; 0 if there is no index
        votes = index / index.amax(1, keepdim=True).clamp(min=torch.finfo(index.dtype).tiny)
    return (rare * votes[:, :, None]).sum(1) > (_SHARE + _SAME) * votes.sum(1, keepdim=True)


def verdicts_of(flagged: Tensor, constant: Tensor, finite: Tensor) -> tuple[str, ...]:
    """Return the verdict on each filter; `flagged` filters have outlier samples, for the others see `Reduction`."""
    return tuple(
        NONFINITE if not is_finite else DEAD if is_constant else ANOMALY if is_flagged else NORMAL
        for is_flagged, is_constant, is_finite in zip(flagged.tolist(), constant.tolist(), finite.tolist(), strict=True)
    )


def shown_clustering(clustering: Clustering, outliers: Tensor, rare_fraction: float) -> Tensor:
    """Choose the clustering to show for each filter, as its position `(F,)`.

    It has the largest index among the clusterings in which the most outliers of the filter are rare.
    """
    agreeing = (rare_samples(clustering.labels, rare_fraction) & outliers[:, None]).sum(2)
    candidates = agreeing == agreeing.amax(1, keepdim=True)
    return first_largest(torch.where(candidates, clustering.calinski_harabasz, -1.0))


def smallest_share(labels: Tensor) -> Tensor:
    """Compute the share `(...)` of the samples in the smallest occupied cluster, from labels `(..., N)`."""
    return _cluster_sizes(labels).amin(-1).double() / labels.shape[-1]


def first_largest(values: Tensor) -> Tensor:
    """Find the first position of the largest value along the last axis, up to rounding.

    Equal clusterings with other labels have values that differ by rounding, which should not affect the choice.
    """
    largest = values.amax(-1, keepdim=True)
    return (values >= largest - _SAME * largest.abs().clamp(min=1)).int().argmax(-1)
