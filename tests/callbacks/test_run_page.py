"""The page of a run tells what happened, by what the callbacks of a real Trainer know."""

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerStatus
from reports import contents
from test_labels_of_a_fit import WRONG, fit_lit
from trainers import SmallNet, fit, loader, quiet_trainer, watcher

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
    losses = [entry["logged"]["val_loss"] for entry in fitted.filters.history]
    lowest = losses.index(min(losses))
    assert f"lowest in epoch {lowest}: {min(losses):.3g}" in fitted.told["Validation loss"]
    if lowest != 5:
        assert Path(fitted.trainer.checkpoint_callback.best_model_path).name in fitted.told["Validation loss"]
    assert "`max_epochs = 6` after epoch 5" in fitted.told["End"]
    assert "`MemorizationEarlyStopping` never saw a gap" in fitted.told["End"]
    assert f"{len(WRONG)} of 120 training labels" in fitted.told["Labels"]
    report = fitted.filters.report
    first = report.by_outlier_score[0]
    assert f"sample {first} (score {report.outlier_scores[first]:.1f}" in fitted.told["Samples"]
    assert fitted.told["Filters"].startswith("No sample is singled out by more filters than chance explains.")


def test_curves_are_the_histories_on_one_axis(fitted: SimpleNamespace) -> None:
    curves = fitted.index["curves"]
    assert (curves["axis"], curves["times"]) == ("epoch", [*range(6)])
    drawn = {name or panel["title"]: values for panel in curves["panels"] for name, values, _ in panel["lines"]}
    metrics = [entry["metrics"] for entry in fitted.filters.history]
    assert drawn["val_loss"] == pytest.approx([e["logged"]["val_loss"] for e in fitted.filters.history], rel=1e-3)
    assert drawn["Anomaly filters"] == [values["count"] for values in metrics]
    doubts = [entry["metrics"]["labels_in_doubt"] for entry in fitted.labels.history]
    assert drawn["Labels in doubt"] == pytest.approx(doubts, rel=1e-3)
    assert [name for name, _ in curves["marks"]] == ["lowest val_loss"]


def test_lists_have_labels_and_samples_and_keys_that_never_clash(fitted: SimpleNamespace) -> None:
    labels, samples, *_ = ([fitted.index["table"][row[0]] for row in tab["rows"]] for tab in fitted.index["tabs"])
    assert {row["position"] for row in labels[:4]} == {*WRONG}
    assert [row["sample"] for row in samples] == fitted.filters.report.by_outlier_score
    keys = [row["key"] for row in [*labels, *samples]]
    assert len({*keys}) == len(keys) == 64 + 60


def test_only_process_0_writes(fitted: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(fitted.trainer), "is_global_zero", False)
    assert not save_run_page(fitted.trainer, fitted.folder / "other.html").path.exists()


def test_what_stopped_a_run_is_told_and_what_nobody_measured(tmp_path: Path) -> None:
    stop = EarlyStopping("val_loss", patience=0, min_delta=100.0)
    index, told = read(fit(tmp_path, watcher(), stop, max_epochs=5), tmp_path)
    assert ["stopped", 1] in index["curves"]["marks"]
    assert "`EarlyStopping` stopped the run in epoch 1." in told["End"]
    assert told["Gap"].startswith("Not measured")
    _, told = read(fit(tmp_path, MemorizationCallback(), MemorizationEarlyStopping(), max_epochs=2), tmp_path)
    assert "`val_loss` was lowest in epoch " in told["Validation loss"]
    assert told["Filters"].startswith("Not measured")
    assert "more than 3 validations" in told["Gap"] or "fewer than 10 errors" in told["Gap"]


def test_what_was_not_compared_is_told_once_with_its_reason(tmp_path: Path) -> None:
    class Regression(SmallNet):
        def loss(self, batch: Any) -> torch.Tensor:
            return torch.nn.functional.mse_loss(self(batch[0])[:, 0], batch[0].mean((1, 2, 3)))

    callbacks = MemorizationCallback(), MemorizationEarlyStopping()
    with pytest.warns(UserWarning, match="The output is not compared"):
        trainer = fit(tmp_path, *callbacks, module=Regression(), max_epochs=5)
    _, told = read(trainer, tmp_path)
    assert told["Gap"] == f"Not measured: {callbacks[0].report.notes['output']}"
    assert told["Labels"] == "Not measured, for the same reason."
    assert "`MemorizationEarlyStopping` never saw a comparison" in told["End"]


def test_the_last_epoch_is_told_whether_or_not_it_was_validated_and_if_it_was_interrupted(tmp_path: Path) -> None:
    class Interrupts(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.current_epoch == 3:
                raise KeyboardInterrupt

    options: Any = {"max_epochs": 5, "check_val_every_n_epoch": 2}
    assert "with `max_epochs = 5` after epoch 4" in read(fit(tmp_path, watcher(), **options), tmp_path)[1]["End"]
    trainer = quiet_trainer(tmp_path, watcher(), Interrupts(), **options)
    with pytest.raises(SystemExit):
        trainer.fit(SmallNet(), loader(80), loader(seed=1))
    assert "was interrupted in epoch 3" in read(trainer, tmp_path)[1]["End"]


def test_a_validation_alone_tells_of_samples_and_filters(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, watcher())
    trainer.validate(SmallNet(), loader(seed=1), verbose=False)
    index, told = read(trainer, tmp_path)
    assert told["Run"] == "No validation of a fit."
    assert {"Samples", "Filters"} <= told.keys()
    assert index["curves"]["panels"] == []


def test_a_run_without_callbacks_or_without_a_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"AnomalyFilterCallback or a MemorizationCallback .* Found .*EarlyStopping"):
        save_run_page(quiet_trainer(tmp_path, EarlyStopping("val_loss")), tmp_path / "run.html")
    _, told = read(quiet_trainer(tmp_path, watcher()), tmp_path)
    assert told == {"Run": "Nothing was measured."}
    ended = quiet_trainer(tmp_path, watcher(), strategy="ddp_spawn")
    ended.state.status = TrainerStatus.FINISHED
    _, told = read(ended, tmp_path)
    assert "ended with the processes" in told["Run"]


def story(modes: Any = (), **columns: list[float]) -> Story:
    names = {"rises": "output/rise", "few": "output/few_errors", "losses": "val_loss", "shares": "val_acc"}
    count = len(next(iter(columns.values())))
    rows = {(epoch, 10 * epoch): dict[str, float]() for epoch in range(count)}
    for name, values in columns.items():
        for row, value in zip(rows.values(), values, strict=True):
            row |= {} if math.isnan(value) else {names[name]: value}
    return Story(rows, {names[name] for name in columns if name in ("losses", "shares")}, dict(modes))


NAN = math.nan


@pytest.mark.parametrize(
    ("rises", "few", "problem", "says", "marks"),
    [
        ([0, 0, 0, 0.04, 0.2, 0.3], 6, "", "opened in epoch 4: .* 20% .* In epoch 5 .* 30%", [4]),
        ([0, 0, 0, 0.04], 4, "", "No gap opened: .* at most 4% .* more than 5%", []),
        ([NAN] * 4, 0, "", "Not measured: .* fewer than 10 errors", []),
        ([0, 0, 0, 0.2, 0.4, NAN, NAN], 5, "", "opened in epoch 3: .* In epoch 4 .* Later .* too few", [3]),
        ([0, 0, 0], 3, "", "Not measured: .* more than 3 validations", []),
        ([0, 0, 0, 0], 4, "", "No gap opened: .* did not rise", []),
        ([NAN, NAN, 0, 0, 0, 0.06], 6, "", "opened in epoch 5", [5]),
        ([NAN] * 5, 5, "Several classes per image.", "^Not measured: Several classes per image.$", []),
    ],
)
def test_a_gap_is_told_where_it_opened_and_its_absence_only_where_it_was_measured(
    rises: list[float], few: int, problem: str, says: str, marks: list[int]
) -> None:
    run = story(rises=rises, few=[NAN] * few + [1.0] * (len(rises) - few))
    run.tell_gap(0.05, problem)
    ((_, text),) = run.sentences
    assert re.search(says, text)
    assert [at for _, at in run.marks] == marks


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        ([4, 3, 2, 1.5, 1, 2], "no reason to stop: `val_loss` still fell, from 1.5 to 1 in epoch 4"),
        ([4, 1, 2, 3, 4, 5], "`val_loss` has not been lower since"),
        ([NAN] * 6, "above it.$"),
    ],
)
def test_a_gap_that_opens_while_the_loss_falls_is_no_reason_to_act(losses: list[float], says: str) -> None:
    run = story(losses=losses, rises=[0, 0, 0, 0.06, 0.1, 0.1])
    run.tell_gap(0.05, "")
    assert re.search(says, run.sentences[0][1])


@pytest.mark.parametrize(
    ("values", "kept", "says", "next_step"),
    [
        ({"losses": [3, 1, 2]}, 1.0, "lowest in epoch 1: 1. In the last validation, epoch 2, it was 2. ", "Use"),
        ({"losses": [3, 1, 2]}, 2.0, "epoch 2, it was 2.$", 'Keep .* epoch 1, .* add `ModelCheckpoint(monitor="val_lo'),
        ({"losses": [3, 2, 1, NAN]}, NAN, "end of the run", "Train longer"),
        ({"losses": [3, 1.001, 1]}, NAN, "end of the run", ""),
        ({"losses": [3, 1, 1.001]}, NAN, "lowest in epoch 1", ""),
        ({"losses": [NAN] * 3}, NAN, "Not known", "Log a validation loss"),
        ({"losses": [3, 1, 2], "shares": [0.5, 0.7, 0.6]}, 1.0, "highest in epoch 1: 0.7", "Use .* highest"),
    ],
)  # fmt: skip
def test_the_best_weights_are_told_with_their_checkpoint_and_what_to_do(
    values: dict[str, list[float]], kept: float, says: str, next_step: str
) -> None:
    run, decides = story(**values), "val_acc" if "shares" in values else "val_loss"
    run.tell_best({decides: ("best.ckpt", 0.7 if "shares" in values else kept)})
    assert re.search(says.replace("(", r"\("), run.sentences[0][1])
    assert len(run.actions) == bool(next_step)
    assert not next_step or re.match(next_step.replace("(", r"\("), run.actions[0][0])
    assert ("best.ckpt" in run.sentences[0][1]) == next_step.startswith("Use")
    assert {about for about, *_ in run.sentences} <= {"Validation loss", "val_acc"}


def test_every_logged_metric_is_a_curve_with_its_best_validation_by_name_or_by_its_monitor() -> None:
    rows = {(0, 0): {"val_x": 3.0, "val_acc": 0.5, "val_q": 9.0}, (1, 9): {"val_x": 4.0, "val_acc": 0.4, "val_q": 8.0}}
    panels = Story(rows, ["val_x", "val_acc", "val_q"], {"val_x": "max"}).story_curves(0.05)["panels"]
    assert [(panel["title"], panel["lines"][0][2]) for panel in panels] == [
        ("val_acc", 0),
        ("val_q", None),
        ("val_x", 1),
    ]


def test_several_validations_of_an_epoch_are_told_by_their_steps() -> None:
    rows = {(0, 1000 * place): {"val_loss": value} for place, value in enumerate([3.0, 1.0, 2.0])}
    run = Story(rows, ["val_loss"], {})
    run.tell_best({})
    assert "lowest in epoch 0 (step 1,000)" in run.sentences[0][1]
    assert run.story_curves(0.05)["times"] == [0, 1000, 2000]
