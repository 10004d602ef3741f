"""Statistics of ranks: how well values tell some samples from others, and how far two sets of values go together."""

from __future__ import annotations

import torch
from scipy.stats import spearmanr
from torch import Tensor

__all__ = ["auroc", "average_precision", "rank_correlation"]


def auroc(truth: Tensor, values: Tensor) -> float:
    """Area under the ROC curve: how often a sample of truth, bool `(N,)`, has a larger value than another one."""
    chosen, others = values[truth][:, None], values[~truth]
    return ((chosen > others).double() + (chosen == others).double() / 2).mean().item()


def average_precision(truth: Tensor, values: Tensor) -> float:
    """Mean over the samples of truth, bool `(N,)`, of the precision among all values that are as large or larger."""
    chosen = values[truth]
    found = (chosen >= chosen[:, None]).sum(1).double()
    return (found / (values >= chosen[:, None]).sum(1)).mean().item()


def rank_correlation(first: Tensor, second: Tensor) -> float | None:
    """Spearman's correlation of values `(N,)`; None where one of them is constant or not finite."""
    if not all(torch.isfinite(x).all() and x.min() < x.max() for x in (first, second)):
        return None
    return float(spearmanr(first.numpy(), second.numpy()).statistic)
