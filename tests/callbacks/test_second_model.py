"""A callback that is used again for another model knows nothing of the first; for the same model it goes on."""

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from acting import GeluNet, probe_loader, pruner, training_loader
from lightning.pytorch.callbacks import ModelCheckpoint
from scripted import Scripted
from torch import Tensor
from trainers import QUIET, SmallNet, images, loader, quiet_trainer, watcher

from lightning_anomaly.callbacks import AnomalyEarlyStopping, TwoSampleCallback
from lightning_anomaly.two_sample.rise import ErrorRise

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


def fit(folder: Path, module: Any, *callbacks: Any, **options: Any) -> pl.Trainer:
    pl.seed_everything(0, verbose=False)
    trainer = quiet_trainer(folder, *callbacks, **{"num_sanity_val_steps": 0, **options})
    trainer.fit(module, loader(), loader(seed=1))
    return trainer


def lasts(folder: Path, signal: Scripted, stopping: AnomalyEarlyStopping, values: list[float]) -> int:
    """The epochs that a training of a new model lasts whose anomaly fraction takes the values."""
    signal.signal = [*values, *[values[-1]] * len(signal.history)]  # were the history kept, there would be values
    options: Any = {"max_epochs": len(values), "limit_train_batches": 1, "limit_val_batches": 1}
    return fit(folder, SmallNet(), signal, stopping, **options).current_epoch


def test_a_stop_of_the_first_fold_leaves_nothing_for_the_second(tmp_path: Path) -> None:
    signal, stopping = Scripted([]), AnomalyEarlyStopping()
    assert lasts(tmp_path, signal, stopping, [0.0] * 8 + [0.5] * 12) == 14
    assert stopping.wait_count > 0
    assert stopping.stopped_epoch > 0
    assert lasts(tmp_path, signal, stopping, [0.1] * 12) == 12
    assert (stopping.wait_count, stopping.stopped_epoch, stopping.stopping_reason_message) == (0, 0, None)


def test_the_same_module_keeps_its_history_and_another_has_its_own(tmp_path: Path) -> None:
    module, callback, fresh = SmallNet(), watcher(probe_size=100), watcher(probe_size=100)
    few = "fewer than `probe_size = 100`"
    with pytest.warns(UserWarning, match=few):
        fit(tmp_path, module, callback, max_epochs=2)
    fit(tmp_path, module, callback, max_epochs=1)  # said already
    assert [entry["epoch"] for entry in callback.history] == [0, 1, 0]
    for reused in (copy.deepcopy(callback), callback):
        with pytest.warns(UserWarning, match=few):  # of this one too
            fit(tmp_path, SmallNet(), reused)
    with pytest.warns(UserWarning, match=few):
        fit(tmp_path, SmallNet(), fresh)
    assert [entry["epoch"] for entry in callback.history] == [0, 1]
    for own in (callback, reused):
        assert [entry["signal"] for entry in own.history] == [entry["signal"] for entry in fresh.history]


def broken(*_: Any, **__: Any) -> Any:
    raise ArithmeticError


def test_nothing_of_the_first_model_is_logged_if_the_second_cannot_be_analysed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback = watcher()
    fit(tmp_path, SmallNet(), callback, max_epochs=1)
    assert callback.report is not None
    monkeypatch.setattr("lightning_anomaly.callbacks._probe.analyze_maps", broken)
    with pytest.warns(UserWarning, match="could not analyze"):
        trainer = fit(tmp_path, SmallNet(), callback, max_epochs=1)
    assert callback.report is None
    assert trainer.callback_metrics["anomaly_filters/sparsity"] == 0
    assert callback.history[0]["anomaly_filters"] == {}


def test_a_checkpoint_brings_its_history_to_another_module(tmp_path: Path) -> None:
    keep, used = ModelCheckpoint(tmp_path), watcher()
    fit(tmp_path, SmallNet(), watcher(), keep)
    fit(tmp_path, SmallNet(), used, max_epochs=1)
    trainer = quiet_trainer(tmp_path, used, max_epochs=4)
    trainer.fit(SmallNet(), loader(), loader(seed=1), ckpt_path=keep.best_model_path)
    assert [entry["epoch"] for entry in used.history] == [0, 1, 2, 3]
    fit(tmp_path, SmallNet(), used, max_epochs=1)
    assert [entry["epoch"] for entry in used.history] == [0]


def test_a_checkpoint_that_was_validated_belongs_to_the_module_that_was(tmp_path: Path) -> None:
    keep, used, module = ModelCheckpoint(tmp_path), watcher(), SmallNet()
    fit(tmp_path, SmallNet(), watcher(), keep)
    quiet_trainer(tmp_path, used).validate(module, loader(seed=1), ckpt_path=keep.best_model_path, verbose=False)
    fit(tmp_path, SmallNet(), used, max_epochs=1)
    assert [entry["epoch"] for entry in used.history] == [0]


def test_what_a_fit_found_stays_when_a_checkpoint_of_it_is_tested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rises = iter([0.0, 0.0, 0.2])
    monkeypatch.setattr(ErrorRise, "add", lambda *arguments: next(rises))
    module, keep = SmallNet(), ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    filters, compared, stopping = watcher(), TwoSampleCallback(images(100), images(100, seed=1)), AnomalyEarlyStopping()
    trainer = fit(tmp_path, module, filters, compared, stopping, keep, max_epochs=9)
    reason, validations, report = stopping.stopping_reason_message, trainer.current_epoch, compared.report
    assert reason
    trainer.test(module, loader(seed=1), ckpt_path=str(tmp_path / "epoch=0.ckpt"), verbose=False)
    assert stopping.stopping_reason_message == reason
    assert len(filters.history) == len(compared.history) == validations > 1
    assert compared.report is report is not None


@pytest.mark.parametrize("between", [None, "validate"])
def test_a_comparison_that_fails_in_a_second_fit_of_a_module_logs_what_the_first_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, between: str | None
) -> None:
    callback, module = TwoSampleCallback(images(40) + 0.3, images(40, seed=1)), SmallNet()
    fit(tmp_path, module, callback, max_epochs=1)
    found = callback.history[0]["metrics"]
    assert found["count"] > 0
    if between is not None:  # of another model
        getattr(quiet_trainer(tmp_path, callback), between)(Other(), loader(seed=1), verbose=False)
    monkeypatch.setattr("lightning_anomaly.callbacks.two_sample.compare_groups", broken)
    with pytest.warns(UserWarning, match="could not compare .ArithmeticError.* and logs its last values"):
        trainer = fit(tmp_path, module, callback, max_epochs=1)
    assert callback.history[1]["metrics"] == found
    assert trainer.callback_metrics["two_sample/count"] == found["count"]


class Other(SmallNet):
    """Untrained, and with another output."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


def test_masks_and_reports_of_the_first_model_do_not_act_on_the_second(tmp_path: Path) -> None:
    callback, prune = watcher(), pruner(1)
    for _ in range(2):
        quiet_trainer(tmp_path, callback, prune, num_sanity_val_steps=0).fit(
            GeluNet(), training_loader(), probe_loader()
        )
        assert [event["epoch"] for event in prune.events] == [1]
