"""Compare the confidence of a network between two groups of samples."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_anomaly.memorization.ranks import rank_test
from lightning_anomaly.network.step_loss import Reading

_ROUNDING = 0.02  # that probabilities may be off, as sums in bfloat16 are 1 to two digits


class ExpectedErrors:
    """Collects, batch by batch, the expected error of each sample: 1 less its largest probability.

    Without a `reading` the first batch tells what scores are: single ones are logits if one is outside 0 to 1, and rows
    are probabilities if they are positive and add up to 1.
    """

    def __init__(self, reading: Reading | None = None) -> None:
        self.problem: str | None = None  # why the output cannot be used
        self._reading, self._is_given = reading, reading is not None
        self._errors: list[Tensor] = []  # of each batch `(n,)`, on the CPU
        self._logits: list[Tensor] = []  # of each batch `(n, C)`, on the CPU; none of outputs `(n, C, ...)`

    def add(self, scores: Tensor) -> None:
        """Add scores `(n, C, ...)`; one score is that of one of two classes. Errors are averaged over positions."""
        if self.problem is None and 0 in scores.shape:
            self.problem = f"it has shape {tuple(scores.shape)}"
        if self.problem is not None:
            return
        scores = scores.flatten(1) if scores[0, 0].numel() == 1 else scores
        scores = scores.detach().to(torch.float64 if scores.dtype == torch.float64 else torch.float32)
        single = scores.shape[1] == 1
        off = (scores - scores.clamp(0, 1)).abs() if single else (scores.sum(1) - 1).abs()
        could_be = bool(scores.min() >= -_ROUNDING and off.max() <= _ROUNDING)  # false for NaN
        if self._reading is None:
            self._reading = "probabilities" if could_be else "logits"
        if self._reading == "probabilities" and not could_be and not self._is_given and scores.isfinite().all():
            self.problem = "it is probabilities of some images, and not of others: name what returns logits"
            return
        if self._reading == "probabilities":
            probabilities = (torch.cat([1 - scores, scores], 1) if single else scores).clamp(min=0)
            logits = probabilities.clamp(min=torch.finfo(scores.dtype).tiny).log()
        else:
            logits = torch.cat([torch.zeros_like(scores), scores], 1) if single else scores
            probabilities = logits.softmax(1)
        self._errors.append(expected_error(probabilities)[..., None].flatten(1).mean(1).cpu())
        if scores.ndim == 2:
            self._logits.append(logits.cpu())

    def result(self, n_samples: int) -> Tensor | None:
        """Return the errors of all samples `(n_samples,)`; None, with a `problem`, if any is missing or not finite."""
        errors = torch.cat(self._errors) if self._errors else torch.zeros(0, device="cpu")
        if self.problem is None and len(errors) != n_samples:
            self.problem = f"it has {len(errors)} samples where the inputs have {n_samples}"
        if self.problem is None and not errors.isfinite().all():
            self.problem = f"it is NaN for {int((~errors.isfinite()).sum())} of {n_samples} samples"
        return errors if self.problem is None else None

    @property
    def logits(self) -> Tensor | None:
        """The logits of all samples `(N, C)`, of a single score `(N, 2)`; None with a `problem` or positions."""
        return torch.cat(self._logits) if self._logits and self.problem is None else None


def expected_error(probabilities: Tensor) -> Tensor:
    """Compute 1 less the largest of C probabilities `(n, C, ...)`: `(n, ...)`, exact also if that is close to 1."""
    return probabilities.scatter(1, probabilities.argmax(1, keepdim=True), 0).sum(1)


def mean_error(errors: Tensor) -> float:
    """Compute the mean of expected errors `(n,)`, at least 1e-7 to allow division by it."""
    return max(errors.double().mean().item(), 1e-7)


def compare_confidences(first: Tensor, second: Tensor) -> tuple[float, float, float]:
    """Compare the confidences `(n,)` and `(m,)` of two groups: area under the ROC curve, gap of the means, p-value.

    The area is the probability that a sample of the first group has the larger confidence. See `rank_test`.
    """
    both = torch.cat([first, second])[None]
    area, p_value = rank_test(both, torch.arange(both.shape[1], device=both.device)[:, None] < len(first))
    return area.item(), (first.double().mean() - second.double().mean()).item(), p_value.item()
