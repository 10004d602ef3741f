"""How conspicuous each sample is, by a network's output or its features, and how well that is right.

Every score is larger the more conspicuous a sample is. Of features the training images are the reference and never the
probe itself: with more features than images, a distance from the probe's own mean finds whatever was not there when it
was taken. Axes: `N` samples, `M` reference samples, `D` features, `C` classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.nn import functional

_NEIGHBOUR = 5  # the distance to this one of the nearest reference samples


def output_scores(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Scores `(N,)` from logits `(N, C)` and the labels that the network was given `(N,)`.

    Returns:
        `confidence`, 1 minus the largest probability (Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and
        Out-of-Distribution Examples in Neural Networks", 2017); `loss`, the cross-entropy (nats); `el2n`, the norm of
        the error vector (Paul, Ganguli and Dziugaite, "Deep Learning on a Data Diet", 2021).
    """
    logits = logits.double()
    probabilities = logits.softmax(1)
    return {
        "confidence": 1 - probabilities.max(1).values,
        "loss": functional.cross_entropy(logits, labels, reduction="none"),
        "el2n": (probabilities - functional.one_hot(labels, logits.shape[1])).norm(dim=1),
    }


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """The given label's logit minus the largest other one `(N,)`.

    Averaged over the epochs so far this is the area under the margin; wrong labels have small ones (Pleiss et al.,
    "Identifying Mislabeled Data using the Area Under the Margin Ranking", 2020).
    """
    given = functional.one_hot(labels, logits.shape[1]).bool()
    return logits[given] - logits.masked_fill(given, -torch.inf).max(1).values


def feature_scores(features: Tensor, reference: Tensor, reference_labels: Tensor) -> dict[str, Tensor]:
    """Distances `(N,)` of features `(N, D)` from those of reference samples `(M, D)` with labels `(M,)`.

    Returns:
        `neighbour`, the distance to the fifth nearest one after scaling every sample to length 1 (Sun et al., "Out-of-
        Distribution Detection with Deep Nearest Neighbors", 2022); `mahalanobis`, the squared distance to the nearest
        class mean under the covariance that the classes share (Lee et al., "A Simple Unified Framework for Detecting
        Out-of-Distribution Samples and Adversarial Attacks", 2018), to which a thousandth of the mean variance is
        added, as some features are always 0.
    """
    features, reference = features.double(), reference.double()
    members = functional.one_hot(reference_labels).double()
    members = members[:, members.sum(0) > 0]
    means = (members / members.sum(0)).T @ reference
    centred = reference - members @ means
    covariance = centred.T @ centred / len(reference)
    ridge = covariance.diagonal().mean().clamp_min(1e-12) * 1e-3
    factor = torch.linalg.cholesky(covariance + ridge * torch.eye(len(covariance), dtype=torch.float64))
    white, white_means = (torch.linalg.solve_triangular(factor, x.T, upper=False).T for x in (features, means))
    distances = torch.cdist(functional.normalize(features), functional.normalize(reference))
    return {
        "neighbour": distances.kthvalue(min(_NEIGHBOUR, len(reference)), dim=1).values,
        "mahalanobis": torch.cdist(white, white_means).square().min(1).values,
    }


def auroc(truth: Tensor, values: Tensor) -> float:
    """Area under the ROC curve: how often a sample of truth, bool `(N,)`, has a larger value than another one."""
    chosen, others = values[truth][:, None], values[~truth]
    return ((chosen > others).double() + (chosen == others).double() / 2).mean().item()


def detection(truth: Tensor, scores: Mapping[str, Tensor | None], names: Sequence[str]) -> dict[str, Any]:
    """How well scores `(N,)` find the samples that truth, bool `(N,)`, names.

    Returns:
        The number of these, `planted`, and by measure a value for each of the names, None for a score that is missing.
    """
    found: dict[str, Any] = {"planted": int(truth.sum())}
    for name, measure in (("auroc", auroc), ("precision", average_precision_score)):
        values = [scores.get(score) for score in names]
        found[name] = [None if own is None else round(float(measure(truth, own)), 3) for own in values]
    return found
