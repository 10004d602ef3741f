"""The views of what a network's last linear layer is given and of what it says: features and logits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_anomaly.capture.samples import SampleStatistics
from lightning_anomaly.outliers.combine import SampleView
from lightning_anomaly.outliers.mahalanobis import shrunk_covariance

_MIN_SAMPLES = 40
_MIN_OF_CLASS = 5
_ORDINARY = 0.9  # of the samples, the nearest ones, to which a distribution is fitted
_FITS = 3
_WIDEST = 128  # features; of more, so many principal components are taken
_RIDGE = 1e-9  # added to a covariance, relative to its mean variance


class ClassGaussians(NamedTuple):
    """Normal distributions of vectors, one for each class, with one covariance.

    Attributes:
        whitening: Linear map after which the covariance is the identity `(D, D)`.
        centers: Means of the classes, mapped `(C, D)`.
    """

    whitening: Tensor
    centers: Tensor

    @classmethod
    def fit(cls, vectors: Tensor, classes: Tensor) -> ClassGaussians:
        """Fit to vectors `(n, D)` of classes int64 `(n,)`, anew to the nine tenths that are least far.

        A class of fewer than five samples has no distribution; if these are most samples, there is one for all.
        """
        kept = torch.ones(len(vectors), dtype=torch.bool, device=vectors.device)
        counts = classes.bincount()
        known = (counts >= _MIN_OF_CLASS).nonzero()[:, 0]
        if 2 * counts[known].sum() < len(vectors):
            classes, known = torch.zeros_like(classes), known.new_zeros(1)
        for number in range(_FITS):
            parts = [vectors[(classes == one) & kept] for one in known]
            parts = [part for part in parts if len(part)]
            means = torch.stack([part.mean(0) if number else part.median(0).values for part in parts])
            nearest = torch.cdist(vectors, means).argmin(1)
            fitted = cls.of(vectors[kept] - means[nearest[kept]], means)
            distances = fitted.mahalanobis_squared(vectors)
            kept = distances <= distances.quantile(_ORDINARY)
        return fitted

    @classmethod
    def of(cls, residuals: Tensor, means: Tensor) -> ClassGaussians:
        """Fit to residuals from the means `(n, D)`, of which there are `(C, D)`."""
        covariance = shrunk_covariance(residuals)
        covariance.diagonal().add_(_RIDGE * covariance.diagonal().mean() + torch.finfo(covariance.dtype).tiny)
        factor = torch.linalg.cholesky(covariance)
        identity = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
        whitening = torch.linalg.solve_triangular(factor, identity, upper=False).T
        return cls(whitening, means @ whitening)

    def mahalanobis_squared(self, vectors: Tensor) -> Tensor:
        """Compute squared Mahalanobis distances of vectors `(n, D)` from the nearest class `(n,)`."""
        return torch.cdist(vectors @ self.whitening, self.centers).amin(1).square()


class FeatureView(NamedTuple):
    """How far features are from those of ordinary samples: a Mahalanobis distance from the nearest class.

    Features are divided by their norms, as those of damaged images are often small (Mueller and Hein, "Mahalanobis++:
    Improving OOD detection via feature normalization", 2025). Classes are the predicted ones.

    Attributes:
        axes: Principal components of the features `(F, D)`; without columns where all are taken.
        gaussians: Distributions of the features.
    """

    axes: Tensor
    gaussians: ClassGaussians

    @classmethod
    def fit(cls, samples: SampleStatistics) -> FeatureView:
        """Fit to finite samples."""
        assert samples.features is not None
        axes = _principal_components(samples.features)
        return cls(axes, ClassGaussians.fit(_directions(samples, axes), _predicted(samples)))

    def view(self, samples: SampleStatistics) -> SampleView:
        """Score samples by the logarithms of squared distances."""
        scores = self.gaussians.mahalanobis_squared(_directions(samples, self.axes)).log()
        return SampleView(_known(scores), _reasons(samples, "unusual features, predicted {}"))


class LogitView(NamedTuple):
    """How small the logits are: their energy (Liu et al., "Energy-based out-of-distribution detection", 2020)."""

    def view(self, samples: SampleStatistics) -> SampleView:
        """Score samples by their energies, minus the logarithm of the sum of exponentials of the logits."""
        assert samples.logits is not None
        scores = -samples.logits.double().logsumexp(1)
        return SampleView(_known(scores), _reasons(samples, "small logits for every class, predicted {}"))


def fit_feature_views(samples: SampleStatistics) -> dict[str, FeatureView | LogitView]:
    """Fit the views of features and logits.

    There are none if the model has no classes, or if features are too few or all the same.
    """
    if samples.features is None or samples.logits is None:
        return {}
    finite = samples.features.isfinite().all(1) & samples.logits.logsumexp(1).isfinite()
    samples = samples.select(finite)
    assert samples.features is not None
    if len(samples.features) < _MIN_SAMPLES or not (samples.features != samples.features[0]).any():
        return {}
    return {"features": FeatureView.fit(samples), "logits": LogitView()}


def _principal_components(features: Tensor) -> Tensor:
    """The first principal components of features `(n, F)`, if there are too many of these `(F, D)`, else `(F, 0)`."""
    if features.shape[1] <= _WIDEST:
        return features.new_zeros(features.shape[1], 0)
    centered = features - features.mean(0)
    if len(features) < features.shape[1]:  # the products of few samples with each other are a smaller matrix
        _, weights = torch.linalg.eigh((centered @ centered.T).double())
        components: Tensor = centered.T @ weights[:, -_WIDEST:].to(features)
    else:
        components = torch.linalg.eigh((centered.T @ centered).double())[1][:, -_WIDEST:].to(features)
    norms: Tensor = components.norm(dim=0)
    return components / norms.clamp(min=torch.finfo(torch.float32).tiny)


def _directions(samples: SampleStatistics, axes: Tensor) -> Tensor:
    assert samples.features is not None
    vectors = (samples.features @ axes if axes.shape[1] else samples.features).double()
    norms: Tensor = vectors.norm(dim=1, keepdim=True)
    return vectors / norms.clamp(min=torch.finfo(torch.float32).tiny)


def _predicted(samples: SampleStatistics) -> Tensor:
    assert samples.logits is not None
    return samples.logits.argmax(1)


def _known(scores: Tensor) -> Tensor:
    """Infinity for NaN."""
    return torch.where(scores.isnan(), torch.inf, scores)


def _reasons(samples: SampleStatistics, sentence: str) -> tuple[str, ...]:
    """A reason for each sample, with the name of its predicted class."""
    assert samples.logits is not None
    count = samples.logits.shape[1]
    names = samples.class_names if len(samples.class_names) == count else [f"class {place}" for place in range(count)]
    return tuple(sentence.format(names[place]) for place in _predicted(samples).tolist())
