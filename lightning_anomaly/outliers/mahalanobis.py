"""A robust Mahalanobis distance, for samples among which some may be outliers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_CLIP = 6.0  # robust standard deviations, beyond which one number counts no more against a sample
_ORDINARY = 0.8  # of the samples, the least odd ones, by which numbers are transformed
_CUTOFF = 4.0  # robust standard deviations of squared distances above their median, beyond which samples are outliers
_MIN_SAMPLES = 8
_SMALLEST = torch.finfo(torch.float32).tiny
_FARTHEST = 32.0  # from 1, up to where a power is looked for
_HALVINGS = 33  # of the range of powers, to 1e-8
_SERIES = 1e-6  # exponent up to which two terms of a series are enough
_STEADY = 1e-6  # standard deviation of a number that does not vary, relative to its mean


def robust_scale(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the median and the median absolute deviation, as a standard deviation, along the first axis."""
    median = values.median(0).values
    return median, 1.4826 * (values - median).abs().median(0).values


@dataclass(frozen=True, eq=False)
class RobustGaussian:
    """A normal distribution of V numbers, each transformed to be as normal as it can be, that outliers do not move.

    A reweighted minimum covariance determinant (Rousseeuw and Van Driessen, "A fast algorithm for the minimum
    covariance determinant estimator", 1999) with a shrunk covariance (Ledoit and Wolf, "A well-conditioned estimator
    for large-dimensional covariance matrices", 2004), so that it can have more numbers than samples. Before the last
    step each number is transformed by what makes the least odd samples most normal (Yeo and Johnson, "A new family of
    power transformations to improve normality or symmetry", 2000): then those at the end of a long tail are not far.

    Attributes:
        used: Which numbers vary `(V,)`, v of them.
        mean: Their means `(v,)`.
        scale: Their standard deviations `(v,)`.
        powers: Powers of the transformation `(v,)`.
        limits: Smallest and largest standardized numbers that it was fitted to, `(v,)` each; it goes on as a line.
        center: Means of the numbers transformed `(v,)`.
        precision: Inverse of their covariance `(v, v)`.
    """

    used: Tensor
    mean: Tensor
    scale: Tensor
    powers: Tensor
    limits: tuple[Tensor, Tensor]
    center: Tensor
    precision: Tensor

    @classmethod
    def fit(cls, values: Tensor) -> RobustGaussian | None:
        """Fit to values `(N, V)` on the CPU; None if fewer than eight samples are finite or nothing varies."""
        values = values[values.isfinite().all(1)].double()
        if len(values) < _MIN_SAMPLES:
            return None
        median, spread = robust_scale(values)
        far = ((values - median) / spread.clamp(min=_SMALLEST)).abs()
        distances = far.clamp(max=_CLIP).sum(1)
        model = None
        for share, normal in ((0.5, False), (0.5, False), (_ORDINARY, True)):
            least = distances.argsort(stable=True)[: math.ceil(share * len(values))]
            refitted = cls._fit(values[least], normal=normal)
            if refitted is None:  # these samples are all the same
                break
            model, distances = refitted, refitted.mahalanobis_squared(values)
        center, spread = robust_scale(distances)
        inliers = values if model is None else values[distances <= center + _CUTOFF * spread]
        return cls._fit(inliers, model)

    @classmethod
    def _fit(cls, values: Tensor, like: RobustGaussian | None = None, *, normal: bool = False) -> RobustGaussian | None:
        """Fit without regard to outliers: transformed as in another model, or to be `normal`, or not at all."""
        if like is None:
            mean, scale = values.mean(0), values.std(0, correction=0)
            used = scale > _STEADY * mean.abs()
            if not used.any():
                return None
            mean, scale = mean[used], scale[used]
            standard = (values[:, used] - mean) / scale
            low, high = standard.aminmax(dim=0)
            limits = low, high
            powers = _most_normal_powers(standard) if normal else torch.ones_like(mean)
        else:
            used, mean, scale, powers, limits = like.used, like.mean, like.scale, like.powers, like.limits
        transformed = _yeo_johnson((values[:, used] - mean) / scale, powers, *limits)
        center = transformed.mean(0)
        precision = torch.linalg.pinv(shrunk_covariance(transformed - center), hermitian=True)
        return cls(used, mean, scale, powers, limits, center, precision)

    def mahalanobis_squared(self, values: Tensor) -> Tensor:
        """Compute squared Mahalanobis distances `(n,)` of values `(n, V)`, infinite where one is not finite."""
        standard = (values[:, self.used].double() - self.mean) / self.scale
        centered = _yeo_johnson(standard, self.powers, *self.limits) - self.center
        distances = ((centered @ self.precision) * centered).sum(1)
        return torch.where(distances.isfinite(), distances, torch.inf)


def shrunk_covariance(centered: Tensor) -> Tensor:
    """Estimate the covariance `(v, v)` of centred numbers `(n, v)`, shrunk towards a multiple of the identity.

    The same as scikit-learn's `ledoit_wolf`, whose products run in NumPy's threads. These go on spinning afterwards,
    which makes LeNet-5's analysis half as long again; and its import takes half a second.
    """
    covariance = centered.T @ centered / len(centered)
    target = covariance.trace() / len(covariance) * torch.eye(len(covariance), device="cpu").to(covariance)
    distance = (covariance - target).square().sum()
    error = (centered.square().sum(1).square().mean() - covariance.square().sum()) / len(centered)
    return covariance + (error / distance).nan_to_num(0.0).clamp(max=1) * (target - covariance)


def _most_normal_powers(values: Tensor) -> Tensor:
    """Powers `(v,)` that make standardized numbers `(n, v)` most likely to come from normal distributions.

    The likelihood has one maximum (Marchand, Muzellec, Beguier, Ogier du Terrail and Andreux, "SecureFedYJ: a safe
    feature Gaussianization protocol for federated learning", 2022), where its slope changes sign.
    """
    signs, logs, positive = values.sign(), values.abs().log1p(), values >= 0
    drift = (signs * logs).mean(0)
    low, high = torch.full_like(drift, 1 - _FARTHEST), torch.full_like(drift, 1 + _FARTHEST)
    for _ in range(_HALVINGS):
        powers = (low + high) / 2
        exponents = torch.where(positive, powers, 2 - powers) * logs
        growth = exponents.expm1()
        flat = exponents.abs() < _SERIES
        safe = torch.where(flat, 1.0, exponents)
        transformed = signs * logs * torch.where(flat, 1 + exponents / 2, growth / safe)
        change = torch.where(flat, 0.5 + exponents / 3, (exponents * (growth + 1) - growth) / safe.square())
        centered = transformed - transformed.mean(0)
        rises = drift * centered.square().mean(0) > (centered * change * logs.square()).mean(0)
        low, high = torch.where(rises, powers, low), torch.where(rises, high, powers)
    return (low + high) / 2


def _yeo_johnson(values: Tensor, powers: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Transform numbers `(n, v)` by a power each `(v,)`, which is 1 where they stay as they are.

    Outside of the range from `low` to `high` `(v,)`, where a power of more than 1 would make too much of numbers such
    as it was not fitted to, the transformation goes on as a line.
    """
    exponents = torch.where(values >= 0, powers, 2 - powers)
    ranges = torch.minimum(torch.maximum(values, low), high)
    inside = torch.where(exponents > 1, ranges, values)
    bases = inside.abs().log1p()
    flat = exponents.abs() < 1e-9
    safe = torch.where(flat, 1.0, exponents)
    transformed = inside.sign() * torch.where(flat, bases, (safe * bases).expm1() / safe)
    return transformed + ((exponents - 1) * bases).exp() * (values - inside)
