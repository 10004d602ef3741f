"""Compare how sure a network is of its answers between two groups of samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_anomaly.two_sample.rank_test import rank_test


class ExpectedErrors:
    """Collects, batch by batch, the probability that each answer is wrong, by the model's confidence."""

    def __init__(self, probabilities: bool | None = None) -> None:
        self.probabilities = probabilities  # whether outputs need no softmax; None asks the first batch
        self.problem: str | None = None  # why the output cannot be used, if so
        self._errors: list[Tensor] = []  # of the samples of each batch `(n,)`, on the CPU

    def __len__(self) -> int:
        return sum(map(len, self._errors))

    def update(self, output: Any) -> None:
        """Add a batch of outputs `(n, C)`, or `(n, C, ...)`, of which the mean over the positions counts.

        One score `(n,)` or `(n, 1, ...)` is that of one of two classes; of a mapping its `logits` count.
        """
        if self.problem is not None:
            return
        output = output.get("logits", output) if isinstance(output, Mapping) else output
        if not isinstance(output, Tensor):
            self.problem = f"it is a {type(output).__name__}, not a tensor of logits, which `forward` should return"
        elif output.ndim < 1 or 0 in output.shape or not output.is_floating_point():
            self.problem = f"it is {output.dtype} of shape {tuple(output.shape)}, not logits (samples, classes, ...)"
        else:
            scores = output.detach().to(torch.float64 if output.dtype == torch.float64 else torch.float32)
            scores = scores[:, None] if scores.ndim == 1 else scores
            one = scores.shape[1] == 1
            if self.probabilities is None:
                # With a tolerance for rounding: in bfloat16 the sum is 1 to two digits. False for NaN.
                excess = scores.max() - 1 if one else (scores.sum(1) - 1).abs().max()
                self.probabilities = bool(scores.min() >= -0.02 and excess <= 0.02)
            if one:
                scores = torch.cat([scores, 1 - scores if self.probabilities else torch.zeros_like(scores)], 1)
            errors = expected_error(scores.clamp(min=0) if self.probabilities else scores.softmax(1))
            self._errors.append(errors[..., None].flatten(1).mean(1).cpu())

    def result(self, n_samples: int) -> Tensor | None:
        """Return those of all samples `(n_samples,)`.

        None if some are missing or not finite; `problem` is the reason then.
        """
        found = torch.cat(self._errors) if self._errors else torch.zeros(0, device="cpu")
        if self.problem is None and len(found) != n_samples:
            self.problem = f"it has {len(found)} samples where the inputs have {n_samples}"
        if self.problem is None and not found.isfinite().all():
            self.problem = f"it is NaN for {int((~found.isfinite()).sum())} of {n_samples} samples"
        return found if self.problem is None else None


def expected_error(probabilities: Tensor) -> Tensor:
    """Compute 1 less the largest of C probabilities `(n, C, ...)`, exact also where that is nearly 1: `(n, ...)`."""
    return probabilities.scatter(1, probabilities.argmax(1, keepdim=True), 0).sum(1)


def mean_error(errors: Tensor) -> float:
    """Compute the mean of expected errors `(n,)`, at least 1e-7, so that one can be divided by another."""
    return max(errors.double().mean().item(), 1e-7)


def compare_confidences(first: Tensor, second: Tensor) -> tuple[float, float, float]:
    """Compare confidences `(n,)` of one group with those `(m,)` of another.

    Returns:
        The area under the ROC curve, the probability that a sample of the first group has the larger one; the mean of
        the first group less that of the second; and the two-sided p-value of the rank test, see `rank_test`.

    Examples:
        >>> compare_confidences(torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0.5, 0.6, 0.75]))[0]
        0.8888888888888888
    """
    both = torch.cat([first, second])[None]
    area, p_value = rank_test(both, torch.arange(both.shape[1], device=both.device)[:, None] < len(first))
    return area.item(), (first.double().mean() - second.double().mean()).item(), p_value.item()
