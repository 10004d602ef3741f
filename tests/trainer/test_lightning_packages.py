"""Both of Lightning's package trees, and LightningCLI."""

import contextlib
import importlib
import inspect
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import NEEDS_FORK
from functional import same
from lightning.pytorch import LightningDataModule
from trainers import SmallNet, damaged, images, loader, plain, quiet_trainer, resumable

from lightning_anomaly import (
    AnalysisSettings,
    AnomalyEarlyStopping,
    AnomalyFilterCallback,
    AnomalyPruneCallback,
    MemorizationCallback,
)

CLASS_PATH = "lightning_anomaly.AnomalyFilterCallback"
# A value for each argument, none of them its default.
GIVEN: dict[str, Any] = {
    "layers": ["conv1", "conv2"],
    "probe_size": 77,
    "every_n_validations": 2,
    "log_key_prefix": "mine",
    "log_figures": False,
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
    "on_error": "raise",
}
ALL: dict[str, dict[str, Any]] = {
    "AnomalyFilterCallback": GIVEN,
    "AnomalyPruneCallback": {"at_epoch": 3, "min_votes": 1, "max_fraction": 0.3, "on_error": "raise"},
    "AnomalyEarlyStopping": {"threshold": 0.3, "patience": 9, "verbose": False, "on_error": "raise"},
    "MemorizationEarlyStopping": {"threshold": 0.3, "verbose": False, "confirm": "val/ce", "on_error": "raise"},
    "MemorizationCallback": {"sample_size": 256, "every_n_validations": 2, "logits_from": "head", "on_error": "raise"},
}


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # to that of the second ModelCheckpoint
def test_all_callbacks_fit_log_stop_and_resume_in_the_other_tree(tmp_path: Path) -> None:
    """Checkpoints of one tree are ordinary ones for the other; callbacks are pickled, as for spawned processes."""
    pytest.importorskip("pytorch_lightning")
    inputs, data = images(96), loader(96, batch_size=16, make=damaged)

    def fit(tree: str, name: str, ckpt_path: Path | None = None) -> tuple[Any, list[Any]]:
        compared = MemorizationCallback(inputs[:48], inputs[48:])
        prune = AnomalyPruneCallback(at_epoch=2, min_votes=1, last_reports=1)
        watcher = AnomalyFilterCallback(probe_size=90, log_figures=False)
        ours = pickle.loads(pickle.dumps([AnomalyEarlyStopping(), prune, compared, watcher]))
        theirs, loggers = (importlib.import_module(f"{tree}.{part}") for part in ("callbacks", "loggers"))
        keep = theirs.ModelCheckpoint(tmp_path / name, "{epoch}", monitor="anomaly_filters/count", save_top_k=-1)
        logger = loggers.CSVLogger(tmp_path, name="csv", version=name)
        options = {"logger": logger, "enable_checkpointing": True, "max_epochs": 4, "num_sanity_val_steps": 0}
        trainer = quiet_trainer(tmp_path, *ours, keep, tree=tree, **options)
        trainer.fit(resumable(tree, lr=0.005), data, data, ckpt_path=ckpt_path)
        assert trainer.current_epoch == 4
        assert trainer.callback_metrics["anomaly_filters/count"] == ours[3].report.count > 0
        columns = set((tmp_path / "csv" / name / "metrics.csv").read_text().splitlines()[0].split(","))
        assert {"anomaly_filters/count", "memorization/auc", "anomaly_prune/masked"} <= columns
        assert len(ours[2].history) == 4
        return trainer, ours

    trainer, whole = fit("lightning.pytorch", "whole")
    resumed, second = fit("pytorch_lightning", "resumed", tmp_path / "whole" / "epoch=1.ckpt")
    assert plain(second[3].history) == plain(whole[3].history)
    assert second[1].masked == whole[1].masked != {}
    assert same(*(fitted.lightning_module.state_dict() for fitted in (trainer, resumed)))

    stopping = importlib.import_module("pytorch_lightning.callbacks").EarlyStopping
    callbacks = [AnomalyFilterCallback(probe_size=90), stopping("anomaly_filters/rise", mode="max", patience=2)]
    stopped = quiet_trainer(tmp_path, *callbacks, tree="pytorch_lightning", max_epochs=9)
    stopped.fit(resumable("pytorch_lightning", lr=0.005), data, data)
    assert stopped.current_epoch == 3


# Both trees import what is imported first here, which takes longer than they themselves.
IMPORTS = """
import importlib, os, sys
import torchmetrics, torchvision
for names in sys.argv[1:]:
    if os.fork() == 0:
        for name in names.split("+"):
            importlib.import_module(name)
        import lightning_utilities.core.rank_zero as shared
        print(names, shared.log.name, shared.rank_zero_deprecation_category.__module__, flush=True)
        os._exit(0)
    os.wait()
"""


@NEEDS_FORK
def test_an_import_does_not_change_the_logger_of_either_tree() -> None:
    """Both trees log through one module, which belongs to the tree that was imported last."""
    pytest.importorskip("pytorch_lightning")
    ours, first, second = "lightning_anomaly.callbacks", "lightning.pytorch", "pytorch_lightning"
    orders = [f"{ours}+{first}", f"{ours}+{second}", f"{second}+{ours}"]
    code = [sys.executable, "-c", IMPORTS, *orders]
    found = subprocess.run(code, check=True, capture_output=True, text=True).stdout.splitlines()
    users = [(first, "lightning.fabric"), (second, "lightning_fabric"), (second, "lightning_fabric")]
    assert found == [
        " ".join([order, *(f"{tree}.utilities.rank_zero" for tree in trees)])
        for order, trees in zip(orders, users, strict=True)
    ]


class Data(LightningDataModule):
    def train_dataloader(self) -> Any:
        return loader(96)

    def val_dataloader(self) -> Any:
        return loader(96)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run a LightningCLI of the small module; return its Trainer, or its output if it exits."""
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI

    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # about how Lightning calls it

    def run(*arguments: object) -> Any:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["cli.py", *map(str, arguments)])
        with torch.random.fork_rng(devices=[]), contextlib.suppress(SystemExit):
            return LightningCLI(SmallNet, Data, save_config_callback=None, run="fit" in arguments).trainer
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
    (ours,) = (callback for callback in trainer.callbacks if isinstance(callback, AnomalyFilterCallback))
    assert len(ours.history) == trainer.current_epoch
    return {**{name: getattr(ours, name) for name in GIVEN}, "settings": asdict(ours.settings)}


def test_cli_makes_all_callbacks_from_yaml_and_writes_them_back(cli: Callable[..., Any], tmp_path: Path) -> None:
    parameters, defaults = inspect.signature(AnomalyFilterCallback).parameters, asdict(AnalysisSettings())
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


def test_cli_takes_flags_and_data_sets(cli: Callable[..., Any]) -> None:
    ours = f"--trainer.callbacks={CLASS_PATH}"
    flags = [f"--trainer.callbacks.{flag}" for flag in ("probe_size=77", "settings.engine=sklearn")]
    trainer = cli("fit", *TRAINER, ours, *flags)
    assert trainer.current_epoch == 1
    assert (given(trainer)["probe_size"], given(trainer)["settings"]["engine"]) == (77, "sklearn")
    compared, data = "lightning_anomaly.MemorizationCallback", "torchvision.datasets.FakeData"
    flags = [f"--trainer.callbacks.train_inputs={data}", "--trainer.callbacks.train_inputs.size=300"]
    trainer = cli(*TRAINER, f"--trainer.callbacks={compared}", *flags)
    (callback,) = (callback for callback in trainer.callbacks if isinstance(callback, MemorizationCallback))
    assert (len(callback.train_inputs), callback.val_inputs) == (300, None)


def test_cli_help_lists_all_arguments(cli: Callable[..., Any]) -> None:
    for name, values in ALL.items():
        words = " ".join(cli("fit", f"--trainer.callbacks.help=lightning_anomaly.{name}").split())
        assert all(f".{argument} " in words for argument in values), name


def test_cli_takes_paper_settings_and_explains_settings(cli: Callable[..., Any]) -> None:
    pytest.importorskip("jsonargparse", minversion="4.42")
    paper = "--trainer.callbacks.settings=lightning_anomaly.AnalysisSettings.paper"
    trainer = cli(*TRAINER, f"--trainer.callbacks={CLASS_PATH}", paper)
    assert given(trainer)["settings"] == asdict(AnalysisSettings.paper())
    words = " ".join(cli("fit", f"--trainer.callbacks.help={CLASS_PATH}", "--trainer.callbacks.settings.help").split())
    assert all(f".{name} " in words for name in GIVEN["settings"])
