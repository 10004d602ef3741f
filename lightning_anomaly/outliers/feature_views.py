"""Views of the input (features) and the output (logits) of a network's last linear layer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_anomaly.capture.samples import SampleStatistics
from lightning_anomaly.outliers.combine import SampleView
from lightning_anomaly.outliers.mahalanobis import shrunk_covariance

_MIN_SAMPLES = 40
_MIN_OF_CLASS = 5
_ORDINARY = 0.9  # share of the samples, the nearest ones, to which each refit is made
_FITS = 3
_WIDEST = 128  # features; wider ones are reduced to as many principal components
_RIDGE = 1e-9  # added to a covariance, relative to its mean variance


class ClassGaussians(NamedTuple):
    """Normal distributions of vectors, one for each class, with a shared covariance.

    Attributes:
        whitening: Linear map that turns the covariance into the identity `(D, D)`.
        centers: Whitened means of the classes `(C, D)`.
    """

    whitening: Tensor
    centers: Tensor

    @classmethod
    def fit(cls, vectors: Tensor, classes: Tensor) -> ClassGaussians:
        """Fit to vectors `(n, D)` of classes int64 `(n,)`, and refit twice to the nearest nine tenths of them.

        Classes of fewer than five samples are ignored; if they hold most samples, one distribution is fitted to all.
        """
        ordinary = torch.ones(len(vectors), dtype=torch.bool, device=vectors.device)
        counts = classes.bincount()
        usable = (counts >= _MIN_OF_CLASS).nonzero()[:, 0]
        if 2 * counts[usable].sum() < len(vectors):
            classes, usable = torch.zeros_like(classes), usable.new_zeros(1)
        for number in range(_FITS):
            groups = [vectors[(classes == label) & ordinary] for label in usable]
            groups = [group for group in groups if len(group)]
            means = torch.stack([group.mean(0) if number else group.median(0).values for group in groups])
            nearest = torch.cdist(vectors, means).argmin(1)
            fitted = cls.of(vectors[ordinary] - means[nearest[ordinary]], means)
            distances = fitted.mahalanobis_squared(vectors)
            ordinary = distances <= distances.quantile(_ORDINARY)
        return fitted

    @classmethod
    def of(cls, residuals: Tensor, means: Tensor) -> ClassGaussians:
        """Fit to residuals `(n, D)` from the class means `(C, D)`."""
        covariance = shrunk_covariance(residuals)
        covariance.diagonal().add_(_RIDGE * covariance.diagonal().mean() + torch.finfo(covariance.dtype).tiny)
        factor = torch.linalg.cholesky(covariance)
        identity = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
        whitening = torch.linalg.solve_triangular(factor, identity, upper=False).T
        return cls(whitening, means @ whitening)

    def mahalanobis_squared(self, vectors: Tensor) -> Tensor:
        """Compute squared Mahalanobis distances `(n,)` of vectors `(n, D)` from the nearest class mean."""
        return torch.cdist(vectors @ self.whitening, self.centers).amin(1).square()


class FeatureView(NamedTuple):
    """Mahalanobis distance of the features from the nearest predicted class.

    Features are divided by their norms, since damaged images often have small features (Mueller and Hein,
    "Mahalanobis++: Improving OOD detection via feature normalization", 2025).

    Attributes:
        axes: Principal components of the features `(F, D)`; D is 0 if the features are used as they are.
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
        """Score samples by the log of their squared distance."""
        scores = self.gaussians.mahalanobis_squared(_directions(samples, self.axes)).log()
        return SampleView(_without_nan(scores), _reasons(samples, "unusual features, predicted {}"))


class LogitView(NamedTuple):
    """Energy of the logits (Liu et al., "Energy-based out-of-distribution detection", 2020)."""

    def view(self, samples: SampleStatistics) -> SampleView:
        """Score samples by their energy, the negative log-sum-exp of the logits."""
        assert samples.logits is not None
        scores = -samples.logits.double().logsumexp(1)
        return SampleView(_without_nan(scores), _reasons(samples, "small logits for every class, predicted {}"))


def fit_feature_views(samples: SampleStatistics) -> dict[str, FeatureView | LogitView]:
    """Fit the views of features and logits; return none without logits or with too few or identical features."""
    if samples.features is None or samples.logits is None:
        return {}
    finite = samples.features.isfinite().all(1) & samples.logits.logsumexp(1).isfinite()
    samples = samples.select(finite)
    assert samples.features is not None
    if len(samples.features) < _MIN_SAMPLES or not (samples.features != samples.features[0]).any():
        return {}
    return {"features": FeatureView.fit(samples), "logits": LogitView()}


def _principal_components(features: Tensor) -> Tensor:
    """Compute the first principal components of wide features `(n, F)` as `(F, D)`; of others return `(F, 0)`."""
    if features.shape[1] <= _WIDEST:
        return features.new_zeros(features.shape[1], 0)
    centered = features - features.mean(0)
    if len(features) < features.shape[1]:  # then the Gram matrix is smaller than the covariance
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


def _without_nan(scores: Tensor) -> Tensor:
    """Replace NaN by infinity."""
    return torch.where(scores.isnan(), torch.inf, scores)


def _reasons(samples: SampleStatistics, sentence: str) -> tuple[str, ...]:
    """Put the name of each sample's predicted class into a sentence."""
    assert samples.logits is not None
    count = samples.logits.shape[1]
    names = samples.class_names if len(samples.class_names) == count else [f"class {place}" for place in range(count)]
    return tuple(sentence.format(names[place]) for place in _predicted(samples).tolist())
