"""The page of a run tells what happened, by what the callbacks of a real Trainer know."""

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerStatus
from reports import contents
from test_labels_of_a_fit import WRONG, fit_lit
from trainers import fit, quiet_trainer, watcher

from lightning_anomaly import MemorizationCallback, MemorizationEarlyStopping, save_run_page
from lightning_anomaly.callbacks._story import Story

pytestmark = pytest.mark.filterwarnings("ignore:.*expects fewer than 10 errors")


def read(trainer: Any, folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Write the page of a run, and return its index and its sentences by what they are about."""
    index, _ = contents(save_run_page(trainer, folder / "pages" / "run.html").path.read_text())
    return index, {about: text for about, text, *_ in index["sentences"]}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("fit")
    filters, labels, keep = watcher(), MemorizationCallback(), ModelCheckpoint(folder, monitor="val_loss")
    callbacks = filters, labels, MemorizationEarlyStopping(), keep
    trainer = fit_lit(folder, *callbacks, max_epochs=6)
    index, told = read(trainer, folder)
    return SimpleNamespace(folder=folder, trainer=trainer, filters=filters, labels=labels, index=index, told=told)


def test_sentences_have_the_numbers_of_the_callbacks(fitted: SimpleNamespace) -> None:
    losses = [entry["losses"]["val_loss"] for entry in fitted.filters.history]
    lowest = losses.index(min(losses))
    assert f"lowest in epoch {lowest}: {min(losses):.3g}" in fitted.told["Validation loss"]
    if lowest != 5:
        assert Path(fitted.trainer.checkpoint_callback.best_model_path).name in fitted.told["Validation loss"]
    assert "`max_epochs = 6` in epoch 5" in fitted.told["End"]
    assert "`MemorizationEarlyStopping` waited for a gap" in fitted.told["End"]
    assert f"{len(WRONG)} of 120 training labels" in fitted.told["Labels"]
    report = fitted.filters.report
    first = report.by_outlier_score[0]
    assert f"sample {first} (score {report.outlier_scores[first]:.1f}" in fitted.told["Samples"]
    singled = sum(int((layer.isolated | layer.outliers).any(1).sum()) for layer in report.layers.values())
    assert f"{singled} of 10 filters" in fitted.told["Filters"]


def test_curves_are_the_histories_on_one_axis(fitted: SimpleNamespace) -> None:
    curves = fitted.index["curves"]
    assert (curves["axis"], curves["times"]) == ("epoch", [*range(6)])
    drawn = {name: values for panel in curves["panels"] for name, values in panel["lines"]}
    metrics = [entry["metrics"] for entry in fitted.filters.history]
    assert drawn["val_loss"] == pytest.approx([e["losses"]["val_loss"] for e in fitted.filters.history], rel=1e-3)
    assert drawn["anomaly filters"] == [values["count"] for values in metrics]
    doubts = [entry["metrics"]["labels_in_doubt"] for entry in fitted.labels.history]
    assert drawn["share in doubt"] == pytest.approx(doubts, rel=1e-3)
    assert [name for name, _ in curves["marks"]] == ["lowest val_loss"]


def test_lists_have_labels_and_samples_and_keys_that_never_clash(fitted: SimpleNamespace) -> None:
    labels, samples, *_ = fitted.index["tabs"]
    assert {row["position"] for row in labels["rows"][:4]} == {*WRONG}
    assert [row["sample"] for row in samples["rows"]] == fitted.filters.report.by_outlier_score
    keys = [row["key"] for tab in (labels, samples) for row in tab["rows"]]
    assert len({*keys}) == len(keys) == 64 + 60


def test_only_process_0_writes(fitted: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(fitted.trainer), "is_global_zero", False)
    assert not save_run_page(fitted.trainer, fitted.folder / "other.html").path.exists()


def test_what_stopped_a_run_is_told_and_what_nobody_measured(tmp_path: Path) -> None:
    stop = EarlyStopping("val_loss", patience=0, min_delta=100.0)
    _, told = read(fit(tmp_path, watcher(), stop, max_epochs=5), tmp_path)
    assert "`EarlyStopping` stopped the run in epoch 1." in told["End"]
    assert told["Gap"].startswith("Not measured")
    _, told = read(fit(tmp_path, MemorizationCallback(), MemorizationEarlyStopping(), max_epochs=2), tmp_path)
    assert "`val_loss` was lowest in epoch " in told["Validation loss"]
    assert told["Filters"].startswith("Not measured")
    assert "more than 3 validations" in told["Gap"] or "fewer than 10 errors" in told["Gap"]


def test_a_run_without_callbacks_or_without_a_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"AnomalyFilterCallback or a MemorizationCallback .* Found .*EarlyStopping"):
        save_run_page(quiet_trainer(tmp_path, EarlyStopping("val_loss")), tmp_path / "run.html")
    _, told = read(quiet_trainer(tmp_path, watcher()), tmp_path)
    assert told == {"Run": "Nothing was measured."}
    ended = quiet_trainer(tmp_path, watcher(), strategy="ddp_spawn")
    ended.state.status = TrainerStatus.FINISHED
    _, told = read(ended, tmp_path)
    assert "ended with the processes" in told["Run"]


def story(**columns: list[float]) -> Story:
    names = {"rises": "output/rise", "losses": "val_loss"}
    count = len(next(iter(columns.values())))
    rows = {(epoch, 10 * epoch): dict[str, float]() for epoch in range(count)}
    for name, values in columns.items():
        for row, value in zip(rows.values(), values, strict=True):
            row |= {} if math.isnan(value) else {names.get(name, f"filters/{name}"): value}
    return Story(rows)


@pytest.mark.parametrize(
    ("rises", "few", "says", "marks"),
    [
        ([0, 0, 0, 0.04, 0.2, 0.3], False, "opened in epoch 4: .* 20% .* In epoch 5 .* 30%", [4]),
        ([0, 0, 0, 0.04], False, "No gap opened: .* at most 4% .* more than 5%", []),
        ([0, 0, 0, 0], True, "Not measured", []),
        ([0, 0, 0, 0.2, 0.4, 0, 0], True, "opened in epoch 3: .* In epoch 4 .* Later .* too few", [3]),
        ([0, 0, 0], False, "Not measured", []),
        ([0, 0, 0, 0], False, "No gap opened: .* did not rise", []),
        ([math.nan, math.nan, 0, 0, 0, 0.06], False, "opened in epoch 5", [5]),
        ([math.nan] * 5, False, "Not measured", []),
    ],
)
def test_a_gap_is_told_where_it_opened_and_its_absence_only_where_it_was_measured(
    rises: list[float], few: bool, says: str, marks: list[int]
) -> None:
    run = story(rises=rises)
    run.tell_gap(0.05, few)
    ((_, text),) = run.sentences
    assert re.search(says, text)
    assert [at for _, at in run.marks] == marks
    assert not few or all(rise != 0 for rise in run.column("output/rise")[4:])


@pytest.mark.parametrize(
    ("losses", "kept", "says"),
    [
        ([3, 1, 2], ("best.ckpt", 1.0), "lowest in epoch 1: 1. In the last validation, epoch 2, it was 2. The weights"),
        ([3, 1, 2], ("other.ckpt", 2.0), "No checkpoint"),
        ([3, 1, math.nan], ("", math.nan), "end of the run"),
        ([math.nan] * 3, ("", math.nan), "Not known"),
    ],
)
def test_the_lowest_loss_is_told_with_the_checkpoint_of_its_weights(
    losses: list[float], kept: tuple[str, float], says: str
) -> None:
    run = story(losses=losses)
    run.tell_loss({"val_loss": kept})
    ((_, text),) = run.sentences
    assert says in text
    assert ("best.ckpt" in text) == (kept[0] == "best.ckpt")


def test_several_validations_of_an_epoch_are_told_by_their_steps() -> None:
    run = Story({(0, 1000 * place): {"val_loss": value} for place, value in enumerate([3.0, 1.0, 2.0])})
    run.tell_loss({})
    assert "lowest in epoch 0 (step 1,000)" in run.sentences[0][1]
    assert run.story_curves(0.05)["times"] == [0, 1000, 2000]
