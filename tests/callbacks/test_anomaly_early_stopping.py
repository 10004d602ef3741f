"""It stops where the signal has risen and stays up, and nowhere else."""

import logging
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from scripted import Scripted, run, validations
from trainers import QUIET, SmallNet, loader, quiet_trainer, watcher

from lightning_anomaly.callbacks import AnomalyEarlyStopping
from lightning_anomaly.callbacks._history import HOLD, rise

pytestmark = QUIET

# (probability, filters, persistence) and what is said of 1,000 runs of these beside THRESHOLD.
FALSE_STOPS = [
    ((0.05, 160, 0.0), 0),
    ((0.5, 160, 0.0), 3),
    ((0.05, 22, 0.0), 5),
    ((0.3, 160, 0.8), 714),
]


@pytest.mark.parametrize(
    "signal",
    [
        [5.0] * 30,
        [0.9 * 0.9**i for i in range(30)],
        [0.05 + 0.03 * (i % 2) for i in range(30)],
        [0.1] * 12 + [0.3] * (HOLD - 1) + [0.1] * 14,
        [0.1] * 12 + [0.14] * 18,
    ],
    ids=["constant", "falling", "fluctuating", "a short rise", "a small rise"],
)
def test_it_does_not_stop(tmp_path: Path, signal: list[float]) -> None:
    stopping, trainer = run(tmp_path, signal)
    assert validations(trainer) == len(signal)
    assert stopping.stopped_epoch == 0
    assert stopping.stopping_reason_message is None


@pytest.mark.parametrize("patience", [HOLD, 6, 9])
def test_it_stops_within_patience_of_a_step(tmp_path: Path, patience: int) -> None:
    stopping, trainer = run(tmp_path, [0.1] * 12 + [0.3] * 20, patience=patience)
    assert validations(trainer) == 12 + patience
    assert stopping.stopped_epoch == 12 + patience - 1


def test_values_that_are_only_repeated_do_not_make_a_rise_last(tmp_path: Path) -> None:
    every_third = [value for level in [0.1] * 12 + [0.3] * 20 for value in (level, None, None)]
    stopping, trainer = run(tmp_path, every_third)
    assert validations(trainer) == 3 * (12 + stopping.patience) - 2
    assert stopping.stopping_reason_message is not None
    assert f"for {stopping.patience} validations" in stopping.stopping_reason_message


def test_validations_within_an_epoch_count_too(tmp_path: Path) -> None:
    watching, stopping = Scripted([0.1] * 12 + [0.3] * 28), AnomalyEarlyStopping()
    trainer = quiet_trainer(tmp_path, watching, stopping, max_epochs=10, val_check_interval=0.25)
    trainer.fit(SmallNet(), loader(80), loader(4))
    assert len(watching.history) == 12 + stopping.patience


def test_it_says_why_in_one_sentence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        stopping, _ = run(tmp_path, [0.1] * 12 + [0.3] * 20)
    assert "for 6 validations" in stopping.stopping_reason_message
    assert "anomaly_filters/rise = 0.200" in stopping.stopping_reason_message
    assert stopping.stopping_reason_message in caplog.messages
    reason = getattr(stopping, "stopping_reason", None)
    assert reason is None or reason.name == "DIVERGENCE_THRESHOLD"
    caplog.clear()
    with caplog.at_level(logging.INFO):
        run(tmp_path, [0.1] * 12 + [0.3] * 20, verbose=False)
    assert not any("risen" in message for message in caplog.messages)


def simulate(p: float, filters: int, persistence: float) -> torch.Tensor:
    """1,000 runs of 100 validations; filters keep their verdicts with probability `persistence`."""
    generator = torch.Generator().manual_seed(0)
    flagged = torch.rand(1000, filters, generator=generator) < p
    signal = []
    for _ in range(100):
        anew = torch.rand(1000, filters, generator=generator) < p
        kept = torch.rand(1000, filters, generator=generator) < persistence
        flagged = torch.where(kept, flagged, anew)
        signal.append(flagged.double().mean(1))
    return torch.stack(signal, 1)


def may_stop(signals: torch.Tensor, threshold: float) -> torch.Tensor:
    """The signals whose rise exceeds the threshold at some validation, which the callback is asked about one by one."""
    windows = signals.unfold(1, HOLD, 1)
    low, high = windows.amin(2), windows.amax(2).cummin(1).values
    return signals[(low[:, HOLD:] - high[:, :-HOLD] > threshold).any(1)]


def stopped(signal: list[float], **options: Any) -> int | None:
    """After how many validations the callback stops a Trainer that only shows it the rise."""
    stopping = AnomalyEarlyStopping(log_key_prefix="anomaly_filters", verbose=False, **options)
    trainer: Any = SimpleNamespace(
        state=SimpleNamespace(fn="fit"),
        strategy=SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision),
        world_size=1,
        **dict.fromkeys(("sanity_checking", "fast_dev_run", "should_stop", "current_epoch"), 0),
    )
    for end in range(1, len(signal) + 1):
        trainer.callback_metrics = {"anomaly_filters/rise": torch.tensor(rise(signal[:end]))}
        stopping.on_validation_end(trainer, None)
        if trainer.should_stop:
            return end
    return None


@pytest.mark.parametrize(("constant", "stops"), FALSE_STOPS)
def test_false_stops_in_1000_runs_that_fluctuate_around_a_constant(constant: tuple, stops: int) -> None:
    found = sum(stopped(signal) is not None for signal in may_stop(simulate(*constant), 0.05).tolist())
    assert found == pytest.approx(stops, abs=0 if stops < 10 else 0.1 * stops)


@pytest.mark.parametrize(("height", "by_patience", "by_twice"), [(0.1, 0.7, 0.9), (0.2, 1.0, 1.0)])
def test_steps_found_in_runs_that_fluctuate(height: float, by_patience: float, by_twice: float) -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.full((60,), 0.05)
    p[30:] += height
    signals = (torch.rand(300, 160, 60, generator=generator) < p).double().mean(1).tolist()
    ends = [stopped(signal) or 999 for signal in signals]
    assert all(end > 30 for end in ends)
    assert sum(end <= 36 for end in ends) / 300 >= by_patience
    assert sum(end <= 42 for end in ends) / 300 >= by_twice


def test_it_works_beside_early_stopping_and_checkpoints(tmp_path: Path) -> None:
    on_loss = EarlyStopping("val_loss", patience=100)
    best = ModelCheckpoint(tmp_path, monitor="anomaly_filters/rise", mode="min")
    stopping, trainer = run(tmp_path, [0.1] * 12 + [0.3] * 20, on_loss, best)
    assert validations(trainer) == 12 + 6
    assert on_loss.stopped_epoch == 0
    assert best.best_model_score == 0
    assert stopping.state_key != EarlyStopping("anomaly_filters/rise").state_key
    assert len({callback.state_key for callback in trainer.callbacks}) == len(trainer.callbacks)


@pytest.mark.parametrize(
    "options", [{"threshold": 5}, {"threshold": True}, {"patience": 6.0}, {"patience": 0}, {"verbose": "no"}], ids=str
)
def test_arguments_are_checked(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=rf"`{name}` should be .* Found `{name} = {value!r}`"):
        AnomalyEarlyStopping(**options)


def test_two_thresholds_in_one_trainer_are_judged_and_restored_apart(tmp_path: Path) -> None:
    signal = [0.1] * 12 + [0.3] * 20

    def both() -> list[AnomalyEarlyStopping]:
        return [AnomalyEarlyStopping(0.1, patience=12), AnomalyEarlyStopping(0.25)]

    keep, first = ModelCheckpoint(tmp_path, save_last=True), both()
    stopping, trainer = run(tmp_path, signal[:20], keep, *first)
    assert validations(trainer) == 12 + stopping.patience  # the one with default arguments stops first
    assert [own.wait_count for own in first] == [2, 0]
    second = both()
    again = quiet_trainer(tmp_path, Scripted(signal), *second, max_epochs=len(signal), limit_train_batches=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")
        again.fit(SmallNet(), loader(4), loader(4), ckpt_path=tmp_path / "last.ckpt")
    assert validations(again) == 12 + 12
    assert [bool(own.stopping_reason_message) for own in second] == [True, False]


def test_without_anybody_who_watches_it_says_so(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, AnomalyEarlyStopping())
    message = "AnomalyEarlyStopping should be used with a TwoSampleCallback or an AnomalyFilterCallback .*Found "
    with pytest.raises(ValueError, match=message + "none"):
        trainer.fit(SmallNet(), loader(), loader())
    trainer = quiet_trainer(tmp_path, AnomalyEarlyStopping(log_key_prefix="mine"), watcher())
    with pytest.raises(ValueError, match=message + r"\['anomaly_filters'\]"):
        trainer.fit(SmallNet(), loader(), loader())
    trainer.validate(SmallNet(), loader(), verbose=False)  # nothing to stop
    trainer = quiet_trainer(tmp_path, AnomalyEarlyStopping(patience=4), watcher())
    with pytest.raises(ValueError, match=r"`patience` should be an integer of at least 5. Found `patience = 4`"):
        trainer.fit(SmallNet(), loader(), loader())
