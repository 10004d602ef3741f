"""Whether values differ between two groups of samples: a rank test for every filter, and what chance gives."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

__all__ = [
    "DIVISIONS",
    "SMALLEST",
    "enough_samples",
    "layer_significance",
    "live_filters",
    "random_divisions",
    "rank_test",
    "samples_needed",
    "samples_to_be_live",
    "share_of_chance",
]

_EXPECTED = 5  # values other than the commonest one in the smaller group, as for a chi-squared test
DIVISIONS = 999
SMALLEST = 1 / (1 + DIVISIONS)  # p-value that they can give


def random_divisions(n_first: int, n_samples: int) -> Tensor:
    """Random divisions of samples into two groups, always the same ones.

    Args:
        n_first: Samples in the first group.
        n_samples: All samples.

    Returns:
        Whether each sample is in the first group, bool `(n_samples, 999)`, `n_first` of each column.
    """
    noise = torch.rand(
        n_samples, DIVISIONS, dtype=torch.float64, device="cpu", generator=torch.Generator().manual_seed(0)
    )
    return noise <= noise.kthvalue(n_first, dim=0).values


def rank_test(values: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """How well each filter's value tells the samples of one group from those of another, for many divisions at once.

    The rank test of Mann and Whitney, "On a Test of Whether One of Two Random Variables is Stochastically Larger than
    the Other" (1947), two-sided, in the normal approximation with ties, as SciPy's `mannwhitneyu` has it. Where both
    groups are drawn alike, a filter has a p-value of at most 1% with a probability of 1%.

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
    """The p-value of a number among those that random divisions gave `(D,)`: how often these are at least as large.

    The division that was made counts as one of them (Phipson and Smyth, "Permutation P-values Should Never Be Zero",
    2010).
    """
    return (1 + int((chance >= found).sum())) / (1 + len(chance))


def layer_significance(significance: float, layers: int) -> float:
    """The p-value, of those that random divisions give, up to which one of several live layers is named.

    A share of `significance` for each (Bonferroni), so that where nothing is to be found one of them is named at most
    that often; but 0.001 at least, as there is none smaller, so of more than ten layers at 1% that is one time in 1,000
    for each.
    """
    return max(significance / max(1, layers), SMALLEST)


def live_filters(values: Tensor, n_first: int) -> Tensor:
    """Which filters can be judged from their values `(F, N)`; bool `(F,)`.

    Their values are finite, and so many of them are not the commonest one that five of these are expected in the
    smaller group, as the approximation in `rank_test` needs.
    """
    smaller = min(n_first, values.shape[1] - n_first)
    return values.isfinite().all(1) & (_uncommon(values) * smaller >= _EXPECTED * values.shape[1])


def samples_to_be_live(values: Tensor) -> int | None:
    """How many samples each group should have, were they like these, for some filter to be live.

    Args:
        values: Values of all samples `(F, N)`.

    Returns:
        The number; None if no filter has more than one value.
    """
    most = int(_uncommon(values).max())
    return math.ceil(_EXPECTED * values.shape[1] / most) if most else None


def enough_samples(n_first: int, n_second: int, significance: float) -> bool:
    """Whether a filter that responds to half of the samples is live, and whether a p-value can be so small.

    Args:
        n_first: Samples in one group.
        n_second: Samples in the other one.
        significance: The p-value that `rank_test` should be able to give.
    """
    if min(n_first, n_second) / 2 < _EXPECTED:
        return False
    pairs = n_first * n_second
    # The smallest p-value is that of different values, of which one group has all the larger ones.
    score = (pairs / 2 - 0.5) / math.sqrt(pairs * (n_first + n_second + 1) / 12)
    return math.erfc(score / math.sqrt(2)) <= significance


def samples_needed(significance: float) -> int:
    """The smallest number of samples that is enough in each group, however many the other one has."""
    return next(n for n in itertools.count(1) if enough_samples(n, n, significance))


def _uncommon(values: Tensor) -> Tensor:
    """How many of each filter's values `(F, N)` are not its commonest one `(F,)`."""
    return (values != values.mode(1, keepdim=True).values).sum(1)
