"""What is ordinary, learned from samples that may include outliers: a Mahalanobis distance, tails, p-values."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import boxcox1p
from torch import Tensor

_CLIP = 6.0  # robust standard deviations at which a single number is clipped in the first selection
_ORDINARY = 0.8  # share of the samples, the least outlying ones, to which the power transformation is fitted
_CUTOFF = 4.0  # robust standard deviations above the median of the squared distances, beyond which are outliers
_MIN_SAMPLES = 8
_POWERS = -31.0, 33.0  # smallest and largest; more would overflow for samples far out
SURPRISING = math.log(20)  # nats, above 95% of ordinary scores, from which on a score gets a reason
NOTICED = math.log(5)  # nats from which on it gets one if a single property is clearly odd
_MOST = 100.0  # nats; beyond them scores grow only logarithmically, which keeps the order of the samples
_LEVELS = [level / 20 for level in range(19)]
_NATS = torch.tensor([-math.log(1 - level) for level in _LEVELS], dtype=torch.float64, device="cpu")
_FROM = 0.75  # quantile from which on the slope of the tail is measured; few outliers do not move it
_ROUNDING = 1e-4  # relative difference of scores that are ties
_FLAT = 1e-6  # scale of a tail that is rounding, relative to its start
_ENDS = 0.1, 0.25  # quantiles from which both tails of a number are measured
_NARROWEST = 0.02  # smallest scale of these tails, relative to the range between the outer quantiles


def robust_scale(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the median and 1.4826 times the median absolute deviation along the first axis."""
    median = values.median(0).values
    return median, 1.4826 * (values - median).abs().median(0).values


@dataclass(frozen=True, eq=False)
class RobustGaussian:
    """A robust normal distribution of V numbers after a power transformation, without which long tails were outliers.

    The estimator is a reweighted minimum covariance determinant (Rousseeuw and Van Driessen, 1999), shrunk (Ledoit and
    Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", 2004), so that V may exceed the
    number of samples. Powers are those of Yeo and Johnson (2000). Floors, changes that are rounding, add to the
    variances.
    """

    mean: Tensor  # `(V,)`
    scale: Tensor  # standard deviations, at least the floors `(V,)`
    powers: Tensor  # of the transformation `(V,)`
    limits: tuple[Tensor, Tensor]  # smallest and largest standardized numbers of the fit `(V,)`
    center: Tensor  # means of the transformed numbers `(V,)`
    precision: Tensor  # inverse of their covariance `(V, V)`

    @classmethod
    def fit(cls, values: Tensor, floors: Tensor) -> RobustGaussian | None:
        """Fit to values `(N, V)` on the CPU with floors `(V,)`; None if under eight are finite or nothing varies."""
        values = values[values.isfinite().all(1)].double()
        if len(values) < _MIN_SAMPLES or not (values - values[0]).abs().gt(floors).any():
            return None
        median, spread = robust_scale(values)
        far = ((values - median) / torch.maximum(spread, floors)).abs()
        distances = far.clamp(max=_CLIP).sum(1)
        for share in (0.5, 0.5, _ORDINARY):
            least = values[distances.argsort(stable=True)[: math.ceil(share * len(values))]]
            mean, scale = least.mean(0), torch.maximum(least.std(0, correction=0), floors)
            standard, powers, varying = (least - mean) / scale, torch.ones_like(mean), scale > floors
            if share == _ORDINARY:
                powers[varying] = _most_normal_powers(standard[:, varying])
            shape = mean, scale, powers, (standard.amin(0), standard.amax(0))
            model = cls(*shape, mean, scale)._fit_to(least, floors)  # which replaces the last two
            distances = model.mahalanobis_squared(values)
        center, spread = robust_scale(distances)
        return model._fit_to(values[distances <= center + _CUTOFF * spread], floors)

    def _fit_to(self, values: Tensor, floors: Tensor) -> RobustGaussian:
        """Fit the normal distribution to all values, with the same transformation."""
        transformed = self._transformed(values)
        center = transformed.mean(0)
        covariance = shrunk_covariance(transformed - center)
        covariance.diagonal().add_((floors / self.scale).square())
        return replace(self, center=center, precision=torch.linalg.inv(covariance))

    def _transformed(self, values: Tensor) -> Tensor:
        return _yeo_johnson((values - self.mean) / self.scale, self.powers, *self.limits)

    def mahalanobis_squared(self, values: Tensor) -> Tensor:
        """Compute squared Mahalanobis distances `(n,)` of values `(n, V)`, infinite for values that are not finite."""
        centered = self._transformed(values.double()) - self.center
        distances = ((centered @ self.precision) * centered).sum(1)
        return torch.where(distances.isfinite(), distances, torch.inf)


def shrunk_covariance(centered: Tensor) -> Tensor:
    """Estimate the covariance `(v, v)` of centered numbers `(n, v)`, shrunk towards a multiple of the identity.

    Equals scikit-learn's `ledoit_wolf`, with which LeNet-5's analysis takes 1.5 times as long, as NumPy's threads spin.
    """
    covariance = centered.T @ centered / len(centered)
    target = covariance.trace() / len(covariance) * torch.eye(len(covariance), device="cpu").to(covariance)
    distance = (covariance - target).square().sum()
    error = (centered.square().sum(1).square().mean() - covariance.square().sum()) / len(centered)
    return covariance + (error / distance).nan_to_num(0.0).clamp(max=1) * (target - covariance)


def _most_normal_powers(values: Tensor) -> Tensor:
    """Find the powers `(v,)` that maximize the normal likelihood of standardized numbers `(n, v)`, none constant.

    There is one maximum (Marchand et al., "SecureFedYJ", 2022). SciPy's `yeojohnson_normmax` takes twelve times as
    long.
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
    """Transform numbers `(n, v)` by powers `(v,)`, linearly outside `low` to `high`, where powers would exaggerate."""
    exponents = torch.where(values >= 0, powers, 2 - powers)
    ranges = torch.minimum(torch.maximum(values, low), high)
    inside = torch.where(exponents > 1, ranges, values)
    sizes = inside.abs()
    transformed = inside.sign() * torch.from_numpy(boxcox1p(sizes.numpy(), exponents.numpy()))
    return transformed + ((exponents - 1) * sizes.log1p()).exp() * (values - inside)


class Tail(NamedTuple):
    """Tail probabilities of scores among those of ordinary samples, of which up to a tenth may be outliers.

    Their negative logarithm is linear between the 0, 0.05, ..., 0.9 quantiles, few enough that rounding does not show,
    and beyond, as logarithms of squared Mahalanobis distances have an exponential tail. If most scores are equal, that
    begins at the next larger one.
    """

    knots: Tensor  # the quantiles `(19,)`
    start: float  # where the exponential tail begins
    least: float  # surprise up to there, beyond the last quantile (nats)
    scale: float  # of the exponential tail, in units of the scores; infinite if no score tells it

    @classmethod
    def fit(cls, scores: Tensor) -> Tail:
        """Fit to the scores `(n,)` of ordinary samples; infinite scores are ignored."""
        ordered = scores[scores.isfinite()].double().sort().values
        count = len(ordered)
        if not count:
            return cls(torch.full((len(_LEVELS),), torch.inf, dtype=torch.float64, device="cpu"), torch.inf, 0.0, 1.0)
        knots = ordered[[int(level * count) for level in _LEVELS]]
        start, before = knots[-1].item(), knots[_LEVELS.index(_FROM)].item()
        scale = (start - before) / math.log((1 - _FROM) / (1 - _LEVELS[-1]))
        if scale > (rounding := _FLAT * (1 + abs(start))):
            return cls(knots, start, _NATS[-1].item(), scale)
        beyond = ordered[ordered > start + rounding]
        if not len(beyond):
            return cls(knots, start, math.log(1 + count), torch.inf)
        first = beyond[0].item()
        mean = (beyond - first).mean().item()
        return cls(knots, first, math.log((1 + count) / len(beyond)), mean if mean > rounding else first - start)

    def surprise(self, scores: Tensor) -> Tensor:
        """Compute the negative logarithms of the tail probabilities of scores `(n,)`, in nats, float64 `(n,)`."""
        scores = scores.double()
        # Falls from the last knot to the first, so that of equal knots the first, the least surprise, counts.
        knots, nats = (ends.flip(0).numpy() for ends in (-self.knots, _NATS))
        surprises = torch.from_numpy(np.interp(-scores.numpy(), knots, nats))
        beyond = self.least + (scores - self.start).clamp(min=0) / self.scale
        surprises = torch.where(scores > self.knots[-1], beyond, surprises)
        return torch.where(scores == torch.inf, scores, surprises)


class TwoTails(NamedTuple):
    """Tail probabilities of V numbers on both sides among those of ordinary samples; both tails are exponential."""

    ends: Tensor  # two quantiles below the median and two above it, which few outliers do not move `(4, V)`
    narrowest: Tensor  # smallest scales of the tails `(V,)`
    levels: tuple[float, float]  # which quantiles the first two are; the others are as far from 1

    @classmethod
    def fit(cls, values: Tensor, floors: Tensor | float = 0.0, levels: tuple[float, float] = _ENDS) -> TwoTails:
        """Fit to finite values `(n, V)`, whose changes up to the floors `(V,)` are rounding."""
        ordered, (outer, inner) = values.double().sort(0).values, levels
        ends = ordered[[int(level * len(ordered)) for level in (outer, inner, 1 - inner, 1 - outer)]]
        return cls(ends, (_NARROWEST * (ends[3] - ends[0])).clamp(min=floors), levels)

    def surprise(self, values: Tensor) -> Tensor:
        """Compute surprises on both sides, in nats `(n, V, 2)`, right beyond the outer quantiles; NaN if constant."""
        (lowest, low, high, highest), (outer, inner) = self.ends, self.levels
        beyond = torch.stack([lowest - values, values - highest], 2)
        widths = torch.maximum(torch.stack([low - lowest, highest - high], 1), self.narrowest[:, None])
        return math.log(1 / outer) + math.log(inner / outer) * beyond / widths


class Scale(NamedTuple):
    """Scores by several measures, in nats: negative logarithms of tail probabilities."""

    tails: tuple[Tail, ...]  # the distribution of each measure among ordinary samples
    joint: Tail  # that of the largest surprise of several measures, or of their sum
    summed: bool  # whether surprises are added up

    @classmethod
    def fit(cls, measures: Tensor, *, summed: bool = False) -> Scale:
        """Fit to the measures `(n, m)` of ordinary samples."""
        tails = tuple(map(Tail.fit, measures.unbind(1)))
        return cls(tails, Tail.fit(_scale_surprises(tails, measures, summed)[1]), summed)

    def scores(self, measures: Tensor) -> tuple[Tensor, Tensor]:
        """Compute scores in nats `(n,)`, and which of the measures `(n, m)` is the most surprising `(n,)`."""
        surprises, joint = _scale_surprises(self.tails, measures, self.summed)
        scores = self.joint.surprise(joint) if len(self.tails) > 1 else joint
        return torch.where(scores > _MOST, _MOST + (scores / _MOST).log(), scores), surprises.argmax(1)


def _scale_surprises(tails: tuple[Tail, ...], measures: Tensor, summed: bool) -> tuple[Tensor, Tensor]:
    """Return the surprise of each measure `(n, m)`, and the joint one `(n,)`."""
    columns = zip(tails, measures.unbind(1), strict=True)
    surprises = torch.stack([tail.surprise(column) for tail, column in columns], 1)
    return surprises, surprises.sum(1) if summed else surprises.amax(1)


def conformal_p_values(scores: Tensor, calibration: Tensor) -> Tensor:
    """Compute p-values `(n,)` of scores `(n,)` by sorted calibration scores `(m,)`; NaN for infinite scores."""
    scores = scores.to(calibration).contiguous()
    # Counts the calibration scores that are at least as large, within rounding.
    smaller = torch.searchsorted(calibration, scores - _ROUNDING * (1 + scores.abs()))
    p_values = (1 + len(calibration) - smaller).double() / (1 + len(calibration))
    return torch.where(scores.isfinite(), p_values, torch.nan)
