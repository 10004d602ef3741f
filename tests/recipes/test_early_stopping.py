"""The recipes that prune and stop, small, on real data: overfitting, health and a failing camera."""

import sys
from pathlib import Path

import pytest
import torch
from trainers import QUIET

from recipes import compact, early_stopping, prune
from recipes.common.options import one_sentence_errors

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the logging"),
]
SMALL = ["--val-size", "200", "--batch-size", "20"]


def test_pruning_is_compared_with_its_controls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--epochs", "4", "--at-epoch", "3", "--train-size", "60", "--seeds", "1", "--damaged", "2", *SMALL]
    outcomes = prune.run(prune.parse([*arguments, "--log-dir", str(tmp_path)]))
    assert list(outcomes) == ["nothing", "anomaly", "random", "l1"]
    masked = {arm: run.masked for arm, (run,) in outcomes.items()}
    assert masked["nothing"] == 0
    assert masked["anomaly"] == masked["random"] == masked["l1"] > 10
    shares = {run.share for arm, (run,) in outcomes.items() if arm != "nothing"}
    assert len(shares) == 1
    assert len({run.loss for (run,) in outcomes.values()}) == 4
    assert all(0.1 < run.accuracy <= 1 for (run,) in outcomes.values())
    said = capsys.readouterr().out
    assert "simple_cnn on 60 images of digits, 4 epochs, masked before epoch 3, 2 validation images damaged" in said
    assert "Of 1 seeds, masking anomaly filters ends with a smaller test loss than masking nothing in" in said


def test_pruning_says_when_there_is_nothing_to_compare() -> None:
    runs = {arm: [prune.Outcome(0, 0.0, 1.0, 0.5)] for arm in prune.ARMS}
    assert prune.verdict(runs) == "No anomaly filter had the votes to be masked, so there is nothing to compare."
    assert "1.000 +- 0.000" in prune.table(runs)


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


@pytest.mark.parametrize("recipe", [prune, early_stopping], ids=["prune", "early_stopping"])
def test_the_options_are_those_of_all_recipes(recipe) -> None:
    options = recipe.parse(["--data", "cifar10", "--data-root", "here", "--download", "--network", "lenet5"])
    assert (options.data, options.data_root, options.download, options.network) == ("cifar10", "here", True, "lenet5")


def test_a_missing_extra_ends_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    threads = torch.get_num_threads()
    try:
        with pytest.raises(
            SystemExit, match=r"^error: `compact` needs Torch-Pruning, so install it: `pip install torch-"
        ):
            one_sentence_errors(compact.run, lambda: compact.parse(["--networks", "lenet5", "--side", "32"]))
    finally:
        torch.set_num_threads(threads)
