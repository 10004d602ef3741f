"""Compare the confidence of a network between two groups of samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_anomaly.memorization.ranks import rank_test

_ROUNDING = 0.02  # that probabilities may be off, as sums in bfloat16 are 1 to two digits
_SIGMOIDS = "sigmoid", "sigmoid_", "special_expit"
_NAME = "As `logits_from`, name a method or submodule that returns some, if there is one"


@dataclass
class SingleOutputs:
    """What is known of a network that gives one number for each image, from all comparisons of a fit.

    Attributes:
        named: Whether the user says that the numbers are logits.
        from_sigmoid: Whether a sigmoid was seen to return them.
        smallest: The smallest one so far.
        largest: The largest one so far.
    """

    named: bool = False
    from_sigmoid: bool = False
    smallest: float = math.inf
    largest: float = -math.inf

    def add(self, scores: Tensor, sigmoids: Iterable[Tensor]) -> None:
        """Add a batch, and what sigmoids returned in it."""
        flat = scores.flatten()
        self.from_sigmoid |= any(torch.equal(returned.flatten().to(flat), flat) for returned in sigmoids)
        for number in flat.nan_to_num(0.5).aminmax():
            self.smallest, self.largest = min(self.smallest, number.item()), max(self.largest, number.item())

    @property
    def are_logits(self) -> bool:
        """Whether they are logits: the user says so, or one was outside 0 to 1, and no sigmoid returned them."""
        outside = self.smallest < -_ROUNDING or self.largest > 1 + _ROUNDING
        return (self.named or outside) and not self.from_sigmoid

    @property
    def inferred(self) -> bool:
        """Whether they are read as probabilities by their values alone, and differ enough for this to matter.

        Those of a network that has learned little may be logits: one of them is outside before long.
        """
        return not self.are_logits and not self.from_sigmoid and self.largest - self.smallest > 0.5


class ExpectedErrors(TorchFunctionMode):
    """Collects, batch by batch, the expected error of each sample: 1 less its largest probability.

    Run what `watched` returns instead of the model, or the model inside, as a context manager, to see whether a sigmoid
    returns its output.
    """

    def __init__(self, single: SingleOutputs | None = None) -> None:
        super().__init__()
        self.shape: tuple[int, ...] = ()  # of the scores of a sample, `(C, ...)`
        self.problem: str | None = None  # why the output cannot be used
        self._single = SingleOutputs() if single is None else single
        self._probabilities: bool | None = None  # whether several scores need no softmax, which the first batch decides
        self._normalized = True  # whether the scores of each sample have norm 1
        # Of each batch, on the CPU; of a single output as probability and as logit, as all batches decide what it is.
        self._errors: list[Tensor] = []  # `(1 or 2, n)`
        self._logits: list[Tensor] = []  # `(1 or 2, n, C)`; none of outputs `(n, C, ...)`
        self._sigmoids: list[Tensor] = []  # what sigmoids have returned in this batch that is one score of a sample

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in _SIGMOIDS and (result.ndim < 2 or result.shape[1] == 1):
            self._sigmoids.append(result.detach())
        return result

    def watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Watch what is called, unless its output was found to be no single score, as watching takes time."""

        def inside(*args: Any, **kwargs: Any) -> Any:
            with self if self.shape[:1] in ((), (1,)) else nullcontext():
                return call(*args, **kwargs)

        return inside

    def update(self, output: Any) -> None:
        """Add a batch of outputs `(n, C)` or `(n, C, ...)`, or a mapping with such `logits`.

        A single score, `(n,)` or `(n, 1, ...)`, is that of one of two classes. Errors are averaged over positions.
        """
        sigmoids, self._sigmoids = self._sigmoids, []
        if self.problem is not None:
            return
        output = output.get("logits", output) if isinstance(output, Mapping) else output
        if not isinstance(output, Tensor):
            self.problem = f"it is a {type(output).__name__}, not logits. {_NAME}"
        elif output.ndim < 1 or 0 in output.shape or not output.is_floating_point():
            self.problem = f"it is {output.dtype} of shape {tuple(output.shape)}, not logits (samples, classes, ...)"
        else:
            scores = output.detach().to(torch.float64 if output.dtype == torch.float64 else torch.float32)
            scores = scores[:, None] if scores.ndim == 1 else scores
            self.shape = tuple(scores.shape[1:])
            probabilities, logits = zip(*self._read_scores(scores, sigmoids), strict=True)
            self._errors.append(torch.stack([_mean_of(expected_error(part)) for part in probabilities]).cpu())
            if scores.ndim == 2:
                self._logits.append(torch.stack(logits).cpu())

    def _read_scores(self, scores: Tensor, sigmoids: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return probabilities and logits `(n, C, ...)`, of a single score as a probability and as a logit."""
        if scores.shape[1] == 1:
            self._single.add(scores, sigmoids)
            both = torch.cat([1 - scores, scores], 1), torch.cat([torch.zeros_like(scores), scores], 1)
            return [_from_probabilities(both[0]), (both[1].softmax(1), both[1])]
        if self._probabilities is None:  # false for NaN
            off = (scores.sum(1) - 1).abs().max()
            self._probabilities = bool(scores.min() >= -_ROUNDING and off <= _ROUNDING)
        self._normalized &= not self._probabilities and bool(((scores.norm(dim=1) - 1).abs() < 1e-3).all())
        return [_from_probabilities(scores) if self._probabilities else (scores.softmax(1), scores)]

    def result(self, n_samples: int) -> Tensor | None:
        """Return the errors of all samples `(n_samples,)`; None, with a `problem`, if any is missing or not finite."""
        errors = self._join_batches(self._errors)
        if self.problem is None and len(errors) != n_samples:
            self.problem = f"it has {len(errors)} samples where the inputs have {n_samples}"
        if self.problem is None and not errors.isfinite().all():
            self.problem = f"it is NaN for {int((~errors.isfinite()).sum())} of {n_samples} samples"
        if self.problem is None and self.shape[0] > 1 and self._normalized:
            self.problem = f"its rows have norm 1 as those of an embedding, and are not logits. {_NAME}"
        return errors if self.problem is None else None

    @property
    def logits(self) -> Tensor | None:
        """The logits of all samples `(N, C)`, column 1 being a single output; None for others, or with a `problem`."""
        return self._join_batches(self._logits) if self._logits and self.problem is None else None

    @property
    def sizes(self) -> list[int]:
        """The number of samples in each batch."""
        return [batch.shape[1] for batch in self._errors]

    @property
    def caution(self) -> str | None:
        """What may be wrong with the reading of a single output; None if nothing is."""
        if self.problem is not None or self.shape[:1] != (1,) or not self._single.inferred:
            return None
        return (
            "The output is one number for each image, always from 0 to 1, and no sigmoid was seen to return it: it is "
            'read as a probability. If it is a logit, name what returns it as `logits_from`: the model\'s is "forward".'
        )

    def _join_batches(self, batches: list[Tensor]) -> Tensor:
        """Join what was collected, as the output is read by now."""
        reading = -1 if self._single.are_logits else 0
        return torch.cat([batch[reading] for batch in batches]) if batches else torch.zeros(0, device="cpu")


def _from_probabilities(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Return probabilities without negative ones, and logits of which a softmax returns them."""
    return probabilities.clamp(min=0), probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()


def _mean_of(errors: Tensor) -> Tensor:
    """Average errors `(n, ...)` over positions `(n,)`."""
    return errors[..., None].flatten(1).mean(1)


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
