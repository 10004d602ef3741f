"""Does a picture show something else? Judge it by what a network makes of it: its features and logits."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import normalize
from torch.special import entr

from lightning_anomaly.network.features import SampleStatistics
from lightning_anomaly.scores.mahalanobis import shrunk_covariance

_MIN_SAMPLES = 8
_COMPONENTS, _FEW = 64, 4
_COMPLETE = 0.95  # share of the variance along 64 components, from which on features vary along these alone
_REAL = 1e-3  # smallest standard deviation along a component, relative to the largest
_ORDINARY = 0.9  # share of the samples, the nearest ones, to which each refit is made
_REFITS = 2
_KNOWN = 0.5  # share of what predictions could tell, from which on a network knows the classes of the images
_VECTORS = 256  # converted to double precision at a time, so that they stay in the cache
_EXACT = 512  # vectors or numbers in each, up to which principal components come from all vectors


class Distance(NamedTuple):
    """A squared Mahalanobis distance of vectors from their robust mean.

    Attributes:
        mean: The mean `(D,)`.
        axes: Scaled principal components, at most 64 `(D, k)`.
        shrunk: Whether the total variance is added to the variance in each direction, so that distances are nearly
            Euclidean; if not, distances are along the components alone.
    """

    mean: Tensor
    axes: Tensor
    shrunk: bool

    @classmethod
    def fit(cls, vectors: Tensor, count: int = _COMPONENTS, *, shrunk: bool) -> Distance:
        """Fit along `count` components to vectors `(n, D)`, of which up to a tenth may be odd."""
        squared = torch.zeros(len(vectors), dtype=torch.float64, device="cpu")
        for refit in range(_REFITS + 1):
            chosen = vectors[squared <= squared.quantile(_ORDINARY)]
            mean = chosen.mean(0)
            axes = (_damping_axes if shrunk else _whitening_axes)(chosen.sub_(mean), count)
            fitted = cls(mean.double(), axes.double(), shrunk)
            if refit < _REFITS:
                squared = fitted.squared(vectors)
        return fitted

    def squared(self, vectors: Tensor) -> Tensor:
        """Compute the squared distances of vectors `(n, D)`, up to a factor, float64 `(n,)`."""

        def of(part: Tensor) -> Tensor:
            centered = part.double() - self.mean
            along = (centered @ self.axes).square().sum(1)
            return vector_norm(centered, dim=1).square() - along if self.shrunk else along

        return torch.cat([of(part) for part in torch.split(vectors, _VECTORS)])


class Content(NamedTuple):
    """A model of the features and logits of ordinary images.

    The first measure is the distance of the features from their mean. If the network knows the classes of the images,
    the last one is the energy, and between them is a Mahalanobis distance along four components, where images that are
    odd in the same way stand out. But if features vary along 64 components alone, as those that a small network learned
    for its classes, the only distance is a Mahalanobis distance along all of these.

    Features are divided by their norms, since damaged images often have small features (Mueller and Hein,
    "Mahalanobis++: Improving OOD detection via feature normalization", 2025).

    Attributes:
        distances: The distances of features.
        uses_energy: Whether the network knows the classes of ordinary images, so that small logits mean something.
    """

    distances: tuple[Distance, ...]
    uses_energy: bool

    @classmethod
    def fit(cls, samples: SampleStatistics) -> Content | None:
        """Fit to samples, of which up to a tenth may be odd; return None if they are too few or identical."""
        if samples.features is None:
            return None
        samples = samples.select(samples.finite_rows(len(samples.features)))
        assert samples.features is not None
        if len(samples.features) < _MIN_SAMPLES:
            return None
        vectors = normalize(samples.features)
        if not (vectors.amax(0) - vectors.amin(0)).max() > torch.finfo(torch.float32).eps:
            return None
        if samples.logits is None or _told_by(samples.logits) <= _KNOWN:
            return cls((Distance.fit(vectors, shrunk=True),), uses_energy=False)
        precise = vectors.double()  # a Mahalanobis distance divides by small deviations
        if _share_along_components(precise) > _COMPLETE:
            return cls((Distance.fit(precise, shrunk=False),), uses_energy=True)
        return cls((Distance.fit(vectors, shrunk=True), Distance.fit(precise, _FEW, shrunk=False)), uses_energy=True)

    def measure(self, samples: SampleStatistics) -> Tensor:
        """Compute up to three measures `(n, m)`, infinite for NaN.

        They are the logarithms of squared distances, and the energy, the negative log-sum-exp of the logits (Liu, Wang,
        Owens and Li, "Energy-based out-of-distribution detection", 2020).
        """
        assert samples.features is not None
        vectors = normalize(samples.features)
        measures = [distance.squared(vectors).log() for distance in self.distances]
        if self.uses_energy:
            assert samples.logits is not None
            measures.append(-two_sided(samples.logits).logsumexp(1))
        measured = torch.stack(measures, 1)
        return torch.where(samples.finite_rows(len(vectors))[:, None] & ~measured.isnan(), measured, torch.inf)

    def reasons(self, samples: SampleStatistics, strongest: Tensor) -> tuple[str, ...]:
        """Say what the network sees in each image instead; `strongest` is the index of its largest measure `(n,)`."""
        by_energy = (strongest == len(self.distances)).tolist()
        reasons = ["nothing that the network knows well" if small else "unlike the others" for small in by_energy]
        return tuple(f"{reason}{seen}" for reason, seen in zip(reasons, network_sees(samples), strict=True))


def network_sees(samples: SampleStatistics) -> list[str]:
    """Say which class the network sees in each sample, in parentheses; nothing without logits."""
    if samples.logits is None:
        return [""] * (0 if samples.features is None else len(samples.features))
    classes = two_sided(samples.logits).argmax(1).tolist()
    names = samples.class_names if len(samples.class_names) > max(classes, default=0) else None
    return [f" (the network sees {f'class {index}' if names is None else names[index]})" for index in classes]


def two_sided(logits: Tensor) -> Tensor:
    """Return logits float64 `(n, C)`; one logit becomes the two whose difference it is."""
    logits = logits.double()
    return torch.cat([-logits / 2, logits / 2], 1) if logits.shape[1] == 1 else logits


def _told_by(logits: Tensor) -> float:
    """Return the mutual information of n images and C predicted classes, as a share of its largest, log min(n, C)."""
    probabilities = two_sided(logits).softmax(1)
    told: Tensor = entr(probabilities.mean(0)).sum() - entr(probabilities).sum(1).mean()
    return told.item() / math.log(min(probabilities.shape))


def _share_along_components(vectors: Tensor) -> float:
    """Return the share of the variance of vectors `(n, D)` along 64 principal components."""
    centered = vectors - vectors.mean(0)
    return float(_components(centered, _COMPONENTS)[1].square().sum() / vector_norm(centered).square())


def _whitening_axes(centered: Tensor, count: int) -> Tensor:
    """Compute principal components of vectors `(n, D)`, scaled to coordinates with identity covariance `(D, k)`."""
    components, coordinates = _components(centered, count)
    spread = coordinates.square().mean(0).sqrt()
    real = spread > _REAL * spread.max()
    values, rotation = torch.linalg.eigh(shrunk_covariance(coordinates[:, real]))
    axes: Tensor = components[:, real] @ (rotation / values.sqrt())
    return axes


def _damping_axes(centered: Tensor, count: int) -> Tensor:
    """Compute axes `(D, k)` along which squared lengths are subtracted if the total variance is added to all."""
    components, coordinates = _components(centered, count)
    variances, total = coordinates.square().mean(0), float(vector_norm(centered, dim=1).square().mean())
    return components * (variances / (variances + total).clamp(min=torch.finfo(variances.dtype).tiny)).sqrt()


def _components(centered: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Compute principal components of vectors `(n, D)` and the coordinates along them, `(D, k)` and `(n, k)`.

    Half as many as samples at most, as along more of them all samples would be equally far.
    """
    components = principal_components(centered, min(count, max(1, len(centered) // 2)))
    return components, centered @ components


def principal_components(centered: Tensor, count: int) -> Tensor:
    """Compute the first principal components of centered vectors `(n, D)`: orthonormal `(D, k)`, k at most `count`.

    Those of many long vectors come from some of these, spread evenly.
    """
    if centered.shape[1] > _EXACT:
        centered = centered[:: -(-len(centered) // _EXACT)]
    wide = centered.shape[1] > len(centered)
    products = centered @ centered.T if wide else centered.T @ centered
    vectors: Tensor = torch.linalg.eigh(products)[1].flip(1)[:, :count]
    return torch.linalg.qr(centered.T @ vectors)[0] if wide else vectors
