"""One page of a run, from what the Trainer's callbacks know."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lightning_anomaly.callbacks._lightning import find_callback
from lightning_anomaly.callbacks._story import Rows, Story
from lightning_anomaly.callbacks.anomaly_filter import AnomalyFilterCallback
from lightning_anomaly.callbacks.memorization import MemorizationCallback
from lightning_anomaly.callbacks.memorization_early_stopping import MemorizationEarlyStopping
from lightning_anomaly.filters.anomaly_report import AnomalyReport
from lightning_anomaly.filters.filter_page import FILTER_CODE, filter_browser_content, sample_lists
from lightning_anomaly.memorization.memorization_report import SHOWN
from lightning_anomaly.memorization.stop_rule import GAP
from lightning_anomaly.pages.gallery import SampleList, gallery_index
from lightning_anomaly.pages.html_page import BrowserFile, assemble_page, write_page

_ACTIONS = 3
_LEAVE_OUT = """\
import csv
from torch.utils.data import Subset

with open("verdicts.csv", encoding="utf-8") as file:
    rows = [row for row in csv.DictReader(file) if row["verdict"] == "ticked" and "training labels" in row["list"]]
wrong = {int(row["position"]) for row in rows}
train = Subset(train, [position for position in range(len(train)) if position not in wrong])"""


def save_run_page(trainer: Any, path: str | Path, title: str = "A training run") -> BrowserFile:
    """Write what happened in a fit, and what to do next, as a page: one file that needs no server and no network.

    It tells what the Trainer's first `AnomalyFilterCallback` and `MemorizationCallback`, early stoppings and
    checkpoints know: `docs/browser.md`. Call it after `fit`, with `ddp_spawn` in the `teardown` of a callback; process
    0 writes it.

    Args:
        trainer: The Trainer, with an `AnomalyFilterCallback`, a `MemorizationCallback` or both among its callbacks.
        path: Path of the file; missing folders are created.
        title: The heading.

    Returns:
        The file; a notebook shows the page.

    Raises:
        TypeError: If `trainer` has no callbacks.
        ValueError: If the Trainer has neither callback.
    """
    if not isinstance(getattr(trainer, "callbacks", None), list):
        raise TypeError(f"Parameter `trainer` should be a Trainer. Found {type(trainer).__name__}.")
    watcher, comparison = (find_callback(trainer, kind) for kind in (AnomalyFilterCallback, MemorizationCallback))
    if watcher is None and comparison is None:
        raise ValueError(
            "Parameter `trainer` should have an AnomalyFilterCallback or a MemorizationCallback among its callbacks. "
            f"Found {[type(callback).__name__ for callback in trainer.callbacks]}."
        )
    if not trainer.is_global_zero:
        return BrowserFile(Path(path))
    filters, tabs = (watcher and watcher.report) or AnomalyReport({}, 0), list[SampleList]()
    waiting = find_callback(trainer, MemorizationEarlyStopping)
    threshold = GAP if waiting is None else waiting.threshold
    story = _run_story(trainer, watcher, comparison, threshold)
    if comparison is not None and comparison.report is not None:
        tabs.append(comparison.report.label_list(SHOWN))
    content, blocks = filter_browser_content(filters)
    content |= gallery_index(tabs + sample_lists(filters), Path(path).parent, _LEAVE_OUT)
    content |= {"title": title, "lead": [], "details": [], "actions": story.actions[:_ACTIONS]}
    content |= {"sentences": story.sentences, "curves": story.story_curves(threshold)}
    return write_page(path, assemble_page(FILTER_CODE, content, filters.images, blocks))


def _run_story(trainer: Any, watcher: Any, comparison: Any, threshold: float) -> Story:
    """Tell the run by what the callbacks know; what was not measured is said."""
    rows, logged = _join_histories(watcher, comparison)
    monitors = [callback for callback in trainer.callbacks if getattr(callback, "monitor", None) in logged]
    story = Story(rows, logged, {callback.monitor: callback.mode for callback in monitors})
    if not rows:
        text = "Nothing was measured." if watcher is None or watcher.report is None else "No validation of a fit."
        if trainer.state.finished and "MultiProcessing" in type(trainer.strategy.launcher).__name__:
            text += " The reports ended with the processes of the fit: save this page in the `teardown` of a callback."
        story.tell("Run", text)
    else:
        story.tell_best(
            {
                callback.monitor: (callback.best_model_path, float(callback.best_model_score))
                for callback in monitors
                if getattr(callback, "best_model_score", None) is not None
            }
        )
        report = comparison and comparison.report
        problem = "" if report is None else report.notes.get("output", "")
        if comparison is None:
            story.tell("Gap", "Not measured: a `MemorizationCallback` compares training with validation images.")
        else:
            story.tell_gap(threshold, problem)
        story.tell("End", _run_page_ending(trainer, story))
        if comparison is not None:
            story.tell_labels(report, problem)
    if watcher is not None and watcher.report is not None:
        story.tell_samples(watcher.report)
        story.tell_filters(watcher.report)
    elif rows:
        story.tell("Filters", "Not measured: an `AnomalyFilterCallback` looks at filters and validation samples.")
    return story


def _join_histories(watcher: Any, comparison: Any) -> tuple[Rows, set[str]]:
    """Join the histories, without repeated values, and name what the module logged."""
    rows, logged = dict[tuple[int, int], dict[str, float]](), set[str]()
    for kind, flag, callback in (("filters", "analyzed", watcher), ("output", "compares_output", comparison)):
        for entry in () if callback is None else callback.history:
            row = rows.setdefault((entry["epoch"], entry["step"]), {})
            measured = dict(entry["metrics"]) if entry[flag] else {}
            if entry.get("few_errors"):  # a rise of 0 means nothing there
                measured |= {"rise": math.nan, "few_errors": 1.0}
            row |= entry.get("logged", {}) | {f"{kind}/{name}": value for name, value in measured.items()}
            logged |= entry.get("logged", {}).keys()
    return rows, logged


def _run_page_ending(trainer: Any, story: Story) -> str:
    """Say what ended the run, and if that was no early stopping, why none did."""
    why = list[str]()
    for callback in trainer.callbacks:
        if not hasattr(callback, "stopped_epoch"):
            continue
        name, reason = f"`{type(callback).__name__}`", getattr(callback, "stopping_reason_message", None)
        if reason or callback.stopped_epoch:
            story.marks.append(("stopped", len(story.times) - 1))
            return f"{name} stopped the run in epoch {callback.stopped_epoch}. {reason or ''}".strip()
        waits = isinstance(callback, MemorizationEarlyStopping)
        why.append(f"{name} {f'never saw {callback.waiting_for}' if waits else 'found no reason to stop'}")
    limit = f" with `max_epochs = {trainer.max_epochs}`" if trainer.current_epoch == trainer.max_epochs else ""
    ended = "was interrupted in" if trainer.interrupted else f"ended{limit} after"
    epoch = trainer.current_epoch - (not trainer.interrupted)  # counted up when an epoch ends
    return f"It {ended} epoch {epoch}: {'; '.join(why) or 'there was no early stopping'}."
