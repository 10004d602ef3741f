"""Both of Lightning's package trees, and LightningCLI."""

import contextlib
import importlib
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from network import images
from small import Small, loader, module, quiet
from trainers import QUIET, plain

from lightning_anomaly import (
    AnalysisSettings,
    AnomalyEarlyStopping,
    AnomalyFilterCallback,
    AnomalyPruneCallback,
    TwoSampleCallback,
)

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint"),
]

CLASS_PATH = "lightning_anomaly.AnomalyFilterCallback"
# A value for each argument, none of them its default.
GIVEN: dict[str, Any] = {
    "layers": ["net.0", "net.2"],
    "probe": "train",
    "probe_size": 77,
    "every_n_validations": 2,
    "log_key_prefix": "mine",
    "signal_layers": ["net.2"],
    "log_figures": False,
    "overlay_tags": ["train_loss", "val_loss"],
    "on_error": "raise",
    "settings": {
        "max_components": 4,
        "rare_fraction": 0.03,
        "rule": "best",
        "n_init": 3,
        "rectify": False,
        "max_map_side": 5,
        "engine": "sklearn",
        "seed": 11,
        "max_memory_mb": 100,
    },
    "browser": True,
}
ALL: dict[str, dict[str, Any]] = {
    "AnomalyFilterCallback": GIVEN,
    "AnomalyPruneCallback": {"at_epoch": [3, 5], "on_rise": 0.2, "min_votes": 1, "max_fraction": 0.3, "seed": 4},
    "AnomalyEarlyStopping": {"threshold": 0.3, "patience": 9, "verbose": False, "confirm": "val/ce"},
    "TwoSampleCallback": {"n": 256, "every_n_validations": 2, "log_figures": False},
}
PAPER = AnalysisSettings.paper().to_dict()


def watcher() -> AnomalyFilterCallback:
    return AnomalyFilterCallback(probe_size=90, log_figures=False)


def fit(tree: str, *callbacks: Any, ckpt_path: str | None = None, **options: Any) -> Any:
    saves = any("ModelCheckpoint" in str(type(callback)) for callback in callbacks)
    trainer = quiet(tree, callbacks=[*callbacks], enable_checkpointing=saves, **options)
    assert isinstance(trainer, importlib.import_module(tree).Trainer)
    trainer.fit(module(tree, lr=0.005), loader(), loader(), ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize(
    ("tree", "other"), [("lightning.pytorch", "pytorch_lightning"), ("pytorch_lightning", "lightning.pytorch")]
)
def test_all_callbacks_fit_log_stop_and_resume_in_both_trees(tree: str, other: str, tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning")
    theirs = importlib.import_module(f"{tree}.callbacks")
    csv = importlib.import_module(f"{tree}.loggers").CSVLogger(tmp_path, name="csv")
    inputs = images(96).tensors[0]

    def all_four() -> list[Any]:
        compared = TwoSampleCallback(inputs[:48], inputs[48:])
        prune = AnomalyPruneCallback(at_epoch=2, min_votes=1, last_reports=1)
        return [AnomalyEarlyStopping(log_key_prefix="anomaly_filters"), prune, compared, watcher()]

    keep = theirs.ModelCheckpoint(tmp_path / "saved", "{epoch}", monitor="anomaly_filters/count", save_top_k=-1)
    whole = all_four()
    trainer = fit(tree, *whole, keep, logger=csv, max_epochs=4, log_every_n_steps=1)
    assert trainer.current_epoch == 4
    assert trainer.callback_metrics["anomaly_filters/count"] == whole[3].report.count > 0
    columns = set((tmp_path / "csv/version_0/metrics.csv").read_text().splitlines()[0].split(","))
    assert {"anomaly_filters/count", "two_sample/count", "anomaly_prune/masked"} <= columns
    assert whole[1].masked
    assert len(whole[2].history) == 4

    second = all_four()  # in the other tree, as a checkpoint is an ordinary one
    resumed = fit(other, *second, ckpt_path=str(tmp_path / "saved/epoch=1.ckpt"), max_epochs=4)
    assert plain(second[3].history) == plain(whole[3].history)
    assert second[1].masked == whole[1].masked
    weights = zip(*(own.lightning_module.state_dict().values() for own in (trainer, resumed)), strict=True)
    assert all(torch.equal(*pair) for pair in weights)

    stopping = theirs.EarlyStopping("anomaly_filters/rise", mode="max", patience=2)
    assert fit(tree, watcher(), stopping, max_epochs=9).current_epoch == 3


class Data(LightningDataModule):
    def train_dataloader(self) -> Any:
        return loader()

    def val_dataloader(self) -> Any:
        return loader()


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs a LightningCLI over the small module; its trainer, or what it printed and ended with."""
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI

    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # about how Lightning calls it

    def run(*arguments: object) -> Any:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["cli.py", *map(str, arguments)])
        with torch.random.fork_rng(devices=[]), contextlib.suppress(SystemExit):
            return LightningCLI(Small, Data, save_config_callback=None, run="fit" in arguments).trainer
        return capsys.readouterr().out

    return run


TRAINER = [
    "--seed_everything=false",
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.max_epochs=1",
    "--trainer.logger=false",
    "--trainer.enable_checkpointing=false",
    "--trainer.enable_progress_bar=false",
]


def given(trainer: Any) -> dict[str, Any]:
    """What a callback that the command line made has."""
    (ours,) = (callback for callback in trainer.callbacks if isinstance(callback, AnomalyFilterCallback))
    assert len(ours.history) == trainer.current_epoch
    return {**{name: getattr(ours, name) for name in GIVEN}, "settings": ours.settings.to_dict()}


def test_cli_makes_all_callbacks_from_yaml_and_back(cli: Callable[..., Any], tmp_path: Path) -> None:
    parameters, defaults = inspect.signature(AnomalyFilterCallback).parameters, AnalysisSettings().to_dict()
    assert list(parameters) == list(GIVEN)
    assert all(GIVEN[name] != parameter.default for name, parameter in parameters.items())
    assert list(defaults) == list(GIVEN["settings"])
    assert all(GIVEN["settings"][name] != default for name, default in defaults.items())

    config = tmp_path / "config.yaml"
    callbacks = [{"class_path": f"lightning_anomaly.{name}", "init_args": values} for name, values in ALL.items()]
    config.write_text(json.dumps({"trainer": {"callbacks": callbacks}}))
    assert given(cli("--config", config, *TRAINER)) == GIVEN
    config.write_text(printed := cli("--config", config, *TRAINER, "--print_config"))
    assert given(cli("--config", config)) == GIVEN
    assert cli("--config", config, "--print_config") == printed
    for name, values in list(ALL.items())[1:]:
        for argument, value in values.items():
            first = value[0] if isinstance(value, list) else value
            written = value if isinstance(value, str) else json.dumps(value)
            assert f"{argument}: {written}" in printed or f"- {first}" in printed, (name, argument)


def test_cli_fits_by_the_papers_reading_and_by_flags(cli: Callable[..., Any]) -> None:
    paper = "--trainer.callbacks.settings=lightning_anomaly.AnalysisSettings.paper"
    assert given(cli(*TRAINER, f"--trainer.callbacks={CLASS_PATH}", paper))["settings"] == PAPER
    flags = ["--trainer.callbacks.probe=train", "--trainer.callbacks.settings.engine=torch"]
    trainer = cli("fit", *TRAINER, f"--trainer.callbacks={CLASS_PATH}", "--trainer.callbacks.probe_size=77", *flags)
    assert trainer.current_epoch == 1
    assert (given(trainer)["probe"], given(trainer)["settings"]["engine"]) == ("train", "torch")


def test_cli_takes_data_sets_by_their_class(cli: Callable[..., Any], tmp_path: Path) -> None:
    transform = {"class_path": "torchvision.transforms.ToTensor"}
    images = {"class_path": "torchvision.datasets.FakeData", "init_args": {"size": 300, "transform": transform}}
    callback = {"class_path": "lightning_anomaly.TwoSampleCallback", "init_args": {"train_inputs": images}}
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"trainer": {"callbacks": [callback]}}))
    trainer = cli("--config", config, *TRAINER)
    (made,) = (own for own in trainer.callbacks if isinstance(own, TwoSampleCallback))
    assert (len(made.train_inputs), made.train_inputs[0][0].shape) == (300, (3, 224, 224))
    assert made.val_inputs is None


def test_cli_help(cli: Callable[..., Any]) -> None:
    for name, values in ALL.items():
        words = " ".join(cli("fit", f"--trainer.callbacks.help=lightning_anomaly.{name}").split())
        assert all(f".{argument} " in words for argument in values), name
        if name == "AnomalyFilterCallback":
            assert "Number of probe samples, over all processes; at least" in words
            assert "{val,train}" in words
            assert "(type: bool, default: True)" in words
    words = " ".join(cli("fit", f"--trainer.callbacks.help={CLASS_PATH}", "--trainer.callbacks.settings.help").split())
    assert all(f".{name} " in words for name in GIVEN["settings"])
