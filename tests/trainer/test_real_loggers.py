"""Figures of a fit with real loggers, read back from their files, without a network connection.

The extra `loggers` has them, which `.ci/run` installs; without it the tests are skipped. tests/callbacks tests
TensorBoard and CSVLogger.
"""

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CometLogger, MLFlowLogger, WandbLogger
from PIL import Image
from trainers import SmallNet, loader, quiet_trainer, watcher

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),  # MLflow to SQLAlchemy
]

SHOWN = [2, 5, 11]  # the steps of the 1st, 2nd and 4th validation, at which figures are due

Figures = dict[str, list[int]]  # the steps at which a logger has a figure, by its name


def wandb(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Callable[[], Figures]]:
    module = pytest.importorskip("wandb", reason="W&B is not installed: the extra `loggers` brings it")
    for name, value in (("MODE", "offline"), ("SILENT", "true"), ("ERROR_REPORTING", "false")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    logger = WandbLogger(save_dir=folder, project="test", offline=True)

    def read() -> Figures:
        media = Path(logger.experiment.dir) / "media" / "images"
        orders: Figures = {}
        for file in sorted(media.rglob("*.png")):
            name, order = re.fullmatch(r"(.*)_(\d+)_\w+\.png", file.relative_to(media).as_posix()).groups()
            orders.setdefault(name, []).append(int(order))
            check(file)
        logger.experiment.finish()
        module.teardown()
        # W&B numbers files by its own step, so that only their order identifies them.
        assert {name: len(set(steps)) for name, steps in orders.items()} == dict.fromkeys(orders, len(SHOWN))
        return dict.fromkeys(orders, SHOWN)

    return logger, read


def mlflow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Callable[[], Figures]]:
    pytest.importorskip("mlflow", reason="MLflow is not installed: the extra `loggers` brings it")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    # New versions refuse to store runs in files.
    uri = f"sqlite:///{folder / 'runs.db'}"
    logger = MLFlowLogger("test", tracking_uri=uri, artifact_location=(folder / "artifacts").as_uri())

    def read() -> Figures:
        artifacts = folder / "artifacts" / logger.run_id / "artifacts"
        found: Figures = {}
        for file in sorted(artifacts.rglob("*.png")):
            check(file)
            name = file.parent.relative_to(artifacts).as_posix()
            found.setdefault(name, []).append(int(file.stem.removeprefix("step=")))
        return found

    return logger, read


def comet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Callable[[], Figures]]:
    pytest.importorskip("comet_ml", reason="Comet is not installed: the extra `loggers` brings it")
    # Lightning's `online=False` disables the experiment altogether, so that nothing would be written.
    for name, value in (("START_ONLINE", "0"), ("DISABLE_AUTO_LOGGING", "1"), ("ERROR_TRACKING_ENABLE", "0")):
        monkeypatch.setenv(f"COMET_{name}", value)
    environment = dict.fromkeys(("log_code", "log_env_details", "log_git_metadata", "log_git_patch"), False)
    logger = CometLogger(project="test", offline_directory=str(folder), auto_output_logging=False, **environment)

    def read() -> Figures:
        logger.experiment.end()
        (archive,) = folder.glob("*.zip")
        found: Figures = {}
        with zipfile.ZipFile(archive) as file:
            for line in file.read("messages.json").splitlines():
                content = json.loads(line)["payload"]
                if content.get("upload_type") == "visualization":
                    about = content["additional_params"]
                    found.setdefault(about["figName"], []).append(about["step"])
                    assert len(file.read(content["file_path"])) > 5000  # vector graphics
        return found

    return logger, read


def check(file: Path) -> None:
    with Image.open(file) as image:
        assert image.width > 400
        image.load()


@pytest.mark.parametrize("make", [wandb, mlflow, comet], ids=lambda make: make.__name__)
def test_a_logger_has_the_figures_of_a_fit(
    make: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # some loggers write to the current folder
    logger, read = make(tmp_path, monkeypatch)
    probe = loader(seed=1)
    probe.dataset.tensors[0][7] *= 20  # an outlier
    ours = watcher(log_figures=True)
    quiet_trainer(tmp_path, ours, logger=logger, max_epochs=4).fit(SmallNet(), loader(), probe)
    assert ours.report.votes[7] > 0
    names = {f"anomaly_filters/{name}" for name in ("curves", "filters", "outliers", "verdicts")}
    assert {name: sorted({*steps}) for name, steps in read().items()} == dict.fromkeys(names, SHOWN)
