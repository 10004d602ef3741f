"""It stops where the signal has risen and stays up, and nowhere else."""

import logging
import warnings
from contextlib import nullcontext
from pathlib import Path
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
    ((0.1, 160, 0.0), 0),
    ((0.3, 160, 0.0), 0),
    ((0.5, 160, 0.0), 3),
    ((0.05, 22, 0.0), 5),
    ((0.05, 160, 0.8), 48),
    ((0.3, 160, 0.8), 714),
]


@pytest.mark.parametrize(
    "signal",
    [
        [0.0] * 30,
        [5.0] * 30,
        [0.9 * 0.9**i for i in range(30)],
        [0.05 + 0.03 * (i % 2) for i in range(30)],
        [0.1] * 12 + [0.3] * (HOLD - 1) + [0.1] * 14,
        [0.1] * 12 + [0.14] * 18,
    ],
    ids=["constant 0", "constant 5", "falling", "fluctuating", "a short rise", "a small rise"],
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


def test_it_stops_in_a_slow_rise_once_that_exceeds_the_threshold(tmp_path: Path) -> None:
    onset, slope, patience = 12, 0.01, 7
    _, trainer = run(tmp_path, [0.1] * onset + [0.1 + slope * (i + 1) for i in range(30)], patience=patience)
    exceeds = onset + 5 + 1  # the first value that is more than 0.05 above the level
    assert exceeds <= validations(trainer) <= exceeds + patience


def test_validations_within_an_epoch_count_too(tmp_path: Path) -> None:
    watching, stopping = Scripted([0.1] * 12 + [0.3] * 28), AnomalyEarlyStopping()
    trainer = quiet_trainer(tmp_path, watching, stopping, max_epochs=10, val_check_interval=0.25)
    trainer.fit(SmallNet(), loader(80), loader(4))
    assert len(watching.history) == 12 + stopping.patience


def test_it_says_why_in_one_sentence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        stopping, _ = run(tmp_path, [0.1] * 12 + [0.3] * 20)
    assert stopping.stopping_reason_message == (
        "Anomaly filters have risen: for 6 validations their fraction has been more than 0.05 above an earlier level, "
        "by now anomaly_filters/rise = 0.200."
    )
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
    """After how many validations the callback decides to stop, without a Trainer."""
    stopping = AnomalyEarlyStopping(log_key_prefix="anomaly_filters", **options)
    for end in range(1, len(signal) + 1):
        if stopping._evaluate_stopping_criteria(torch.tensor(rise(signal[:end])))[0]:
            return end
    return None


@pytest.mark.parametrize(("constant", "stops"), FALSE_STOPS)
def test_false_stops_in_1000_runs_that_fluctuate_around_a_constant(constant: tuple, stops: int) -> None:
    found = sum(stopped(signal) is not None for signal in may_stop(simulate(*constant), 0.05).tolist())
    assert found == pytest.approx(stops, abs=0 if stops < 10 else 0.1 * stops)


def test_a_higher_threshold_bears_more() -> None:
    signals = may_stop(simulate(0.3, 160, 0.8), 0.15)
    assert sum(stopped(signal, threshold=0.15) is not None for signal in signals.tolist()) == 1


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


def test_a_resumed_run_stops_where_the_whole_one_does(tmp_path: Path) -> None:
    signal = [0.1] * 12 + [0.3] * 20
    stopping, watching = AnomalyEarlyStopping(patience=8), Scripted(signal)
    first = quiet_trainer(tmp_path, watching, stopping, ModelCheckpoint(tmp_path, save_last=True), max_epochs=18)
    first.fit(SmallNet(), loader(4), loader(4))
    assert stopping.wait_count == 2
    stopping, watching = AnomalyEarlyStopping(patience=8), Scripted(signal)
    second = quiet_trainer(tmp_path, stopping, watching, ModelCheckpoint(tmp_path / "second"), max_epochs=32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The dirpath has changed")
        second.fit(SmallNet(), loader(4), loader(4), ckpt_path=tmp_path / "last.ckpt")
    assert len(watching.history) == 20


def test_it_is_an_early_stopping_with_plain_state() -> None:
    stopping = AnomalyEarlyStopping(threshold=0.1, patience=7, log_key_prefix="mine")
    assert isinstance(stopping, EarlyStopping)
    assert stopping.monitor == "mine/rise"
    assert stopping.divergence_threshold == 0.1
    assert set(stopping.state_dict()) >= {"wait_count", "stopped_epoch", "best_score", "patience"}


def test_a_plain_early_stopping_on_the_rise_is_usable(tmp_path: Path) -> None:
    """At its default patience it would stop a run in which nothing rises: 0 is no improvement on 0."""
    plain = EarlyStopping("anomaly_filters/rise", divergence_threshold=0.05, patience=10**9)
    _, trainer = run(tmp_path, [0.1] * 12 + [0.3] * 20, plain, patience=20)
    assert validations(trainer) == 12 + HOLD
    plain = EarlyStopping("anomaly_filters/rise", divergence_threshold=0.05, patience=10**9)
    _, trainer = run(tmp_path, [0.0] * 20, plain)
    assert validations(trainer) == 20
    _, trainer = run(tmp_path, [0.0] * 20, EarlyStopping("anomaly_filters/rise"))
    assert validations(trainer) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": -0.1}, r"`threshold` should be a number in \[0, 1\]. Found `threshold = -0.1`"),
        ({"threshold": 5}, r"`threshold` should be a number in \[0, 1\]. Found `threshold = 5`"),
        ({"threshold": "low"}, r"`threshold` should be a number in \[0, 1\]. Found `threshold = 'low'`"),
        ({"threshold": True}, r"`threshold` should be a number in \[0, 1\]. Found `threshold = True`"),
        ({"threshold": float("nan")}, r"`threshold` should be a number in \[0, 1\]. Found `threshold = nan`"),
        ({"patience": 0}, r"`patience` should be an integer of at least 1. Found `patience = 0`"),
        ({"verbose": "no"}, r"`verbose` should be True or False. Found `verbose = 'no'`"),
        ({"log_key_prefix": 3}, r"`log_key_prefix` should be a string of at least one character. Found 3"),
        ({"patience": 6.0}, r"`patience` should be an integer of at least 1. Found `patience = 6.0`"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnomalyEarlyStopping(**options)


def test_without_anybody_who_watches_it_says_so(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, AnomalyEarlyStopping())
    message = "AnomalyEarlyStopping should be used with a TwoSampleCallback or an AnomalyFilterCallback "
    with pytest.raises(ValueError, match=message + r"among the Trainer's callbacks. Found none"):
        trainer.fit(SmallNet(), loader(), loader())
    trainer = quiet_trainer(tmp_path, AnomalyEarlyStopping(log_key_prefix="mine"), watcher())
    with pytest.raises(ValueError, match=message + r"with `log_key_prefix = 'mine'` .* Found \['anomaly_filters'\]"):
        trainer.fit(SmallNet(), loader(), loader())
    trainer.validate(SmallNet(), loader(), verbose=False)  # nothing to stop
    trainer = quiet_trainer(tmp_path, AnomalyEarlyStopping(patience=4), watcher())
    with pytest.raises(ValueError, match=r"`patience` should be an integer of at least 5. Found `patience = 4`"):
        trainer.fit(SmallNet(), loader(), loader())


def test_a_checkpoint_is_tested_in_a_new_process_without_a_word(tmp_path: Path) -> None:
    """Lightning would ask for a callback that is there."""
    keep = ModelCheckpoint(tmp_path)
    quiet_trainer(tmp_path, watcher(), AnomalyEarlyStopping(), keep, max_epochs=1).fit(SmallNet(), loader(), loader())
    trainer = quiet_trainer(tmp_path, watcher(), AnomalyEarlyStopping(), keep)
    trainer.test(SmallNet(), loader(), ckpt_path=keep.best_model_path, verbose=False)


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
@pytest.mark.parametrize("options", [{"limit_val_batches": 0}, {"barebones": True}, {"fast_dev_run": True}], ids=str)
def test_with_nothing_to_read_it_stops_nothing(tmp_path: Path, options: dict[str, Any]) -> None:
    stopping = AnomalyEarlyStopping()
    defaults = {"logger": None, "enable_checkpointing": None, "enable_progress_bar": None, "log_every_n_steps": None}
    barebones = {**defaults, "enable_model_summary": None} if "barebones" in options else {}
    trainer = quiet_trainer(tmp_path, watcher(), stopping, max_epochs=2, **barebones, **options)
    expected = (
        pytest.warns(UserWarning, match="Nothing will be analysed") if "limit_val_batches" in options else nullcontext()
    )
    with expected:
        trainer.fit(SmallNet(), loader(), loader())
    assert trainer.current_epoch == trainer.max_epochs
    assert stopping.stopped_epoch == 0
