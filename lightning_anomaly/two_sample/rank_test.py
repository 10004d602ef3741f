"""A rank test for every filter, its permutation distribution, and how many samples it needs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MIN_EXPECTED = 5  # values other than the commonest one in the smaller group, as for a chi-squared test
MIN_SAMPLES = 2 * _MIN_EXPECTED  # of each group: a filter that responds to half of them is judged
DIVISIONS = 999


def random_divisions(n_first: int, n_samples: int) -> Tensor:
    """Draw random divisions of samples, always the same ones: bool `(n_samples, 999)`, `n_first` true in each."""
    noise = torch.rand(
        n_samples, DIVISIONS, dtype=torch.float64, device="cpu", generator=torch.Generator().manual_seed(0)
    )
    return noise <= noise.kthvalue(n_first, dim=0).values


def rank_test(values: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """Test whether each filter's values differ between two groups of samples, for many divisions at once.

    The rank test of Mann and Whitney, "On a Test of Whether One of Two Random Variables is Stochastically Larger than
    the Other" (1947), two-sided, in the normal approximation with ties, as SciPy's `mannwhitneyu` has it.

    Args:
        values: Values of all samples `(F, N)`.
        first: Divisions, each a column that says which samples are in the first group, as many in each; bool `(N, D)`.

    Returns:
        The area under the ROC curve `(F, D)`: the probability that a sample of the first group has the larger value,
        ties counted half; and the p-value `(F, D)`. 0.5 and 1 for a filter whose values are all the same.
    """
    from scipy.stats import rankdata  # late, because it is slow to import

    n_samples = len(first)
    n_first = int(first[:, 0].sum())
    pairs = n_first * (n_samples - n_first)
    ranks = torch.from_numpy(rankdata(values.cpu().double().numpy(), axis=1)) - (n_samples + 1) / 2
    deviation = ranks @ first.double()  # of the rank sum from its mean over all divisions
    spread = (pairs / (n_samples * (n_samples - 1)) * ranks.square().sum(1, keepdim=True)).sqrt()
    scores = (deviation.abs() - 0.5) / spread  # 0.5: the correction for continuity
    p_value = torch.where(spread > 0, torch.special.erfc(scores / math.sqrt(2)).clamp_max(1), 1.0)
    return 0.5 + deviation / pairs, p_value


def share_of_chance(found: float, chance: Tensor) -> float:
    """Compute the permutation p-value of a number: how often those of random divisions `(D,)` are at least as large.

    The actual division counts as one of them (Phipson and Smyth, "Permutation P-values Should Never Be Zero",
    2010).
    """
    return (1 + int((chance >= found).sum())) / (1 + len(chance))


def layer_significance(significance: float, layers: int) -> float:
    """Compute the p-value up to which one of several live layers is significant.

    That is `significance` over their number (Bonferroni), but at least 0.001, the smallest that random divisions can
    give.
    """
    return max(significance / max(1, layers), 1 / (1 + DIVISIONS))


def live_filters(values: Tensor, n_first: int) -> Tensor:
    """Find the filters that can be judged from their values `(F, N)`; bool `(F,)`.

    Their values are finite, and so many of them are not the commonest one that five of these are expected in the
    smaller group, as the approximation in `rank_test` needs.
    """
    smaller = min(n_first, values.shape[1] - n_first)
    uncommon = (values != values.mode(1, keepdim=True).values).sum(1)
    return values.isfinite().all(1) & (uncommon * smaller >= _MIN_EXPECTED * values.shape[1])
