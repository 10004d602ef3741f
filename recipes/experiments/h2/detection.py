"""How conspicuous each sample is by what a network makes of it, and how well that tells the samples that do not belong.

Every score is larger the more conspicuous a sample is. Axes: `N` samples, `M` reference samples, `D` features, `C`
classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from recipes.experiments.common.ranks import auroc, average_precision

__all__ = ["SCORES", "detection", "feature_scores", "margins", "output_scores"]

# Of how many anomaly filters a sample is an outlier, and what it is compared with.
SCORES = ("votes", "confidence", "loss", "gradient", "el2n", "aum", "neighbour", "mahalanobis")
_NEIGHBOUR = 5  # the distance to this one of the nearest reference samples


def output_scores(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Scores `(N,)` from logits `(N, C)` and the labels that the network was given `(N,)`.

    Returns:
        `confidence`, 1 minus the largest probability (Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and
        Out-of-Distribution Examples in Neural Networks", 2017); `loss`, the cross-entropy (nats); `el2n`, the norm of
        the error vector (Paul, Ganguli and Dziugaite, "Deep Learning on a Data Diet", 2021).
    """
    probabilities = logits.double().softmax(1)
    right = functional.one_hot(labels, logits.shape[1])
    return {
        "confidence": 1 - probabilities.max(1).values,
        "loss": functional.cross_entropy(logits.double(), labels, reduction="none"),
        "el2n": (probabilities - right).norm(dim=1),
    }


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """The given label's logit minus the largest other one `(N,)`.

    Averaged over the epochs so far this is the area under the margin; wrong labels have small ones (Pleiss et al.,
    "Identifying Mislabeled Data using the Area Under the Margin Ranking", 2020).
    """
    given = functional.one_hot(labels, logits.shape[1]).bool()
    return logits[given] - logits.masked_fill(given, -torch.inf).max(1).values


def feature_scores(
    features: Tensor, reference: Tensor, reference_labels: Tensor, *, own: bool = False
) -> dict[str, Tensor]:
    """Distances `(N,)` of features `(N, D)` from those of reference samples `(M, D)` with labels `(M,)`.

    With `own` the features are those of the reference, and none is its own neighbour.

    Returns:
        `neighbour`, the distance to the fifth nearest one after scaling every sample to length 1 (Sun et al., "Out-of-
        Distribution Detection with Deep Nearest Neighbors", 2022); `mahalanobis`, the squared distance to the nearest
        class mean under the covariance that the classes share (Lee et al., "A Simple Unified Framework for Detecting
        Out-of-Distribution Samples and Adversarial Attacks", 2018), to which a thousandth of the mean variance is
        added, as some features are always 0.
    """
    features, reference = features.double(), reference.double()
    distances = torch.cdist(functional.normalize(features), functional.normalize(reference))
    if own:
        distances.fill_diagonal_(torch.inf)
    neighbour = distances.kthvalue(min(_NEIGHBOUR, len(reference) - own), dim=1).values
    members = functional.one_hot(reference_labels).double()
    members = members[:, members.sum(0) > 0]
    means = (members / members.sum(0)).T @ reference
    centred = reference - members @ means
    covariance = centred.T @ centred / len(reference)
    ridge = covariance.diagonal().mean().clamp_min(1e-12) * 1e-3
    factor = torch.linalg.cholesky(covariance + ridge * torch.eye(len(covariance), dtype=torch.float64))
    white, white_means = (torch.linalg.solve_triangular(factor, x.T, upper=False).T for x in (features, means))
    return {"neighbour": neighbour, "mahalanobis": torch.cdist(white, white_means).square().min(1).values}


def detection(truth: Tensor, scores: Mapping[str, Tensor | None]) -> dict[str, list[float | None]]:
    """How well scores `(N,)` find the samples that truth, bool `(N,)`, names.

    Returns:
        `auroc` and `precision` (average precision) in the order of `SCORES`, None for a score that is None.
    """
    found: dict[str, list[float | None]] = {}
    for name, measure in (("auroc", auroc), ("precision", average_precision)):
        values = (scores[score] for score in SCORES)
        found[name] = [None if value is None else round(measure(truth, value), 3) for value in values]
    return found
