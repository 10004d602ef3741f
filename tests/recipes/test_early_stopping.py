"""The recipe that stops, on real data: overfitting, health and a failing camera."""

import pytest
from trainers import SMALL_RUNS

from recipes import early_stopping

pytestmark = SMALL_RUNS


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[early_stopping.Outcome]:
    folder = str(tmp_path_factory.mktemp("logs"))
    return early_stopping.run(early_stopping.parse(["--epochs", "32", "--healthy-size", "600", "--log-dir", folder]))


def test_a_real_training_that_overfits_is_stopped_near_its_best_loss(outcomes) -> None:
    overfitting = outcomes[0]
    assert 10 < len(overfitting.losses) < 32
    assert overfitting.losses[-1] < 1.2 * min(overfitting.losses)
    assert overfitting.values[-1] > 1.1 * overfitting.values[0]
    assert overfitting.reason is not None
    assert overfitting.reason.startswith("The network knows its training images: relative to them it expects ")
    assert overfitting.reason in str(overfitting)


def test_a_real_healthy_training_is_not_stopped(outcomes) -> None:
    healthy = outcomes[1]
    assert len(healthy.losses) == 32
    assert healthy.losses[-1] < 1.5 * min(healthy.losses)
    assert healthy.reason is None
    assert "Not stopped." in str(healthy)


def test_a_real_rise_of_anomaly_filters_stops_the_training_within_patience(outcomes) -> None:
    failing = outcomes[2]
    assert failing.losses[:10] == outcomes[0].losses[:10]
    assert len(failing.losses) == 10 + 6
    assert failing.reason is not None
    assert failing.reason.startswith("Anomaly filters have risen: for 6 validations")
    assert failing.reason in str(failing)
