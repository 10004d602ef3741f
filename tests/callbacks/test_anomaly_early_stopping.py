"""AnomalyEarlyStopping stops a run if and only if the fraction of anomaly filters has risen and stays up."""

import logging
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from scripted import Scripted, run, validations
from trainers import SmallNet, loader, quiet_trainer

from lightning_anomaly import AnomalyEarlyStopping
from lightning_anomaly.filters.fraction_rise import HOLD, RISE_PATIENCE

STEP = [0.1] * 12 + [0.3] * 20


@pytest.mark.parametrize(
    ("signal", "patience", "expected"),
    [
        ([0.1] * 12 + [0.3] * (HOLD - 1) + [0.1] * 6, HOLD, None),  # a short rise
        ([0.1] * 12 + [0.14] * 10, HOLD, None),  # a small one
        (STEP, HOLD, 12 + HOLD),
        (STEP, 9, 12 + 9),
    ],
)
def test_a_run_is_stopped_when_a_rise_has_lasted(tmp_path: Path, signal: Any, patience: int, expected: Any) -> None:
    stopping, trainer = run(tmp_path, signal, patience=patience)
    assert validations(trainer) == (expected or len(signal))
    assert stopping.stopped_epoch == (expected - 1 if expected else 0)
    assert bool(stopping.stopping_reason_message) == bool(expected)


def test_repeated_values_do_not_count_as_validations_of_a_rise(tmp_path: Path) -> None:
    stopping, trainer = run(tmp_path, [value for level in STEP for value in (level, None, None)])
    assert validations(trainer) == 3 * (12 + stopping.patience) - 2
    assert f"for {stopping.patience} validations" in str(stopping.stopping_reason_message)


def test_it_works_beside_lightning_callbacks_and_logs_its_reason(tmp_path: Path, caplog: Any) -> None:
    on_loss = EarlyStopping("val_loss", patience=100)
    best = ModelCheckpoint(tmp_path, monitor="anomaly_filters/rise", mode="min")
    with caplog.at_level(logging.INFO):
        stopping, trainer = run(tmp_path, STEP, on_loss, best)
    assert validations(trainer) == 12 + RISE_PATIENCE
    assert (on_loss.stopped_epoch, best.best_model_score) == (0, 0)
    assert len({callback.state_key for callback in trainer.callbacks}) == len(trainer.callbacks)
    reason = str(stopping.stopping_reason_message)
    assert reason in caplog.messages
    assert any("watches 'anomaly_filters/rise'" in text and "above 0.05 for 6" in text for text in caplog.messages)
    assert all(part in reason for part in ("for 6 validations", "anomaly_filters/rise = 0.200"))
    kind = getattr(stopping, "stopping_reason", None)
    assert kind is None or kind.name == "DIVERGENCE_THRESHOLD"
    caplog.clear()
    with caplog.at_level(logging.INFO):
        run(tmp_path, STEP, verbose=False)
    assert not any("EarlyStopping" in text or "risen" in text for text in caplog.messages)


def test_two_thresholds_in_one_trainer_are_independent_even_after_a_resume(tmp_path: Path) -> None:
    def both() -> list[AnomalyEarlyStopping]:
        return [AnomalyEarlyStopping(0.1, patience=12), AnomalyEarlyStopping(0.25)]

    keep, first = ModelCheckpoint(tmp_path, save_last=True), both()
    stopping, trainer = run(tmp_path, STEP[:20], keep, *first)
    assert validations(trainer) == 12 + stopping.patience  # the one with default arguments stops first
    assert [stopping.wait_count for stopping in first] == [2, 0]
    second = both()
    resumed = quiet_trainer(tmp_path, Scripted(STEP), *second, max_epochs=len(STEP), limit_train_batches=1)
    resumed.fit(SmallNet(), loader(4), loader(4), ckpt_path=tmp_path / "last.ckpt")
    assert validations(resumed) == 12 + 12
    assert [bool(stopping.stopping_reason_message) for stopping in second] == [True, False]


def test_an_anomaly_filter_callback_is_required(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, AnomalyEarlyStopping())
    with pytest.raises(ValueError, match=r"AnomalyEarlyStopping .* AnomalyFilterCallback.*Found none"):
        trainer.fit(SmallNet(), loader(), loader())
    trainer.validate(SmallNet(), loader(), verbose=False)  # nothing to stop
