"""Measures of scores that are larger for odder samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.nn import functional


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the logit of the label minus the largest other logit `(N,)`.

    Averaged over the epochs so far this is the area under the margin; wrong labels have small ones (Pleiss et al.,
    "Identifying Mislabeled Data using the Area Under the Margin Ranking", 2020).
    """
    labelled = functional.one_hot(labels, logits.shape[1]).bool()
    return logits[labelled] - logits.masked_fill(labelled, -torch.inf).max(1).values


def auroc(truth: Tensor, values: Tensor) -> float:
    """Compute the area under the ROC curve of values `(N,)` for truth, bool `(N,)`; ties count half."""
    chosen, others = values[truth][:, None], values[~truth]
    return ((chosen > others).double() + (chosen == others).double() / 2).mean().item()


def detection(truth: Tensor, scores: Mapping[str, Tensor | None]) -> dict[str, Any]:
    """Measure how well scores `(N,)` find the samples of truth, bool `(N,)`.

    Returns:
        The number of `planted` samples, and by measure a value for each score, None for a missing one.
    """
    result: dict[str, Any] = {"planted": int(truth.sum())}
    for name, measure in (("auroc", auroc), ("precision", average_precision_score)):
        result[name] = [None if part is None else round(float(measure(truth, part)), 3) for part in scores.values()]
    return result
