"""How conspicuous each sample is, by a network's output, its features or the pixels, and how well that is right.

Every score is larger the more conspicuous a sample is. Of features and pixels the training images are the reference and
never the probe itself: with more features than images, a distance from the probe's own mean finds whatever was not
there when it was taken. Axes: `N` samples, `M` reference samples, `D` features or pixels, `C` classes.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from sklearn.ensemble import IsolationForest
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.functional import to_pil_image

__all__ = ["auroc", "average_precision", "cleanvision_scores", "detection", "false_positives", "feature_scores",
           "forest_scores", "margins", "output_scores", "pixel_scores"]  # fmt: skip

_NEIGHBOUR = 5  # the distance to this one of the nearest reference samples
_COMPONENTS = 50  # of pixels
# CleanVision calls an image an issue if its score is below the threshold: its own values.
_THRESHOLDS = {"dark": 0.32, "light": 0.05, "blurry": 0.29, "low_information": 0.3}


def output_scores(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Scores `(N,)` from logits `(N, C)` and the labels that the network was given `(N,)`.

    Returns:
        `confidence`, 1 minus the largest probability (Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and
        Out-of-Distribution Examples in Neural Networks", 2017); `loss`, the cross-entropy (nats); `el2n`, the norm of
        the error vector (Paul, Ganguli and Dziugaite, "Deep Learning on a Data Diet", 2021); `energy`, minus the
        logarithm of the sum of the logits' exponentials (Liu et al., "Energy-based Out-of-distribution Detection",
        2020).
    """
    logits = logits.double()
    probabilities = logits.softmax(1)
    return {
        "confidence": 1 - probabilities.max(1).values,
        "loss": functional.cross_entropy(logits, labels, reduction="none"),
        "el2n": (probabilities - functional.one_hot(labels, logits.shape[1])).norm(dim=1),
        "energy": -logits.logsumexp(1),
    }


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """The given label's logit minus the largest other one `(N,)`.

    Averaged over the epochs so far this is the area under the margin; wrong labels have small ones (Pleiss et al.,
    "Identifying Mislabeled Data using the Area Under the Margin Ranking", 2020).
    """
    given = functional.one_hot(labels, logits.shape[1]).bool()
    return logits[given] - logits.masked_fill(given, -torch.inf).max(1).values


def _nearest(samples: Tensor, reference: Tensor, own: bool) -> Tensor:
    """Distance `(N,)` to the fifth nearest reference sample; with `own` these are the samples themselves."""
    distances = torch.cdist(samples, reference)
    if own:
        distances.fill_diagonal_(torch.inf)
    return distances.kthvalue(min(_NEIGHBOUR, len(reference) - own), dim=1).values


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
    members = functional.one_hot(reference_labels).double()
    members = members[:, members.sum(0) > 0]
    means = (members / members.sum(0)).T @ reference
    centred = reference - members @ means
    covariance = centred.T @ centred / len(reference)
    ridge = covariance.diagonal().mean().clamp_min(1e-12) * 1e-3
    factor = torch.linalg.cholesky(covariance + ridge * torch.eye(len(covariance), dtype=torch.float64))
    white, white_means = (torch.linalg.solve_triangular(factor, x.T, upper=False).T for x in (features, means))
    return {
        "neighbour": _nearest(functional.normalize(features), functional.normalize(reference), own),
        "mahalanobis": torch.cdist(white, white_means).square().min(1).values,
    }


def forest_scores(features: Tensor, reference: Tensor) -> Tensor:
    """Scores `(N,)` of scikit-learn's isolation forest with its defaults."""
    forest = IsolationForest(random_state=0).fit(reference.numpy())
    return torch.from_numpy(-forest.score_samples(features.numpy()))


def pixel_scores(images: Tensor, reference: Tensor, *, own: bool = False) -> dict[str, Tensor]:
    """Scores `(N,)` by the pixels of normalised images `(N, C, H, W)`, beside training images `(M, C, H, W)`.

    Returns:
        `pixel neighbour`, the distance to the fifth nearest one; `pixel residual`, the squared distance from the
        reference's first 50 principal components.
    """
    pixels, others = images.flatten(1), reference.flatten(1)
    mean = others.mean(0)
    components = min(_COMPONENTS, len(others) - 1, others.shape[1] - 1)
    axes = torch.linalg.eigh((others - mean).T @ (others - mean)).eigenvectors[:, -components:]
    centred = pixels - mean
    residual = (centred - centred @ axes @ axes.T).square().sum(1)
    return {"pixel neighbour": _nearest(pixels, others, own), "pixel residual": residual}


def cleanvision_scores(images: Tensor) -> Tensor | None:
    """CleanVision's score `(N,)` of images uint8 `(N, C, H, W)`; None where it is not installed.

    It has one for each kind of issue, from 1 down to 0, and a threshold below which an image has that issue. Ours is
    minus the smallest ratio of a score to its threshold, so that the order is that in which images become issues.
    """
    try:
        from cleanvision import Imagelab
    except ImportError:
        return None
    pictures = [(to_pil_image(image),) for image in images]
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # its bars cannot be turned off
        warnings.simplefilter("ignore")  # those of its own dependencies
        lab = Imagelab(torchvision_dataset=pictures, verbose=False)
        lab.find_issues({name: {"threshold": threshold} for name, threshold in _THRESHOLDS.items()}, 1, verbose=False)
    ratios = [
        torch.from_numpy(lab.issues[f"{name}_score"].to_numpy(dtype="float64", copy=True)) / threshold
        for name, threshold in _THRESHOLDS.items()
    ]
    return -torch.stack(ratios).amin(0)


def auroc(truth: Tensor, values: Tensor) -> float:
    """Area under the ROC curve: how often a sample of truth, bool `(N,)`, has a larger value than another one."""
    chosen, others = values[truth][:, None], values[~truth]
    return ((chosen > others).double() + (chosen == others).double() / 2).mean().item()


def average_precision(truth: Tensor, values: Tensor) -> float:
    """Mean over the samples of truth, bool `(N,)`, of the precision among all values that are as large or larger."""
    chosen = values[truth]
    found = (chosen >= chosen[:, None]).sum(1).double()
    return (found / (values >= chosen[:, None]).sum(1)).mean().item()


def false_positives(truth: Tensor, values: Tensor, recall: float = 0.95) -> float:
    """Share of the other samples that come with the first 95% of those of truth, bool `(N,)`, or before."""
    chosen = values[truth].sort(descending=True).values
    least = chosen[-int(-recall * len(chosen) // 1) - 1]
    return (values[~truth] >= least).double().mean().item()


_MEASURES = {"auroc": auroc, "precision": average_precision, "false_positives": false_positives}


def detection(
    truth: Tensor, scores: Mapping[str, Tensor | None], names: Sequence[str], measures: Sequence[str], digits: int
) -> dict[str, Any]:
    """How well scores `(N,)` find the samples that truth, bool `(N,)`, names.

    Returns:
        The number of these, `planted`, and by measure a value for each of the names, None for a score that is missing.
    """
    found: dict[str, Any] = {"planted": int(truth.sum())}
    for measure in measures:
        values = [scores.get(name) for name in names]
        found[measure] = [None if own is None else round(_MEASURES[measure](truth, own), digits) for own in values]
    return found
