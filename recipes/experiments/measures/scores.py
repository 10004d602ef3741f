"""How well scores, larger the more conspicuous a sample is, find what they should."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.nn import functional


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """The given label's logit minus the largest other one `(N,)`.

    Averaged over the epochs so far this is the area under the margin; wrong labels have small ones (Pleiss et al.,
    "Identifying Mislabeled Data using the Area Under the Margin Ranking", 2020).
    """
    given = functional.one_hot(labels, logits.shape[1]).bool()
    return logits[given] - logits.masked_fill(given, -torch.inf).max(1).values


def auroc(truth: Tensor, values: Tensor) -> float:
    """Area under the ROC curve: how often a sample of truth, bool `(N,)`, has a larger value than another one."""
    chosen, others = values[truth][:, None], values[~truth]
    return ((chosen > others).double() + (chosen == others).double() / 2).mean().item()


def detection(truth: Tensor, scores: Mapping[str, Tensor | None]) -> dict[str, Any]:
    """How well scores `(N,)` find the samples that truth, bool `(N,)`, names.

    Returns:
        The number of these, `planted`, and by measure a value for each of the scores, None for one that is missing.
    """
    found: dict[str, Any] = {"planted": int(truth.sum())}
    for name, measure in (("auroc", auroc), ("precision", average_precision_score)):
        found[name] = [None if own is None else round(float(measure(truth, own)), 3) for own in scores.values()]
    return found
