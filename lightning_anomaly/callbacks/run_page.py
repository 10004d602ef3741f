"""One page of a run, from what the Trainer's callbacks know."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning_anomaly.callbacks._run_story import Mark, Story, validations_of
from lightning_anomaly.callbacks._stopping import validations
from lightning_anomaly.callbacks.anomaly_filter import AnomalyFilterCallback
from lightning_anomaly.callbacks.two_sample import TwoSampleCallback
from lightning_anomaly.callbacks.two_sample_early_stopping import TwoSampleEarlyStopping
from lightning_anomaly.filters.page import page_content
from lightning_anomaly.filters.report import AnomalyReport
from lightning_anomaly.filters.sample_lists import sample_lists
from lightning_anomaly.pages.gallery import gallery_index
from lightning_anomaly.pages.page import BrowserFile, assemble, write
from lightning_anomaly.two_sample.report import SHOWN
from lightning_anomaly.two_sample.stopping import GAP, loss_trend

_CODE = (
    "dom unpack wording csv data colors canvas scatter components overview filter_list filter_page samples shell "
    "report_pages gallery curves run"
)
_LEAVE_OUT = """\
import csv
from torch.utils.data import Subset
rows = csv.DictReader(open("verdicts.csv", encoding="utf-8"))
wrong = {int(row["position"]) for row in rows if row["verdict"] and "training labels" in row["list"]}
train = Subset(train, [position for position in range(len(train)) if position not in wrong])"""


def save_run_page(trainer: Any, path: str | Path, title: str = "A training run") -> BrowserFile:
    """Write what happened in a fit, and what to do next, as a page: one file that needs no server and no network.

    It takes what the Trainer's callbacks know: the first `AnomalyFilterCallback`, the first `TwoSampleCallback`, early
    stoppings and checkpoints. It begins with a few sentences and the curves of the run. Then come the training labels
    in doubt, the strangest validation samples and those that many filters single out, each with the filters that
    respond to it, and the filters, first those that agree. A reader ticks samples and saves all lists as one CSV file.

    With several processes, process 0 writes it. Call it after `fit`; with `ddp_spawn`, whose processes take the reports
    with them, in the `teardown` of a callback.

    Args:
        trainer: The Trainer, with an `AnomalyFilterCallback`, a `TwoSampleCallback` or both among its callbacks.
        path: Path of the file; missing folders are created.
        title: The heading.

    Returns:
        The file; a notebook shows the page.

    Raises:
        ValueError: If the Trainer has neither callback.
    """
    watcher, comparison = (_first(trainer, kind) for kind in (AnomalyFilterCallback, TwoSampleCallback))
    if watcher is None and comparison is None:
        raise ValueError(
            "Parameter `trainer` should have an AnomalyFilterCallback or a TwoSampleCallback among its callbacks. "
            f"Found {[type(callback).__name__ for callback in trainer.callbacks]}."
        )
    if not trainer.is_global_zero:
        return BrowserFile(Path(path))
    story, folder = _tell(trainer, watcher, comparison, Path(path).parent), Path(path).parent
    filters = (watcher and watcher.report) or AnomalyReport({}, 0)
    content, blocks = page_content(filters, filters.labels)
    tabs = sample_lists(filters) if filters.layers else []
    if comparison is not None and comparison.report is not None:
        tabs = [comparison.report.tab(SHOWN), *tabs]
    index = {
        **content,
        **gallery_index(title, [], tabs, folder, move=_LEAVE_OUT),
        "run": {"sentences": [sentence._asdict() for sentence in story.sentences], "curves": story.curves()},
    }
    return write(path, assemble(_CODE, index, filters.images, blocks))


def _first(trainer: Any, kind: type[Any]) -> Any:
    return next((callback for callback in trainer.callbacks if isinstance(callback, kind)), None)


def _tell(trainer: Any, watcher: Any, comparison: Any, folder: Path) -> Story:
    """Tell the run by what the callbacks know; what was not measured is said."""
    waiting = _first(trainer, TwoSampleEarlyStopping)
    histories = [[] if callback is None else callback.history for callback in (watcher, comparison)]
    story = Story(validations_of(*histories))
    if not story.validations:
        story.say("Run", f"Nothing was measured. {_lost(trainer)}".strip())
        return story
    if watcher is None and waiting is not None and len(waiting._losses) == len(story.validations):
        for validation, loss in zip(story.validations, waiting._losses, strict=True):
            validation.losses[waiting._loss] = loss
        story = Story(story.validations)
    checkpoints = {
        callback.monitor: (os.path.relpath(callback.best_model_path, folder), float(callback.best_model_score))
        for callback in trainer.checkpoint_callbacks
        if getattr(callback, "best_model_path", "") and getattr(callback, "best_model_score", None) is not None
    }
    story.tell_loss(checkpoints)
    if comparison is None:
        story.say("Gap", "Not measured: a `TwoSampleCallback` compares training with validation images.")
    else:
        threshold = GAP if waiting is None else waiting.threshold
        story.tell_gap(threshold, comparison._rise.too_few_expected_errors)
    story.say("End", _end(trainer, story))
    if comparison is not None:
        story.tell_labels(comparison.report)
    if watcher is None or watcher.report is None:
        story.say("Filters", "Not measured: an `AnomalyFilterCallback` looks at filters and validation samples.")
    else:
        story.tell_samples(watcher.report)
        story.tell_filters(watcher.report)
    return story


def _end(trainer: Any, story: Story) -> str:
    """Say what ended the run, and if that was no early stopping, why none did."""
    stoppings = [callback for callback in trainer.callbacks if hasattr(callback, "stopped_epoch")]
    for callback in stoppings:
        reason = getattr(callback, "stopping_reason_message", None)  # of Lightning 2.6
        if reason or callback.stopped_epoch:
            story.marks.append(Mark("stopped", len(story.validations) - 1))
            return (
                f"`{type(callback).__name__}` stopped the run in epoch {callback.stopped_epoch}. {reason or ''}".strip()
            )
    if trainer.interrupted:
        ended = "It was interrupted"
    elif trainer.max_epochs not in (None, -1) and trainer.current_epoch >= trainer.max_epochs:
        ended = f"It ended with `max_epochs = {trainer.max_epochs}`"
    else:
        ended = "It ended"
    why = [_why_not(callback) for callback in stoppings] or ["there was no early stopping"]
    return f"{ended} in {story.when(-1)}: {'; '.join(why)}."


def _why_not(callback: Any) -> str:
    """Say why an early stopping did not stop a run."""
    name = f"`{type(callback).__name__}`"
    if not isinstance(callback, TwoSampleEarlyStopping):
        return f"{name} found no reason to stop"
    trend = loss_trend(callback._losses)
    if not callback._rises or callback._rises[-1] <= callback.threshold:
        return f"{name} waited for a gap"
    if trend is None:
        return f"{name} saw a gap, and found no validation loss that confirms it"
    waited = f"for {trend.waited} of {validations(callback.patience)}"
    return f"{name} saw a gap, but the smoothed `{callback._loss}` had failed to improve only {waited}"


def _lost(trainer: Any) -> str:
    """Say that reports are lost, if the processes that had them have ended."""
    if not trainer.state.finished or "MultiProcessing" not in type(trainer.strategy.launcher).__name__:
        return ""
    return "The reports were lost with the processes of the fit: save this page in the `teardown` of a callback."
