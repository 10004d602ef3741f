"""Does a picture show something else? Judge it by what a network makes of it: its features and logits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lightning_anomaly.capture.samples import SampleStatistics
from lightning_anomaly.outliers.mahalanobis import shrunk_covariance

_MIN_SAMPLES = 8
_COMPONENTS = 64
_REAL = 1e-3  # smallest standard deviation along a component, relative to the largest
_ORDINARY = 0.9  # share of the samples, the nearest ones, to which each refit is made
_REFITS = 2
_SURE = 0.9  # median of the largest probability, from which on small logits mean something
_EXACT = 1024  # vectors or axes up to which all principal components are computed
_OVERSAMPLING, _ITERATIONS = 16, 6  # of a randomized computation


class Content(NamedTuple):
    """A model of the features and logits of ordinary images.

    Features are divided by their norms, since damaged images often have small features (Mueller and Hein,
    "Mahalanobis++: Improving OOD detection via feature normalization", 2025).

    Attributes:
        mean: Their robust mean `(D,)`.
        axes: At most 64 principal components, scaled so that coordinates have the identity as covariance `(D, k)`.
        uses_energy: Whether the network is sure of ordinary images: then their classes are its own, and small logits
            mean more than the distance from the mean of several classes.
    """

    mean: Tensor
    axes: Tensor
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
        if not (vectors - vectors[0]).abs().max() > torch.finfo(torch.float32).eps:
            return None
        chosen = vectors
        for _ in range(_REFITS + 1):
            mean = chosen.mean(0)
            axes = _whitened_components(chosen - mean)
            distances = ((vectors - mean) @ axes).square().sum(1)
            chosen = vectors[distances <= distances.quantile(_ORDINARY)]
        return cls(mean, axes, _is_sure(samples.logits))

    def measure(self, samples: SampleStatistics) -> Tensor:
        """Compute two measures `(n, 2)`, infinite for NaN.

        They are the logarithm of the squared Mahalanobis distance along the components; and that of the squared
        distance from the mean, or the energy, the negative log-sum-exp of the logits (Liu, Wang, Owens and Li,
        "Energy-based out-of-distribution detection", 2020).
        """
        assert samples.features is not None
        centered = normalize(samples.features.double()) - self.mean
        measures = [(centered @ self.axes).square().sum(1).log()]
        if self.uses_energy:
            assert samples.logits is not None
            measures.append(-two_sided(samples.logits).logsumexp(1))
        else:
            measures.append(centered.square().sum(1).log())
        measured = torch.stack(measures, 1)
        return torch.where(samples.finite_rows(len(centered))[:, None] & ~measured.isnan(), measured, torch.inf)

    def reasons(self, samples: SampleStatistics, strongest: Tensor) -> tuple[str, ...]:
        """Say what the network sees in each image instead; `strongest` is the index of its largest measure `(n,)`."""
        other = "nothing that the network knows well" if self.uses_energy else "unlike the others"
        reasons = [other if index else "unlike the others" for index in strongest.tolist()]
        if samples.logits is None:
            return tuple(reasons)
        classes = two_sided(samples.logits).argmax(1).tolist()
        names = samples.class_names if len(samples.class_names) > max(classes, default=0) else None
        seen = [f"class {index}" if names is None else names[index] for index in classes]
        return tuple(f"{reason} (the network sees {name})" for reason, name in zip(reasons, seen, strict=True))


def two_sided(logits: Tensor) -> Tensor:
    """Return logits float64 `(n, C)`; one logit becomes the two whose difference it is."""
    logits = logits.double()
    return torch.cat([-logits / 2, logits / 2], 1) if logits.shape[1] == 1 else logits


def _is_sure(logits: Tensor | None) -> bool:
    """Return whether a network is sure of what it sees in most images."""
    return logits is not None and two_sided(logits).softmax(1).amax(1).median().item() > _SURE


def _whitened_components(centered: Tensor) -> Tensor:
    """Compute principal components of vectors `(n, D)`, scaled to coordinates with identity covariance `(D, k)`.

    Half as many as samples at most, as along more of them all samples would be equally far.
    """
    count = min(_COMPONENTS, max(1, len(centered) // 2))
    components = principal_components(centered, count)
    coordinates = centered @ components
    spread = coordinates.square().mean(0).sqrt()
    real = spread > _REAL * spread.max()
    values, rotation = torch.linalg.eigh(shrunk_covariance(coordinates[:, real]))
    axes: Tensor = components[:, real] @ (rotation / values.sqrt())
    return axes


def principal_components(centered: Tensor, count: int) -> Tensor:
    """Compute the first principal components of centred vectors `(n, D)`: orthonormal `(D, k)`, k at most `count`.

    Those of many long vectors come from subspace iteration (Halko, Martinsson and Tropp, "Finding structure with
    randomness", 2011, algorithm 4.4).
    """
    n, size = centered.shape
    if min(n, size) <= _EXACT:
        if size <= n:
            return _largest_eigenvectors(centered.T @ centered, count)
        components: Tensor = torch.linalg.qr(centered.T @ _largest_eigenvectors(centered @ centered.T, count))[0]
        return components
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(size, count + _OVERSAMPLING, generator=generator, device="cpu").to(centered)
    for _ in range(_ITERATIONS):
        basis = torch.linalg.qr(centered.T @ (centered @ basis))[0]
    spread = centered @ basis
    return basis @ _largest_eigenvectors(spread.T @ spread, count)


def _largest_eigenvectors(products: Tensor, count: int) -> Tensor:
    """Compute the eigenvectors `(n, count)` of a symmetric matrix `(n, n)`, by descending eigenvalue."""
    vectors: Tensor = torch.linalg.eigh(products)[1]
    return vectors.flip(1)[:, :count]
