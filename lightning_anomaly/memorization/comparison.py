"""Compare how sure a network is of training and of validation images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from lightning_anomaly.images.image_source import ImageSource
from lightning_anomaly.memorization.confidence import ExpectedErrors, compare_confidences, mean_error
from lightning_anomaly.memorization.label_doubts import KnownLabels
from lightning_anomaly.memorization.memorization_report import MemorizationReport
from lightning_anomaly.memorization.ranks import MIN_SAMPLES
from lightning_anomaly.network.features import SampleCapture
from lightning_anomaly.network.forward import copy_for_model, isolated_calls
from lightning_anomaly.network.hooks import hooked
from lightning_anomaly.network.step_loss import Scores


class OutputComparison:
    """Takes the outputs of training images and then of validation images, batch by batch."""

    def __init__(self, scores: Scores) -> None:
        self._scores, self._errors = scores, ExpectedErrors(scores.reading)

    def add(self, output: Any) -> None:
        """Add the output of a batch."""
        try:
            scores = self._scores.of(output)
        except ValueError as error:
            self._errors.problem = self._errors.problem or str(error)
        else:
            self._errors.add(scores)

    def report(
        self,
        train_inputs: ImageSource,
        val_inputs: ImageSource,
        labels: KnownLabels | None = None,
        features: Tensor | None = None,
    ) -> MemorizationReport:
        """Compare all that was added; with `labels` and `features` of the images, measure the margins of labels."""
        n_train, n_val = (len(inputs.positions) - len(inputs.unreadable) for inputs in (train_inputs, val_inputs))
        notes = train_inputs.notes() | val_inputs.notes()
        errors = self._errors.result(n_train + n_val)
        if errors is None:
            notes["output"] = f"The output is not compared: {self._errors.problem}."
        if min(n_train, n_val) < MIN_SAMPLES:
            notes["few images"] = (
                f"The {n_train} training and {n_val} validation images in `train_inputs` and `val_inputs` are too few "
                f"for a rank test: give at least {MIN_SAMPLES} of each, better 1,000."
            )
        report = MemorizationReport(n_train, n_val, notes=notes)
        if errors is None or min(n_train, n_val) < MIN_SAMPLES:
            return report
        if labels is not None:
            parts = [
                part
                if part is None
                else torch.cat([train_inputs.with_gaps(part[:n_train]), val_inputs.with_gaps(part[n_train:])])
                for part in (self._errors.logits, features)
            ]
            report = replace(report, label_margins=labels.measure_margins(*parts))
            known = [label for label in labels.train if label is not None]
            problem = labels.problem or (f"labels such as '{known[0]}' are of none of its scores" if known else "")
            if report.label_margins is None and problem:
                notes["labels"] = f"The training labels are not judged: {problem}."
        train, val = errors[:n_train], errors[n_train:]
        area, gap, p_value = compare_confidences(-train, -val)
        return replace(
            report,
            auc=area,
            gap=gap,
            error_ratio=mean_error(val) / mean_error(train),
            p_value=p_value,
            train_errors=train,
            val_errors=val,
        )


def compare_outputs(
    model: nn.Module,
    train_inputs: ImageSource,
    val_inputs: ImageSource,
    call: Callable[[Tensor], Any],
    scores: Scores,
    labels: KnownLabels,
) -> MemorizationReport:
    """Run a model, or its part `call`, on both kinds of images, and compare the `scores` in its output."""
    check_groups(train_inputs, val_inputs)
    called = call if isinstance(call, nn.Module) else model
    output, samples = OutputComparison(scores), SampleCapture(None if labels.problem else called)
    count = 0
    with isolated_calls(model, call) as forward:
        for images in chain(train_inputs.readable_batches(), val_inputs.readable_batches()):
            with hooked(samples.hooks):
                output.add(forward(copy_for_model(images, model)))
            samples.end_pass(len(images))
            count += len(images)
    return output.report(train_inputs, val_inputs, labels, samples.collected(count).features)


def check_groups(train_inputs: ImageSource, val_inputs: ImageSource) -> None:
    """Raise ValueError for inputs of different shapes."""
    if train_inputs.shape != val_inputs.shape:  # the maximum over more values is larger
        raise ValueError(
            "Parameters `train_inputs` and `val_inputs` should hold images of the same shape. "
            f"Found {train_inputs.shape} and {val_inputs.shape}."
        )
