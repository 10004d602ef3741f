"""The recipe for LightningCLI: the configuration file and the command line, as a user types them."""

import contextlib
import importlib
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainers import SMALL_RUNS

pytest.importorskip("jsonargparse", reason="LightningCLI is made of it")

RECIPES = Path(__file__).parents[2] / "recipes"

pytestmark = SMALL_RUNS


def scalars(log_dir: Path) -> dict[str, list[float]]:
    events = EventAccumulator(str(log_dir)).Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_the_configuration_file_trains_with_all_three_callbacks(tmp_path: Path) -> None:
    (tmp_path / "recipes").symlink_to(RECIPES)  # the repository's root, but for where the logs go
    command = "python recipes/cli.py fit --config recipes/config.yaml --trainer.max_epochs=6"
    done = subprocess.run(
        [sys.executable, *shlex.split(command)[1:]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    logged = scalars(tmp_path / "logs/cli/version_0")
    assert len(logged["anomaly_filters/count"]) == len(logged["val_loss"]) == 6
    assert logged["anomaly_filters/outlier_samples"][4] == 2  # the two images that are over-exposed
    assert logged["anomaly_prune/masked"][4] == 0 < logged["anomaly_prune/masked"][5]
    assert "before epoch 5:" in said
    assert len(set(logged["two_sample/confidence_error_ratio"])) == 6
    assert "AnomalyEarlyStopping watches 'two_sample/confidence_rise'" in said
    saved = (tmp_path / "logs/cli/version_0/config.yaml").read_text()
    for name in ("AnomalyFilterCallback", "AnomalyPruneCallback", "AnomalyEarlyStopping"):
        assert f"class_path: lightning_anomaly.{name}" in saved


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `recipes/cli.py fit` in this process."""
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # about how Lightning calls it
    monkeypatch.chdir(tmp_path)
    script = importlib.import_module("recipes.cli")

    def run(line: str) -> None:
        monkeypatch.setattr(sys, "argv", ["cli.py", "fit", "--seed_everything=false", *shlex.split(line)])
        with torch.random.fork_rng(devices=[]):
            script.main()

    return run


def test_the_command_line_adds_callbacks(fit: Any, tmp_path: Path) -> None:
    fit(
        "--trainer.max_epochs=2 --trainer.enable_progress_bar=false --trainer.logger=TensorBoardLogger"
        " --trainer.logger.save_dir=logs --data.train_size=64 --data.over_exposed=1"
        " --trainer.callbacks+=lightning_anomaly.AnomalyFilterCallback --trainer.callbacks.probe_size=128"
        " --trainer.callbacks+=lightning_anomaly.AnomalyEarlyStopping --trainer.callbacks.threshold=0.2"
        " --trainer.callbacks+=lightning_anomaly.AnomalyPruneCallback --trainer.callbacks.at_epoch=1"
        " --trainer.callbacks.min_votes=1"
    )
    log_dir = tmp_path / "logs/lightning_logs/version_0"
    logged = scalars(log_dir)
    assert len(logged["anomaly_filters/count"]) == 2
    assert logged["anomaly_prune/masked"][-1] > 0
    saved = (log_dir / "config.yaml").read_text()
    for line in ("probe_size: 128", "threshold: 0.2", "at_epoch: 1", "min_votes: 1"):
        assert line in saved


def test_a_wrong_value_is_refused_with_what_is_allowed(fit: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        fit("--trainer.callbacks+=lightning_anomaly.AnomalyFilterCallback --trainer.callbacks.probe=test")
    said = capsys.readouterr().err
    assert "probe" in said
    assert "'val'" in said
    assert "'train'" in said


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--data.data=nowhere.npz", r"error: Parameter `data` should be the path of an existing .npz file\. Found"),
        (
            "--trainer.max_epochs=1 --trainer.logger=false --trainer.enable_checkpointing=false"
            " --trainer.callbacks+=lightning_anomaly.AnomalyFilterCallback --trainer.callbacks.layers=[features.3]",
            r"error: .* Found \['features.3'\], but its convolutions are \['network.0', 'network.3', 'network.6'\]\.",
        ),
    ],
    ids=["data", "layers"],
)
def test_what_the_command_line_cannot_know_ends_in_one_sentence(fit: Any, line: str, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        fit(line)
