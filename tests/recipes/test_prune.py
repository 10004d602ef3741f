"""The recipe that prunes, small, on real data."""

from pathlib import Path

import pytest
from trainers import SMALL_RUNS

from recipes import prune

pytestmark = SMALL_RUNS
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


@pytest.mark.parametrize("at_epoch", ["1", "4"])
def test_an_epoch_at_which_nothing_would_be_masked_is_refused(at_epoch: str) -> None:
    message = rf"`--at-epoch` should be at least 2 and below `--epochs 4`. Found {at_epoch}"
    with pytest.raises(ValueError, match=message):
        prune.run(prune.parse(["--epochs", "4", "--at-epoch", at_epoch]))


def test_pruning_says_when_there_is_nothing_to_compare() -> None:
    runs = {arm: [prune.Outcome(0, 0.0, 1.0, 0.5)] for arm in prune.ARMS}
    assert prune.verdict(runs) == "No anomaly filter had the votes to be masked, so there is nothing to compare."
    assert "1.000 +- 0.000" in prune.table(runs)
