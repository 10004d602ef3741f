"""A rank test for every filter, its permutation distribution, and how many samples it needs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MIN_EXPECTED = 5  # values other than the commonest one in the smaller group, as for a chi-squared test
MIN_SAMPLES = 2 * _MIN_EXPECTED  # of each group: a filter that responds to half of them is judged
DIVISIONS = 999
MIN_P_VALUE = 1 / (1 + DIVISIONS)  # that they can give
_DIVISIONS_AT_ONCE = 64


def random_divisions(n_first: int, n_samples: int) -> Tensor:
    """Draw random divisions of samples, always the same ones: bool `(n_samples, 999)`, `n_first` true in each."""
    generator = torch.Generator().manual_seed(0)
    divisions = torch.zeros(DIVISIONS, n_samples, dtype=torch.bool, device="cpu")
    for division in divisions:
        division[torch.randperm(n_samples, generator=generator, device="cpu")[:n_first]] = True
    return divisions.T


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
    # Of the rank sum from its mean over all divisions, some of which are numbers at a time.
    deviation = torch.cat([ranks @ some.double() for some in torch.split(first, _DIVISIONS_AT_ONCE, 1)], 1)
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


def shares_of_chance(found: Tensor, smallest: Tensor) -> list[float]:
    """Compute a p-value for each layer by permutation: chance gives any of the layers p or less with probability p.

    That is how often a random division finds, in any of the layers, what is as rare for that layer (Westfall and Young,
    "Resampling-Based Multiple Testing", 1993). Of what is equally rare, the smallest p-value of a filter decides.

    Args:
        found: How many filters each division finds in each layer, the actual one first `(layers, 1 + D)`.
        smallest: The smallest p-value that it gives a filter there.
    """
    # It decides between equal numbers as well: in a layer of one or two filters these hardly differ.
    evidence = found - smallest
    as_many = evidence.shape[1] - torch.searchsorted(evidence.sort(1).values, evidence)  # divisions with as much
    rarity = -(as_many + smallest)
    rarest = rarity[:, 1:].amax(0)
    return [share_of_chance(value, rarest) for value in rarity[:, 0].tolist()]


def live_filters(values: Tensor, n_first: int) -> Tensor:
    """Find the filters that can be judged from their values `(F, N)`; bool `(F,)`.

    Their values are finite, and so many of them are not the commonest one that five of these are expected in the
    smaller group, as the approximation in `rank_test` needs.
    """
    smaller = min(n_first, values.shape[1] - n_first)
    uncommon = (values != values.mode(1, keepdim=True).values).sum(1)
    return values.isfinite().all(1) & (uncommon * smaller >= _MIN_EXPECTED * values.shape[1])
