"""Compare how sure a network is of training and of validation images, by the expected error of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_anomaly.images.image_source import ImageSource
from lightning_anomaly.memorization.label_doubts import KnownLabels
from lightning_anomaly.memorization.memorization_report import MemorizationReport
from lightning_anomaly.memorization.ranks import MIN_SAMPLES, rank_test
from lightning_anomaly.network.class_scores import Scores
from lightning_anomaly.network.features import SampleCapture
from lightning_anomaly.network.forward import run_model
from lightning_anomaly.network.layer_maps import MapCapture

_ROUNDING = 0.02  # that probabilities may be off, as sums in bfloat16 are 1 to two digits


def compare_outputs(
    model: nn.Module,
    train_inputs: ImageSource,
    val_inputs: ImageSource,
    call: Callable[[Tensor], Any],
    scores: Scores,
    *,
    labels: KnownLabels | None = None,
    capture: MapCapture | None = None,
) -> MemorizationReport:
    """Run a model, or its part `call`, on training, then on validation images, and compare the `scores` it returns."""
    check_groups(train_inputs, val_inputs)
    errors = ExpectedErrors(scores)
    called = None if labels is None or labels.problem else call if isinstance(call, nn.Module) else model
    capture = MapCapture({}, samples=SampleCapture(called)) if capture is None else capture
    for inputs in (train_inputs, val_inputs):
        run_model(model, inputs, capture, call=call, take_output=errors.add)
    n_train, n_val = (len(inputs.positions) - len(inputs.unreadable) for inputs in (train_inputs, val_inputs))
    notes = train_inputs.notes() | val_inputs.notes()
    expected = errors.result(n_train + n_val)
    if expected is None:
        notes["output"] = f"The output is not compared: {errors.problem}."
    if min(n_train, n_val) < MIN_SAMPLES:
        notes["few images"] = (
            f"The {n_train} training and {n_val} validation images in `train_inputs` and `val_inputs` are too few "
            f"for a rank test: give at least {MIN_SAMPLES} of each, better 1,000."
        )
    report = MemorizationReport(n_train, n_val, notes=notes)
    if expected is None or min(n_train, n_val) < MIN_SAMPLES:
        return report
    if labels is not None:
        parts = [
            part
            if part is None
            else torch.cat([train_inputs.with_gaps(part[:n_train]), val_inputs.with_gaps(part[n_train:])])
            for part in (errors.logits, capture.samples.collected(n_train + n_val).features)
        ]
        report = replace(report, label_margins=labels.measure_margins(*parts))
        known = [label for label in labels.train if label is not None]
        problem = labels.problem or (f"labels such as '{known[0]}' are of none of its scores" if known else "")
        if report.label_margins is None and problem:
            notes["labels"] = f"The training labels are not judged: {problem}."
    train, val = expected[:n_train], expected[n_train:]
    area, gap, p_value = compare_confidences(-train, -val)
    ratio = mean_error(val) / mean_error(train)
    return replace(report, auc=area, gap=gap, error_ratio=ratio, p_value=p_value, train_errors=train, val_errors=val)


def check_groups(train_inputs: ImageSource, val_inputs: ImageSource) -> None:
    """Raise ValueError for inputs of different shapes."""
    if train_inputs.shape != val_inputs.shape:  # the maximum over more values is larger
        raise ValueError(
            "Parameters `train_inputs` and `val_inputs` should hold images of the same shape. "
            f"Found {train_inputs.shape} and {val_inputs.shape}."
        )


class ExpectedErrors:
    """Collects, batch by batch, the expected error of each sample: 1 less its largest probability.

    If it is not given, the first batch tells what scores are: single ones are logits if one is outside 0 to 1, and rows
    are probabilities if they are positive and add up to 1.
    """

    def __init__(self, scores: Scores) -> None:
        self.problem: str | None = None  # why the output cannot be used
        self._scores, self._reading = scores, scores.reading
        self._errors: list[Tensor] = []  # of each batch `(n,)`, on the CPU
        self._logits: list[Tensor] = []  # of each batch `(n, C)`, on the CPU; none of outputs `(n, C, ...)`

    def add(self, output: Any) -> None:
        """Add an output with scores `(n, C, ...)`, unless there is a problem; its errors are averaged over positions.

        One score of each sample is that of one of two classes.
        """
        if self.problem is None:
            try:
                self._add(self._scores.of(output))
            except ValueError as error:
                self.problem = str(error)

    def _add(self, scores: Tensor) -> None:
        if 0 in scores.shape:
            raise ValueError(f"it has shape {tuple(scores.shape)}")
        scores = scores.flatten(1) if scores[0, 0].numel() == 1 else scores
        scores = scores.detach().to(torch.float64 if scores.dtype == torch.float64 else torch.float32)
        single = scores.shape[1] == 1
        off = (scores - scores.clamp(0, 1)).abs() if single else (scores.sum(1) - 1).abs()
        could_be = bool(scores.min() >= -_ROUNDING and off.max() <= _ROUNDING)  # false for NaN
        if self._reading is None:
            self._reading = "probabilities" if could_be else "logits"
        if self._reading == "probabilities":
            if self._scores.reading is None and not could_be and scores.isfinite().all():
                raise ValueError("it is probabilities of some images, and not of others: name what returns logits")
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
