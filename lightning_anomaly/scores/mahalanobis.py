"""A robust Mahalanobis distance for samples that may include outliers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import boxcox1p
from torch import Tensor

_CLIP = 6.0  # robust standard deviations at which a single number is clipped in the first selection
_ORDINARY = 0.8  # share of the samples, the least outlying ones, to which the power transformation is fitted
_CUTOFF = 4.0  # robust standard deviations above the median of the squared distances, beyond which are outliers
_MIN_SAMPLES = 8
_POWERS = -31.0, 33.0  # smallest and largest; more would overflow for samples far out


def robust_scale(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the median and 1.4826 times the median absolute deviation along the first axis."""
    median = values.median(0).values
    return median, 1.4826 * (values - median).abs().median(0).values


@dataclass(frozen=True, eq=False)
class RobustGaussian:
    """A robust normal distribution of V numbers after a power transformation.

    The estimator is a reweighted minimum covariance determinant (Rousseeuw and Van Driessen, "A fast algorithm for the
    minimum covariance determinant estimator", 1999). Its covariance is shrunk (Ledoit and Wolf, "A well-conditioned
    estimator for large-dimensional covariance matrices", 2004), so that V may exceed the number of samples. Before the
    last step a power transformation makes each number most normal (Yeo and Johnson, "A new family of power
    transformations to improve normality or symmetry", 2000), so that samples in a long tail are not outliers.

    Each number has a floor, the change that is rounding: its variance is increased by the square of that.
    """

    mean: Tensor  # `(V,)`
    scale: Tensor  # standard deviations, at least the floors `(V,)`
    powers: Tensor  # of the transformation `(V,)`
    limits: tuple[Tensor, Tensor]  # smallest and largest standardized numbers of the fit `(V,)`
    center: Tensor  # means of the transformed numbers `(V,)`
    precision: Tensor  # inverse of their covariance `(V, V)`

    @classmethod
    def fit(cls, values: Tensor, floors: Tensor) -> RobustGaussian | None:
        """Fit to values `(N, V)` on the CPU with floors `(V,)`.

        Returns:
            The distribution; None if fewer than eight samples are finite or nothing varies by more than its floor.
        """
        values = values[values.isfinite().all(1)].double()
        if len(values) < _MIN_SAMPLES or not (values - values[0]).abs().gt(floors).any():
            return None
        median, spread = robust_scale(values)
        far = ((values - median) / torch.maximum(spread, floors)).abs()
        distances = far.clamp(max=_CLIP).sum(1)
        for share, normal in ((0.5, False), (0.5, False), (_ORDINARY, True)):
            least = distances.argsort(stable=True)[: math.ceil(share * len(values))]
            model = cls._fit(values[least], floors, normal=normal)
            distances = model.mahalanobis_squared(values)
        center, spread = robust_scale(distances)
        return cls._fit(values[distances <= center + _CUTOFF * spread], floors, model)

    @classmethod
    def _fit(
        cls, values: Tensor, floors: Tensor, like: RobustGaussian | None = None, *, normal: bool = False
    ) -> RobustGaussian:
        """Fit to all values, transformed as in the model `like`, by fitted powers if `normal`, or not at all."""
        if like is None:
            mean = values.mean(0)
            scale = torch.maximum(values.std(0, correction=0), floors)
            standard = (values - mean) / scale
            low, high = standard.aminmax(dim=0)
            limits = low, high
            powers = torch.ones_like(mean)
            if normal:
                varying = scale > floors
                powers[varying] = _most_normal_powers(standard[:, varying])
        else:
            mean, scale, powers, limits = like.mean, like.scale, like.powers, like.limits
        transformed = _yeo_johnson((values - mean) / scale, powers, *limits)
        center = transformed.mean(0)
        covariance = shrunk_covariance(transformed - center)
        covariance.diagonal().add_((floors / scale).square())
        return cls(mean, scale, powers, limits, center, torch.linalg.inv(covariance))

    def mahalanobis_squared(self, values: Tensor) -> Tensor:
        """Compute squared Mahalanobis distances `(n,)` of values `(n, V)`, infinite for values that are not finite."""
        standard = (values.double() - self.mean) / self.scale
        centered = _yeo_johnson(standard, self.powers, *self.limits) - self.center
        distances = ((centered @ self.precision) * centered).sum(1)
        return torch.where(distances.isfinite(), distances, torch.inf)


def shrunk_covariance(centered: Tensor) -> Tensor:
    """Estimate the covariance `(v, v)` of centered numbers `(n, v)`, shrunk towards a multiple of the identity.

    Equals scikit-learn's `ledoit_wolf`, with which LeNet-5's analysis takes 1.5 times as long: NumPy's threads keep
    spinning after its matrix products.
    """
    covariance = centered.T @ centered / len(centered)
    target = covariance.trace() / len(covariance) * torch.eye(len(covariance), device="cpu").to(covariance)
    distance = (covariance - target).square().sum()
    error = (centered.square().sum(1).square().mean() - covariance.square().sum()) / len(centered)
    return covariance + (error / distance).nan_to_num(0.0).clamp(max=1) * (target - covariance)


def _most_normal_powers(values: Tensor) -> Tensor:
    """Find the powers `(v,)` that maximize the normal likelihood of standardized numbers `(n, v)`, none constant.

    The likelihood has one maximum (Marchand, Muzellec, Beguier, Ogier du Terrail and Andreux, "SecureFedYJ: a safe
    feature Gaussianization protocol for federated learning", 2022). SciPy's `yeojohnson_normmax` takes twelve times as
    long for 512 samples.
    """
    from scipy.optimize import minimize_scalar  # slow to import

    def most_normal(column: np.ndarray) -> float:
        sizes, signs, positive = np.abs(column), np.sign(column), column >= 0
        drift = (signs * np.log1p(sizes)).mean()

        def cost(power: float) -> float:
            transformed = signs * boxcox1p(sizes, np.where(positive, power, 2 - power))
            return float(np.log(transformed.var()) / 2 - power * drift)

        return float(minimize_scalar(cost, bounds=_POWERS, method="bounded", options={"xatol": 1e-8}).x)

    return torch.tensor([most_normal(column) for column in values.T.numpy()], dtype=values.dtype, device="cpu")


def _yeo_johnson(values: Tensor, powers: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Transform numbers `(n, v)` by powers `(v,)`; a power of 1 leaves them unchanged.

    Outside `low` to `high` `(v,)`, the range of the fit, the transformation is linear: powers would exaggerate there.
    """
    exponents = torch.where(values >= 0, powers, 2 - powers)
    ranges = torch.minimum(torch.maximum(values, low), high)
    inside = torch.where(exponents > 1, ranges, values)
    sizes = inside.abs()
    transformed = inside.sign() * torch.from_numpy(boxcox1p(sizes.numpy(), exponents.numpy()))
    return transformed + ((exponents - 1) * sizes.log1p()).exp() * (values - inside)
