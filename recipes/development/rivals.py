"""Other scores of odd images: the simplest strong ones, from scikit-learn, PyOD and CleanVision.

Larger scores are odder. A score is fitted to reference images, or to the images that it scores. Axes: `N` images.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch.nn.functional import normalize

RIVALS = {
    "content": ("energy", "softmax", "distance from the mean", "5th neighbour", "Mahalanobis", "ViM"),
    "look": ("pixels: Mahalanobis", "pixels: ECOD", "pixels: LOF", "CleanVision"),
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

    Mean, standard deviation, median, minimum and maximum of the grey values; mean and largest absolute difference of
    neighbors along rows and along columns; shares above 250 and below 5; logarithms of the energies of low and of high
    frequencies; of each channel the mean beside that of the grey values, and the mean spread of a pixel's channels.
    """
    images = images.double()
    grey = images.mean(1)
    flat = grey.flatten(1)
    rows, columns = grey.diff(dim=2).abs().flatten(1), grey.diff(dim=1).abs().flatten(1)
    energy = torch.fft.fft2(grey - grey.mean((1, 2), keepdim=True)).abs().square()
    height, width = (torch.fft.fftfreq(side) for side in grey.shape[1:])
    low = (height[:, None].square() + width.square()).sqrt() < 0.25
    found = [
        *(flat.mean(1), flat.std(1), flat.median(1).values, flat.amin(1), flat.amax(1)),
        *(rows.mean(1), rows.amax(1), columns.mean(1), columns.amax(1)),
        *((flat > 250).double().mean(1), (flat < 5).double().mean(1)),
        *(energy[:, part].sum(1).log1p() for part in (low, ~low)),
    ]
    if images.shape[1] > 1:
        found += [*(images.mean((2, 3)) - grey.mean((1, 2))[:, None]).T, images.std(1).mean((1, 2))]
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


def rival_scores(
    seen: Seen, questions: Sequence[str] = ("content", "look"), reference: Seen | None = None
) -> dict[str, Tensor]:
    """Compute the scores `(N,)` of images by the `RIVALS` of some questions.

    They are fitted to the reference, or without one to the images themselves.
    """
    found: dict[str, Tensor] = {}
    if "content" in questions:
        found |= _by_network(seen, reference)
    if "look" in questions:
        fitted = seen if reference is None else reference
        found["pixels: Mahalanobis"] = _mahalanobis(seen.pixels, fitted.pixels)
        found |= _pyod(seen.pixels, None if reference is None else reference.pixels)
        found["CleanVision"] = seen.cleanvision
    return found


def _by_network(seen: Seen, reference: Seen | None) -> dict[str, Tensor]:
    fitted, alone = seen if reference is None else reference, reference is None
    unit, known = (normalize(part.features.double()).numpy() for part in (seen, fitted))
    residual = _residual(seen.features.double().numpy(), fitted.features.double().numpy())
    scale = fitted.logits.double().amax(1).mean().item() / residual[1].mean()
    energy = -seen.logits.double().logsumexp(1)
    neighbours = NearestNeighbors(n_neighbors=5 + alone, metric="cosine").fit(known).kneighbors(unit)[0][:, -1]
    return {
        "energy": energy,
        "softmax": -seen.logits.double().softmax(1).amax(1),
        "distance from the mean": torch.from_numpy(-unit @ known.mean(0)),
        "5th neighbour": torch.from_numpy(neighbours),
        "Mahalanobis": _mahalanobis(seen.features.double(), fitted.features.double()),
        "ViM": torch.from_numpy(scale * residual[0]) + energy,
    }


def _residual(features: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the norm of what principal components of the reference leave over, of images and of the reference."""
    count = min(_COMPONENTS, min(reference.shape) // 2)
    fit = PCA(count, svd_solver="full").fit(reference)
    first, second = (
        np.linalg.norm(part - fit.inverse_transform(fit.transform(part)), axis=1) for part in (features, reference)
    )
    return first, second


def _mahalanobis(values: Tensor, reference: Tensor) -> Tensor:
    """Compute squared Mahalanobis distances of standardised numbers (covariance of Ledoit and Wolf, 2004)."""
    std, mean = torch.std_mean(reference, 0)
    scale = torch.where(std > 0, std, 1)
    fit = LedoitWolf().fit(((reference - mean) / scale).numpy())
    return torch.from_numpy(fit.mahalanobis(((values - mean) / scale).numpy()))


def _pyod(values: Tensor, reference: Tensor | None) -> dict[str, Tensor]:
    from pyod.models.ecod import ECOD
    from pyod.models.lof import LOF

    found = {}
    for title, detector in {"ECOD": ECOD(), "LOF": LOF()}.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of its own dependencies
            detector.fit((values if reference is None else reference).numpy())
            scores = detector.decision_scores_ if reference is None else detector.decision_function(values.numpy())
        found[f"pixels: {title}"] = torch.from_numpy(np.asarray(scores, dtype=np.float64))
    return found
