"""Other scores of odd images: the simplest strong ones, from scikit-learn and CleanVision.

Larger scores are odder. A score is fitted to the images that it scores. Axes: `N` images.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn.functional import normalize

RIVALS = {
    "content": ("energy", "softmax", "distance from the mean", "5th neighbor", "Mahalanobis", "ViM"),
    "look": ("pixels: Mahalanobis", "pixels: isolation forest", "pixels: LOF", "CleanVision"),
}
_COMPONENTS = 64  # of ViM


class Seen(NamedTuple):
    """The inputs of the rivals: `logits` `(N, C)`, `features` `(N, D)`, `pixels` `(N, P)` and `cleanvision` `(N,)`."""

    logits: Tensor
    features: Tensor
    pixels: Tensor
    cleanvision: Tensor

    @staticmethod
    def join(parts: Sequence[Seen]) -> Seen:
        """Concatenate the inputs of several groups of images."""
        return Seen(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))

    def select(self, chosen: Tensor) -> Seen:
        """Select images."""
        return Seen(*(tensor[chosen] for tensor in self))


def pixel_statistics(images: Tensor) -> Tensor:
    """Summarize images uint8 `(N, C, H, W)` by 13 numbers each, or 17 with colors: float64 `(N, 17)`.

    Mean, standard deviation, median, minimum and maximum of the gray values; mean and largest absolute difference of
    neighbors along rows and along columns; shares above 250 and below 5; logarithms of the energies of low and of high
    frequencies; of each channel the mean beside that of the gray values, and the mean spread of a pixel's channels.
    """
    images = images.double()
    gray = images.mean(1)
    flat = gray.flatten(1)
    rows, columns = gray.diff(dim=2).abs().flatten(1), gray.diff(dim=1).abs().flatten(1)
    energy = torch.fft.fft2(gray - gray.mean((1, 2), keepdim=True)).abs().square()
    height, width = (torch.fft.fftfreq(side) for side in gray.shape[1:])
    low = (height[:, None].square() + width.square()).sqrt() < 0.25
    found = [
        *(flat.mean(1), flat.std(1), flat.median(1).values, flat.amin(1), flat.amax(1)),
        *(rows.mean(1), rows.amax(1), columns.mean(1), columns.amax(1)),
        *((flat > 250).double().mean(1), (flat < 5).double().mean(1)),
        *(energy[:, part].sum(1).log1p() for part in (low, ~low)),
    ]
    if images.shape[1] > 1:
        found += [*(images.mean((2, 3)) - gray.mean((1, 2))[:, None]).T, images.std(1).mean((1, 2))]
    return torch.stack(found, 1)


def cleanvision_scores(images: Tensor) -> Tensor:
    """Compute 1 less CleanVision's lowest score of any of its issues for each image uint8 `(N, C, H, W)`: `(N,)`."""
    from cleanvision import Imagelab
    from PIL import Image

    kinds = ("dark", "light", "low_information", "blurry", "odd_aspect_ratio")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        for number, image in enumerate(images):
            array = image.permute(1, 2, 0).squeeze(2).numpy()
            Image.fromarray(array).save(Path(folder) / f"{number:06}.png")
        lab = Imagelab(data_path=folder, verbose=False)
        lab.find_issues({kind: {} for kind in kinds}, n_jobs=1, verbose=False)
        issues = lab.issues.sort_index()
    return 1 - torch.from_numpy(issues[[f"{kind}_score" for kind in kinds]].min(axis=1).to_numpy(np.float64))


def rival_scores(seen: Seen, question: str) -> dict[str, Tensor]:
    """Compute the scores `(N,)` of images by the `RIVALS` of a question."""
    if question == "look":
        pixels = seen.pixels.numpy()
        forest = IsolationForest(random_state=0).fit(pixels)
        return {
            "pixels: Mahalanobis": _mahalanobis(seen.pixels),
            "pixels: isolation forest": torch.from_numpy(-forest.score_samples(pixels)),
            "pixels: LOF": torch.from_numpy(-LocalOutlierFactor().fit(pixels).negative_outlier_factor_),
            "CleanVision": seen.cleanvision,
        }
    unit = normalize(seen.features.double()).numpy()
    residual = _residual(seen.features.double().numpy())
    energy = -seen.logits.double().logsumexp(1)
    neighbors = NearestNeighbors(n_neighbors=6, metric="cosine").fit(unit).kneighbors(unit)[0][:, -1]
    return {
        "energy": energy,
        "softmax": -seen.logits.double().softmax(1).amax(1),
        "distance from the mean": torch.from_numpy(-unit @ unit.mean(0)),
        "5th neighbor": torch.from_numpy(neighbors),
        "Mahalanobis": _mahalanobis(seen.features.double()),
        "ViM": seen.logits.double().amax(1).mean() / residual.mean() * residual + energy,
    }


def _residual(features: np.ndarray) -> Tensor:
    """Compute the norm of what principal components leave over."""
    fit = PCA(min(_COMPONENTS, min(features.shape) // 2), svd_solver="full").fit(features)
    left: np.ndarray = features - fit.inverse_transform(fit.transform(features))
    return torch.from_numpy(np.linalg.norm(left, axis=1))


def _mahalanobis(values: Tensor) -> Tensor:
    """Compute squared Mahalanobis distances of standardized numbers (covariance of Ledoit and Wolf, 2004)."""
    standard = StandardScaler().fit_transform(values.numpy())
    return torch.from_numpy(LedoitWolf().fit(standard).mahalanobis(standard))
