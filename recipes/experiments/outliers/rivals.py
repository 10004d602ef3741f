"""What else scores images that do not belong: by the network's output, by its features, by the pixels alone.

A score is larger the less an image belongs. Of features and pixels the training images are the reference and never the
probe itself: with more features than images, a distance from the probe's own mean finds whatever was not there when it
was taken. Axes: `N` images, `M` training images, `D` features or pixels.
"""

from __future__ import annotations

import contextlib
import io
import warnings

import torch
from sklearn.ensemble import IsolationForest
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from recipes.experiments.h2.detection import feature_scores, output_scores

__all__ = ["RIVALS", "cleanvision_scores", "network_scores", "pixel_scores"]

RIVALS = ("confidence", "loss", "energy", "neighbour", "mahalanobis", "forest", "pixel neighbour", "pixel residual",
          "cleanvision")  # fmt: skip
_NEIGHBOUR = 5  # of pixels; the features' is the same
_COMPONENTS = 50  # of pixels
# CleanVision calls an image an issue if its score is below the threshold: its own values.
_THRESHOLDS = {"dark": 0.32, "light": 0.05, "blurry": 0.29, "low_information": 0.3}


def network_scores(
    features: Tensor, logits: Tensor, labels: Tensor, reference: Tensor, reference_labels: Tensor, *, own: bool = False
) -> dict[str, Tensor]:
    """Scores `(N,)` by a network's output and by the features that its last layer gets.

    Args:
        features: Of the images `(N, D)`.
        logits: Of the images `(N, C)`.
        labels: That the images were given `(N,)`.
        reference: Features of training images `(M, D)`.
        reference_labels: Their labels `(M,)`.
        own: Whether the images are the reference. Then none is its own neighbour.

    Returns:
        `confidence`, `loss`, `neighbour` and `mahalanobis` as in h2; `energy`, minus the logarithm of the sum of the
        logits' exponentials (Liu et al., "Energy-based Out-of-distribution Detection", 2020); `forest`, by scikit-
        learn's isolation forest with its defaults.
    """
    output = output_scores(logits, labels)
    forest = IsolationForest(random_state=0).fit(reference.numpy())
    return {
        "confidence": output["confidence"],
        "loss": output["loss"],
        "energy": -logits.double().logsumexp(1),
        **feature_scores(features, reference, reference_labels, own=own),
        "forest": torch.from_numpy(-forest.score_samples(features.numpy())),
    }


def pixel_scores(images: Tensor, reference: Tensor, *, own: bool = False) -> dict[str, Tensor]:
    """Scores `(N,)` by the pixels of normalised images `(N, C, H, W)`, beside training images `(M, C, H, W)`.

    Returns:
        `pixel neighbour`, the distance to the fifth nearest one; `pixel residual`, the squared distance from the
        reference's first 50 principal components.
    """
    pixels, others = images.flatten(1), reference.flatten(1)
    distances = torch.cdist(pixels, others)
    if own:
        distances.fill_diagonal_(torch.inf)
    mean = others.mean(0)
    components = min(_COMPONENTS, len(others) - 1, others.shape[1] - 1)
    covariance = (others - mean).T @ (others - mean)
    axes = torch.linalg.eigh(covariance).eigenvectors[:, -components:]
    centred = pixels - mean
    return {
        "pixel neighbour": distances.kthvalue(min(_NEIGHBOUR, len(others) - own), dim=1).values,
        "pixel residual": (centred - centred @ axes @ axes.T).square().sum(1),
    }


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
