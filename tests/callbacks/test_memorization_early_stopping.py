"""MemorizationEarlyStopping stops a run when there is a gap and the validation loss no longer improves."""

import logging
from datetime import timedelta
from inspect import signature
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from trainers import SmallNet, fit, images, loader, quiet_trainer, said

from lightning_anomaly import MemorizationCallback, MemorizationEarlyStopping
from lightning_anomaly.memorization.stop_rule import ErrorRise


class Written(MemorizationCallback):
    """Uses given ratios of expected errors, the same for all images, instead of a comparison."""

    def __init__(self, ratios: list[float], **options: Any) -> None:
        super().__init__(images(100), images(100, seed=1), **options)
        self.ratios = ratios
        self.validations = 0

    def on_validation_start(self, *arguments: Any) -> None:
        pass

    on_validation_batch_end = on_validation_start

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.validations = trainer.current_epoch + 1
            errors = torch.full((200,), 0.1)
            rise = self._error_rise.add(errors, errors * self.ratios[trainer.current_epoch])
            self.history.append({"epoch": trainer.current_epoch, "compares_output": True})
            pl_module.log(f"{self.log_key_prefix}/rise", rise, on_step=False, on_epoch=True, batch_size=1)


class Loses(SmallNet):
    def __init__(self, losses: list[float], *names: str) -> None:
        super().__init__()
        self.losses, self.names = losses, names

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        for name in self.names:
            self.log(name, self.losses[min(self.current_epoch, len(self.losses) - 1)])


def run(
    folder: Path,
    ratios: list[float],
    *callbacks: Any,
    ckpt_path: Path | None = None,
    losses: list[float] | None = None,
    name: str = "val_loss",
    also: str = "accuracy",
    **options: Any,
) -> tuple[MemorizationEarlyStopping, int]:
    """Fit, and return the callback and the number of validations; by default the loss never improves."""
    stopping, written = MemorizationEarlyStopping(**options), Written(ratios)
    trainer = quiet_trainer(folder, stopping, *callbacks, written, max_epochs=len(ratios), limit_train_batches=1)
    trainer.fit(Loses(losses or [1.0], name, also), loader(4), loader(4), ckpt_path=ckpt_path)
    return stopping, written.validations


OPEN = [1.0] * 3 + [1.5] * 9  # a gap from the fourth validation on
LATER = [1.0, 0.9, 0.8, 0.7, 0.6, 0.7, *[0.8] * 6]  # its average is lowest at the sixth


@pytest.mark.parametrize(
    ("ratios", "losses", "options", "expected"),
    [
        (OPEN, LATER, {}, 9),
        ([1.0] * 10 + [1.5] * 2, LATER, {"patience": 1}, 11),  # the gap opens after the loss has turned
        (OPEN, [1 / (1 + epoch) for epoch in range(12)], {}, 12),  # a gap is not yet harm
        (OPEN, LATER, {"threshold": 0.6}, 12),
        (OPEN, LATER, {"name": "objective", "confirm": "objective"}, 9),
    ],
)
def test_a_run_is_stopped_by_a_gap_and_a_loss_that_no_longer_improves(
    tmp_path: Path, ratios: list[float], losses: list[float], options: dict[str, Any], expected: int
) -> None:
    stopping, ended = run(tmp_path, ratios, losses=losses, **options)
    assert ended == expected
    assert bool(stopping.stopping_reason_message) == (expected < 12)
    if expected == 9:
        assert stopping.wait_count == 3
        loss = options.get("name", "val_loss")
        for part in ("50% above", "memorization/rise = 0.500 is above 0.05", f"'{loss}', now 0.7843"):
            assert part in str(stopping.stopping_reason_message)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"name": "accuracy"}, "no validation loss"),
        ({"name": "val_glossiness"}, "no validation loss"),
        ({"confirm": "objective"}, "no 'objective'"),
        ({"name": "val_ce_loss", "also": "val_kl_loss"}, "several validation losses, .*'val_ce_loss', 'val_kl_loss'"),
    ],
)
def test_no_loss_or_several_losses_give_a_warning_and_no_stop(
    tmp_path: Path, options: dict[str, Any], found: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with pytest.warns(UserWarning, match=f"{found}.* `confirm`") as caught:
        stopping, ended = run(tmp_path, OPEN, losses=LATER, **options)
    assert (ended, stopping.stopped_epoch, len(said(caught))) == (12, 0, 1)
    assert "above 0.05 and a validation loss has not improved for 3 validations" in caplog.text


@pytest.mark.parametrize("options", [{"patience": 5}, {"patience": 2}], ids=str)
def test_the_earliest_stop_is_at_the_announced_validation(tmp_path: Path, options: dict[str, Any], caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    _, ended = run(tmp_path, OPEN, **options)
    assert ended < len(OPEN)
    assert f"after {ended} validations at the earliest" in caplog.text
    caplog.clear()
    run(tmp_path, [1.0], verbose=False, **options)
    assert "at the earliest" not in caplog.text


@pytest.mark.parametrize(
    ("ratios", "options", "saved", "expected"),
    [(OPEN, {"losses": LATER}, 7, 9), ([1.0] * 4 + [1.2] * 6, {"threshold": 0.12}, 5, 6)],
    ids=["by the loss", "by the gap"],
)
def test_a_resumed_run_stops_at_the_same_validation(
    tmp_path: Path, ratios: list[float], options: dict[str, Any], saved: int, expected: int
) -> None:
    assert run(tmp_path / "whole", ratios, **options)[1] == expected
    run(tmp_path, ratios[:saved], ModelCheckpoint(tmp_path, save_last=True), **options)
    assert run(tmp_path, ratios, ckpt_path=tmp_path / "last.ckpt", **options)[1] == expected


def test_a_stopped_run_continues_with_the_arguments_of_the_resumed_one(tmp_path: Path) -> None:
    ratios = [1.0] * 3 + [1.8] * 7
    assert run(tmp_path, ratios, ModelCheckpoint(tmp_path, save_last=True))[1] == 4
    assert run(tmp_path, ratios, ckpt_path=tmp_path / "last.ckpt", patience=4)[1] == 9  # it counts anew
    stopping, ended = run(tmp_path, ratios, ckpt_path=tmp_path / "last.ckpt", threshold=0.9)
    assert (ended, stopping.stopped_epoch, stopping.stopping_reason_message) == (10, 0, None)


INTERVALS = [{"val_check_interval": 1}, {"max_epochs": -1, "max_steps": 6}, {"check_val_every_n_epoch": 2}]
if "timedelta" in str(signature(pl.Trainer).parameters["val_check_interval"].annotation):  # since Lightning 2.6
    INTERVALS.append({"val_check_interval": timedelta(microseconds=1)})


@pytest.mark.parametrize("options", INTERVALS, ids=str)
def test_each_validation_is_read_once(tmp_path: Path, options: dict[str, Any], monkeypatch: Any) -> None:
    monkeypatch.setattr(ErrorRise, "add", lambda *arguments: 1.0)
    compared = MemorizationCallback(images(300), images(300, seed=1))
    stopping = MemorizationEarlyStopping(0.0, patience=100)
    for trainer_options in (options, {}, options):
        fit(tmp_path, compared, stopping, val=loader(20), **{"max_epochs": 4, **trainer_options})
        assert len(stopping.state_dict()["losses"]) == len(compared.history)
