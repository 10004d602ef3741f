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

_MIN_SAMPLES = 8
_NEIGHBORS = 512  # images, evenly spaced, among which neighbors are sought
_NEAREST = 0.1  # share of these up to the neighbor that counts: images odd in the same way are not their own
_NEAR = 0.88  # its typical squared distance, relative to that of any two images, from which on it tells nothing
_ROUNDING = 1e-5  # distance of features of norm 1 that is rounding
_COMPONENTS, _FEW = 64, 4
_COMPLETE = 0.95  # share of the variance along 64 components, from which on features vary along these alone
_REAL = 1e-3  # smallest standard deviation along a component, relative to the largest
_ORDINARY = 0.9  # share of the samples, the nearest ones, to which each refit is made
_REFITS = 2
_KNOWN = 0.5  # share of what predictions could tell, from which on a network knows the classes of the images
_EXACT = 512  # vectors or numbers in each, up to which principal components come from all vectors


class Neighbors(NamedTuple):
    """The distance of vectors from one of their nearest neighbors.

    Attributes:
        vectors: The vectors `(m, D)` among which neighbors are sought.
    """

    vectors: Tensor

    @classmethod
    def of(cls, vectors: Tensor) -> Neighbors:
        """Take up to 512 of the vectors `(n, D)`, evenly spaced."""
        return cls(vectors[:: -(-len(vectors) // _NEIGHBORS)])

    def distances(self, vectors: Tensor) -> Tensor:
        """Compute the distances `(n,)` of vectors `(n, D)` from their neighbor."""
        neighbor = 1 + round(_NEAREST * len(self.vectors))  # the first is the vector itself, if it is among these
        return torch.cdist(vectors, self.vectors).kthvalue(neighbor).values.clamp(min=_ROUNDING)

    def near(self) -> bool:
        """Return whether that neighbor is typically nearer than most vectors, so that its distance tells something."""
        typical = self.distances(self.vectors).square().median()
        return bool(typical < 2 * _NEAR * self.vectors.var(0, correction=0).sum())


class Mahalanobis(NamedTuple):
    """The Mahalanobis distance of vectors from their robust mean along principal components.

    Attributes:
        mean: The mean `(D,)`.
        axes: The components, divided by the standard deviations along them `(D, k)`.
    """

    mean: Tensor
    axes: Tensor

    @classmethod
    def fit(cls, vectors: Tensor, count: int) -> Mahalanobis:
        """Fit along up to `count` components to vectors `(n, D)`, of which up to a tenth may be odd."""
        distances = torch.zeros(len(vectors), dtype=torch.float64, device="cpu")
        for _ in range(_REFITS + 1):
            chosen = vectors[distances <= distances.quantile(_ORDINARY)]
            mean = chosen.mean(0)
            # Along more than half as many as vectors all would be equally far.
            components = principal_components(chosen - mean, min(count, max(1, len(chosen) // 2)))
            spread = ((chosen - mean) @ components).square().mean(0).sqrt()
            real = spread > _REAL * spread.max()
            fitted = cls(mean, components[:, real] / spread[real])
            distances = fitted.distances(vectors)
        return fitted

    def distances(self, vectors: Tensor) -> Tensor:
        """Compute the distances `(n,)` of vectors `(n, D)`."""
        distances: Tensor = vector_norm((vectors - self.mean) @ self.axes, dim=1)
        return distances


class Content(NamedTuple):
    """A model of the features and logits of ordinary images.

    The first measure is the distance of features from the neighbor beyond a tenth of the images. If the network
    knows the classes of the images, there is a second measure, the energy, and there are two exceptions. Where features
    vary along 64 components alone, as those that a small network learned for its classes, the first measure is a
    Mahalanobis distance along all of these. Where images are of so many kinds that few have a near neighbor, it is one
    along four components, where images that are odd in the same way stand out.

    Features are divided by their norms, since damaged images often have small features (Mueller and Hein,
    "Mahalanobis++: Improving OOD detection via feature normalization", 2025).

    Attributes:
        distance: The distance of features.
        uses_energy: Whether the network knows the classes of ordinary images, so that small logits mean something.
    """

    distance: Neighbors | Mahalanobis
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
        vectors = normalize(samples.features.double())
        if not (vectors.amax(0) - vectors.amin(0)).max() > torch.finfo(torch.float32).eps:
            return None
        knows = samples.logits is not None and _told_by(samples.logits) > _KNOWN
        if knows and _share_along_components(vectors) > _COMPLETE:
            return cls(Mahalanobis.fit(vectors, _COMPONENTS), uses_energy=True)
        neighbors = Neighbors.of(vectors)
        return cls(Mahalanobis.fit(vectors, _FEW) if knows and not neighbors.near() else neighbors, knows)

    def measure(self, samples: SampleStatistics) -> Tensor:
        """Compute one or two measures `(n, m)`, infinite for NaN.

        They are the logarithm of a distance, and the energy, the negative log-sum-exp of the logits (Liu, Wang, Owens
        and Li, "Energy-based out-of-distribution detection", 2020).
        """
        assert samples.features is not None
        measures = [self.distance.distances(normalize(samples.features.double())).log()]
        if self.uses_energy:
            assert samples.logits is not None
            measures.append(-two_sided(samples.logits).logsumexp(1))
        measured = torch.stack(measures, 1)
        return torch.where(samples.finite_rows(len(measured))[:, None] & ~measured.isnan(), measured, torch.inf)

    def reasons(self, samples: SampleStatistics, strongest: Tensor) -> tuple[str, ...]:
        """Say what the network sees in each image instead; `strongest` is the index of its largest measure `(n,)`."""
        reasons = "unlike the others", "nothing that the network knows well"
        rows = zip(strongest.tolist(), network_sees(samples), strict=True)
        return tuple(f"{reasons[measure]}{seen}" for measure, seen in rows)


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
    components = principal_components(centered, min(_COMPONENTS, max(1, len(centered) // 2)))
    return float((vector_norm(centered @ components) / vector_norm(centered)).square())


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
