"""A callback that is used for another fit starts anew; if its Trainer goes on, or a checkpoint, it continues."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from scripted import Scripted
from torch.utils.data import DataLoader, TensorDataset
from trainers import SmallNet, fit, images, loader, quiet_trainer, watcher

from lightning_anomaly import AnomalyEarlyStopping, MemorizationCallback


def lasts(folder: Path, signal: Scripted, stopping: AnomalyEarlyStopping, values: list[float]) -> int:
    """Fit a new model with these anomaly fractions, and return how many epochs the run lasts."""
    signal.signal = [*values, *[values[-1]] * len(signal.history)]  # enough values even if the history were kept
    options: Any = {"max_epochs": len(values), "limit_train_batches": 1, "limit_val_batches": 1}
    return fit(folder, signal, stopping, **options).current_epoch


def test_a_stop_in_the_first_fold_does_not_affect_the_second(tmp_path: Path) -> None:
    signal, stopping = Scripted([]), AnomalyEarlyStopping()
    assert lasts(tmp_path, signal, stopping, [0.0] * 8 + [0.5] * 12) == 14
    assert stopping.wait_count > 0
    assert stopping.stopped_epoch > 0
    assert lasts(tmp_path, signal, stopping, [0.1] * 12) == 12
    assert (stopping.wait_count, stopping.stopped_epoch, stopping.stopping_reason_message) == (0, 0, None)


def test_a_fit_starts_anew_and_one_that_goes_on_keeps_its_history(tmp_path: Path) -> None:
    module, callback, fresh = SmallNet(), watcher(probe_size=100), watcher(probe_size=100)
    few = "fewer than `probe_size = 100`"
    with pytest.warns(UserWarning, match=few):
        trainer = fit(tmp_path, callback, module=module)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, loader(80), loader(seed=1))  # without a second warning
    with pytest.warns(UserWarning, match=few):
        quiet_trainer(tmp_path, callback).validate(SmallNet(), loader(seed=1), verbose=False)
    assert [entry["epoch"] for entry in callback.history] == [0, 1, 2]
    with pytest.warns(UserWarning, match=few):
        fit(tmp_path, callback, module=module, max_epochs=1)
    assert [entry["epoch"] for entry in callback.history] == [0]
    callbacks = copy.deepcopy(callback), callback, fresh
    for each in callbacks:
        with pytest.warns(UserWarning, match=few):
            fit(tmp_path, each)
    assert [entry["epoch"] for entry in callback.history] == [0, 1]
    fractions = [[entry["metrics"]["fraction"] for entry in each.history] for each in callbacks]
    assert fractions[0] == fractions[1] == fractions[2]


class Takes(SmallNet):
    """Takes its labels from a column of its batches."""

    def __init__(self, column: int) -> None:
        super().__init__()
        self.column = column

    def loss(self, batch: Any) -> torch.Tensor:
        return super().loss([batch[0], batch[self.column]])


def test_labels_of_a_probe_are_those_of_the_module_that_is_validated(tmp_path: Path) -> None:
    labels = torch.arange(60)
    data = DataLoader(TensorDataset(images(60), labels % 3, labels % 2), 20)
    callback = watcher()
    for column, classes in ((1, 3), (2, 2)):
        if column == 1:
            fit(tmp_path, callback, module=Takes(column), train=data, val=data, max_epochs=1)
        else:
            quiet_trainer(tmp_path, callback).validate(Takes(column), data, verbose=False)
        assert callback.report.samples["class"].tolist() == [str(label % classes) for label in range(60)]


def test_the_state_of_a_checkpoint_belongs_to_the_module_of_the_fit(tmp_path: Path) -> None:
    keep, used, validated = ModelCheckpoint(tmp_path), watcher(), watcher()
    fit(tmp_path, watcher(), keep)
    fit(tmp_path, used, max_epochs=1)
    fit(tmp_path, used, ckpt_path=keep.best_model_path, max_epochs=3)
    assert [entry["epoch"] for entry in used.history] == [0, 1, 2]
    trainer = quiet_trainer(tmp_path, validated)
    trainer.validate(SmallNet(), loader(seed=1), ckpt_path=keep.best_model_path, verbose=False)
    fit(tmp_path, validated, max_epochs=1)
    assert [entry["epoch"] for entry in validated.history] == [0]


def test_results_of_a_fit_stay_when_one_of_its_checkpoints_is_tested(tmp_path: Path) -> None:
    module, keep = SmallNet(), ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    compared = MemorizationCallback(images(40), images(40, seed=1))
    signal, stopping = Scripted([0.0] * 8 + [0.5] * 12), AnomalyEarlyStopping()
    trainer = fit(tmp_path, signal, compared, stopping, keep, module=module, max_epochs=20)
    reason, report = stopping.stopping_reason_message, compared.report
    assert reason
    assert trainer.current_epoch == 14
    trainer.test(module, loader(seed=1), ckpt_path=str(tmp_path / "epoch=0.ckpt"), verbose=False)
    assert stopping.stopping_reason_message == reason
    assert len(signal.history) == len(compared.history) == 14
    assert compared.report is report is not None
