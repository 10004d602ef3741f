"""The recipe that stops, small, on real data: overfitting, health and a failing camera."""

import pytest
from trainers import SMALL_RUNS

from recipes import early_stopping

pytestmark = SMALL_RUNS
SMALL = ["--val-size", "200", "--batch-size", "20"]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[early_stopping.Outcome]:
    folder = str(tmp_path_factory.mktemp("logs"))
    arguments = ["--epochs", "24", "--train-size", "80", "--healthy-size", "400", "--lr", "0.003", *SMALL]
    return early_stopping.run(early_stopping.parse([*arguments, "--log-dir", folder]))


def test_a_real_run_overfits_while_the_signal_falls_and_is_not_stopped(outcomes) -> None:
    overfitting = outcomes[0]
    best = min(overfitting.losses)
    assert overfitting.losses[-1] > 1.5 * best
    assert overfitting.losses.index(best) < 14
    assert max(overfitting.fractions[12:]) <= max(overfitting.fractions[:4]) + 0.05
    assert overfitting.reason is None
    assert len(overfitting.losses) == 24
    assert "The validation loss rose without it: here the anomaly fraction is no sign of overfitting." in str(
        overfitting
    )


def test_a_real_healthy_run_is_not_stopped(outcomes) -> None:
    healthy = outcomes[1]
    assert healthy.losses[-1] < 1.1 * min(healthy.losses) + 0.05
    assert healthy.reason is None
    assert len(healthy.losses) == 24
    assert "Not stopped" in str(healthy)
    assert "no sign of overfitting" not in str(healthy)


def test_a_real_rise_stops_the_run_within_patience(outcomes) -> None:
    failing = outcomes[2]
    assert failing.fractions[:10] == outcomes[0].fractions[:10]
    assert len(failing.losses) == 10 + 6
    assert failing.reason is not None
    assert failing.reason.startswith("Anomaly filters have risen: for 6 validations")
    assert failing.reason in str(failing)
