"""Compare the confidence of a network between two groups of samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_anomaly.two_sample.rank_test import rank_test


class ExpectedErrors(TorchFunctionMode):
    """Collects, batch by batch, the expected error of each sample: 1 less its largest probability.

    Run the model inside, as a context manager: a single output is a probability if a sigmoid returned it. Its values
    cannot tell, as the logits of an untrained network may all lie in 0 to 1 too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.probabilities: bool | None = None  # whether outputs need no softmax, which the first batch decides
        self.problem: str | None = None  # why the output cannot be used
        self._errors: list[Tensor] = []  # of each batch `(n,)`, on the CPU
        self._logits: list[Tensor] = []  # of each batch `(n, C)`, on the CPU; none of outputs `(n, C, ...)`
        self._sigmoid: Tensor | None = None  # what the last sigmoid returned

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in ("sigmoid", "sigmoid_"):
            self._sigmoid = result.detach()
        return result

    def update(self, output: Any) -> None:
        """Add a batch of outputs `(n, C)` or `(n, C, ...)`, or a mapping with such `logits`.

        A single score, `(n,)` or `(n, 1, ...)`, is that of one of two classes. Errors are averaged over positions.
        """
        if self.problem is not None:
            return
        output = output.get("logits", output) if isinstance(output, Mapping) else output
        if not isinstance(output, Tensor):
            found = type(output).__name__
            self.problem = f"it is a {found}, not logits. As `logits`, name a method or submodule that returns some"
        elif output.ndim < 1 or 0 in output.shape or not output.is_floating_point():
            self.problem = f"it is {output.dtype} of shape {tuple(output.shape)}, not logits (samples, classes, ...)"
        else:
            scores = output.detach().to(torch.float64 if output.dtype == torch.float64 else torch.float32)
            scores = scores[:, None] if scores.ndim == 1 else scores
            single = scores.shape[1] == 1
            if self.probabilities is None and single:
                last = None if self._sigmoid is None else self._sigmoid.flatten().to(scores)
                self.probabilities = last is not None and torch.equal(last, scores.flatten())
            elif self.probabilities is None:
                # Tolerates rounding, as sums in bfloat16 are 1 to two digits; false for NaN.
                self.probabilities = bool(scores.min() >= -0.02 and (scores.sum(1) - 1).abs().max() <= 0.02)
            if single:
                scores = torch.cat([1 - scores if self.probabilities else torch.zeros_like(scores), scores], 1)
            probabilities = scores.clamp(min=0) if self.probabilities else scores.softmax(1)
            self._errors.append(expected_error(probabilities)[..., None].flatten(1).mean(1).cpu())
            if scores.ndim == 2:
                tiny = torch.finfo(scores.dtype).tiny
                self._logits.append((probabilities.clamp(min=tiny).log() if self.probabilities else scores).cpu())

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
        """The logits of all samples `(N, C)`, column 1 being a single output; None for others, or with a `problem`."""
        return torch.cat(self._logits) if self._logits and self.problem is None else None


def expected_error(probabilities: Tensor) -> Tensor:
    """Compute 1 less the largest of C probabilities `(n, C, ...)`: `(n, ...)`, exact also if that is close to 1."""
    return probabilities.scatter(1, probabilities.argmax(1, keepdim=True), 0).sum(1)


def mean_error(errors: Tensor) -> float:
    """Compute the mean of expected errors `(n,)`, at least 1e-7 to allow division by it."""
    return max(errors.double().mean().item(), 1e-7)


def compare_confidences(first: Tensor, second: Tensor) -> tuple[float, float, float]:
    """Compare the confidences `(n,)` and `(m,)` of two groups: area under the ROC curve, gap of the means, p-value.

    The area is the probability that a sample of the first group has the larger confidence. The gap is the mean of the
    first group less that of the second. The p-value is two-sided, see `rank_test`.

    Examples:
        >>> compare_confidences(torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0.5, 0.6, 0.75]))[0]
        0.8888888888888888
    """
    both = torch.cat([first, second])[None]
    area, p_value = rank_test(both, torch.arange(both.shape[1], device=both.device)[:, None] < len(first))
    return area.item(), (first.double().mean() - second.double().mean()).item(), p_value.item()
