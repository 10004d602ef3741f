"""A resumed run has the same history and the same weights as an unbroken one."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trainers
from functional import same
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch.utils.data import ConcatDataset, DataLoader
from trainers import damaged, loader, plain, resumable, watcher

from lightning_anomaly import AnomalyEarlyStopping, AnomalyPruneCallback, MemorizationCallback


def fit(callbacks: list[Any], ckpt_path: Path | None = None, **options: Any) -> Any:
    # Six times the same batch, because a resumed Lightning restarts the data of an epoch.
    train = DataLoader(ConcatDataset([loader(16).dataset] * 6), batch_size=16)
    options |= {"train": train, "val": loader(96, batch_size=16, make=damaged), "num_sanity_val_steps": 0}
    return trainers.fit(None, *callbacks, module=resumable(), ckpt_path=ckpt_path, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder, ours = tmp_path_factory.mktemp("whole"), watcher()
    fit([ours, ModelCheckpoint(folder, "{epoch}", save_top_k=-1)], max_epochs=4)
    assert len({entry["metrics"]["sparsity"] for entry in ours.history}) > 1
    return SimpleNamespace(ours=ours, folder=folder)


class Validations(Callback):
    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.steps.append(trainer.global_step)


HALVES = {"val_check_interval": 0.5, "max_epochs": 3}


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Six batches in an epoch, a validation after every third, and a checkpoint of each step and each validation."""
    folder, ours = tmp_path_factory.mktemp("halves"), watcher()
    of_steps = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    of_validations = ModelCheckpoint(folder, "validated-{step}", monitor="anomaly_filters/count", save_top_k=-1)
    trainer = fit([ours, of_steps, of_validations], **HALVES)
    return SimpleNamespace(ours=ours, trainer=trainer, folder=folder)


# The checkpoint of step 6 is written before the validation of that step, which a resumed Lightning does not repeat. So
# the entry is missing, like the loss; a validation of our own would change what others read.
@pytest.mark.parametrize(("saved", "missing"), [("step=2", []), ("step=6", [6]), ("validated-step=3", [])])
def test_a_run_resumed_within_an_epoch_is_the_same(halves: SimpleNamespace, saved: str, missing: list[int]) -> None:
    second, validations, steps = watcher(), Validations(), int(saved.partition("=")[2])
    resumed = fit([second, validations], halves.folder / f"{saved}.ckpt", **HALVES)
    assert [entry["step"] for entry in second.history if entry["step"] > steps] == validations.steps
    assert not {*missing} & {*validations.steps}
    assert plain(second.history) == [entry for entry in plain(halves.ours.history) if entry["step"] not in missing]
    assert same(*(trainer.lightning_module.state_dict() for trainer in (resumed, halves.trainer)))


def test_a_resumed_run_may_add_callbacks_and_change_their_order(whole: SimpleNamespace, tmp_path: Path) -> None:
    new, old = watcher(log_key_prefix="new", layers=["conv1"]), watcher()
    trainer = fit([new, old], whole.folder / "epoch=1.ckpt", max_epochs=3)
    assert {"anomaly_filters/count", "new/count", "new_layers/conv1"} <= set(trainer.callback_metrics)
    assert plain(old.history) == plain(whole.ours.history)[:3]
    assert [entry["epoch"] for entry in new.history] == [2]
    trainer.save_checkpoint(tmp_path / "both.ckpt")
    old, new = watcher(), watcher(log_key_prefix="new", layers=["conv1"])  # in another order
    fit([old, new], tmp_path / "both.ckpt", max_epochs=4)
    assert plain(old.history) == plain(whole.ours.history)[:4]
    assert [entry["epoch"] for entry in new.history] == [2, 3]


def test_new_layers_are_logged_from_the_first_validation_of_a_resumed_run(tmp_path: Path) -> None:
    fit([watcher(layers=["conv1"], every_n_validations=2), ModelCheckpoint(tmp_path, save_last=True)], max_epochs=1)
    ours = watcher(layers=["conv2"], every_n_validations=2)
    reader = EarlyStopping("anomaly_filters_layers/conv2", patience=9)  # fails where its key is missing
    fit([ours, reader], tmp_path / "last.ckpt", max_epochs=3)
    assert [entry["analyzed"] for entry in ours.history] == [True, False, True]
    assert "layer/conv1" not in ours.history[1]["metrics"]


def test_early_stopping_continues_to_count(tmp_path: Path) -> None:
    """The first validation after a resume repeats the last values; 0 would be an improvement."""

    def callbacks() -> list[Any]:
        return [watcher(every_n_validations=2), EarlyStopping("anomaly_filters/count", mode="min", patience=3)]

    unbroken = fit(callbacks(), max_epochs=20)
    assert unbroken.callback_metrics["anomaly_filters/count"] > 0
    keep = ModelCheckpoint(tmp_path)
    fit([*callbacks(), keep], max_epochs=3)
    resumed = fit(callbacks(), Path(keep.best_model_path), max_epochs=20)
    assert resumed.current_epoch == unbroken.current_epoch == 4


@pytest.mark.filterwarnings("ignore:MemorizationCallback")
def test_a_checkpoint_of_all_callbacks_has_only_tensors_and_plain_values(tmp_path: Path) -> None:
    callbacks = [watcher(), AnomalyEarlyStopping(), AnomalyPruneCallback(1, min_votes=1), MemorizationCallback()]
    trainer = fit(callbacks, max_epochs=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    states = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]
    assert {callback.state_key for callback in callbacks} <= {*states}
