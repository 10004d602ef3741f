"""Compare how sure a network is of training and of validation images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_anomaly.images.image_source import ImageSource
from lightning_anomaly.memorization.confidence import ExpectedErrors, compare_confidences, mean_error
from lightning_anomaly.memorization.label_doubts import KnownLabels
from lightning_anomaly.memorization.memorization_report import MemorizationReport
from lightning_anomaly.memorization.ranks import MIN_SAMPLES
from lightning_anomaly.network.features import SampleCapture
from lightning_anomaly.network.forward import run_model
from lightning_anomaly.network.layer_maps import MapCapture
from lightning_anomaly.network.step_loss import Scores


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
    errors = ExpectedErrors(scores.reading)
    called = None if labels is None or labels.problem else call if isinstance(call, nn.Module) else model
    capture = MapCapture({}, samples=SampleCapture(called)) if capture is None else capture

    def take(output: Any) -> None:
        try:
            rows = scores.of(output)
        except ValueError as error:
            errors.problem = errors.problem or str(error)
        else:
            errors.add(rows)

    for inputs in (train_inputs, val_inputs):
        run_model(model, inputs, capture, call=call, take_output=take)
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
    return replace(
        report,
        auc=area,
        gap=gap,
        error_ratio=mean_error(val) / mean_error(train),
        p_value=p_value,
        train_errors=train,
        val_errors=val,
    )


def check_groups(train_inputs: ImageSource, val_inputs: ImageSource) -> None:
    """Raise ValueError for inputs of different shapes."""
    if train_inputs.shape != val_inputs.shape:  # the maximum over more values is larger
        raise ValueError(
            "Parameters `train_inputs` and `val_inputs` should hold images of the same shape. "
            f"Found {train_inputs.shape} and {val_inputs.shape}."
        )
