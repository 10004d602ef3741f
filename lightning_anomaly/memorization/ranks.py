"""The rank test of filters and its permutation p-values."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MIN_EXPECTED = 5  # expected number of uncommon values in the smaller group, as for a chi-squared test
MIN_SAMPLES = 2 * _MIN_EXPECTED  # in each group: enough to test a filter that responds to half of them
SIGNIFICANCE = 0.01  # p-value up to which a filter, a layer or the output counts
DIVISIONS = 999
_DIVISIONS_AT_ONCE = 64
_ROUNDING = 1e-9  # of standardized statistics: a smaller difference is a tie


def random_divisions(n_first: int, n_samples: int) -> Tensor:
    """Draw 999 divisions of the samples with a fixed seed: bool `(n_samples, 999)`, `n_first` true in each column."""
    generator = torch.Generator().manual_seed(0)
    divisions = torch.zeros(DIVISIONS, n_samples, dtype=torch.bool, device="cpu")
    for division in divisions:
        division[torch.randperm(n_samples, generator=generator, device="cpu")[:n_first]] = True
    return divisions.T


def rank_test(values: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """Test whether values `(F, N)` differ between two groups of samples; return areas and p-values `(F, D)`.

    The columns of `first`, bool `(N, D)`, are divisions with equally large first groups. The area under the ROC curve
    is the probability that a sample of the first group has the larger value, ties counted half. This is the two-sided
    rank test of Mann and Whitney (1947) in the normal approximation with ties, like SciPy's `mannwhitneyu`.
    """
    from scipy.stats import rankdata  # slow to import

    n_samples = len(first)
    n_first = int(first[:, 0].sum())
    pairs = n_first * (n_samples - n_first)
    ranks = torch.from_numpy(rankdata(values.cpu().double().numpy(), axis=1)) - (n_samples + 1) / 2
    # Rank sums less their mean over all divisions; a few divisions at a time become doubles.
    deviation = torch.cat([ranks @ part.double() for part in torch.split(first, _DIVISIONS_AT_ONCE, 1)], 1)
    spread = (pairs / (n_samples * (n_samples - 1)) * ranks.square().sum(1, keepdim=True)).sqrt()
    scores = (deviation.abs() - 0.5) / spread  # 0.5: the correction for continuity
    p_value = torch.where(spread > 0, torch.special.erfc(scores / math.sqrt(2)).clamp_max(1), 1.0)
    return 0.5 + deviation / pairs, p_value


def permutation_p_value(statistic: float, chance: Tensor) -> float:
    """Compute how often random divisions give a statistic `(D,)` at least as large as the actual division does.

    The actual division counts as one of them (Phipson and Smyth, "Permutation P-values Should Never Be Zero", 2010).
    """
    return (1 + int((chance >= statistic).sum())) / (1 + len(chance))


def layer_p_values(deviations: Tensor) -> list[float]:
    """Compute each layer's permutation p-value from statistics in all divisions, the actual first `(layers, 1 + D)`.

    Standardized, it is how often a random division has one as large in any of the layers: "maxT" of Westfall and Young,
    "Resampling-Based Multiple Testing" (1993). So chance gives any of the layers p or less with probability p.
    """
    if not len(deviations):
        return []
    spread = deviations.std(1, keepdim=True).clamp(min=torch.finfo(deviations.dtype).tiny)
    scores = (deviations - deviations.mean(1, keepdim=True)) / spread
    largest = scores[:, 1:].amax(0)
    return [permutation_p_value(score - _ROUNDING, largest) for score in scores[:, 0].tolist()]


def responding_filters(values: Tensor, n_first: int) -> Tensor:
    """Find the filters whose values `(F, N)` suffice for the approximation in `rank_test`; bool `(F,)`."""
    smaller = min(n_first, values.shape[1] - n_first)
    uncommon = (values != values.mode(1, keepdim=True).values).sum(1)
    return values.isfinite().all(1) & (uncommon * smaller >= _MIN_EXPECTED * values.shape[1])
