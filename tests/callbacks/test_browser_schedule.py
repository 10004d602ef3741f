"""The filter browser of a training: when it is written, where, and what is in it."""

import base64
import io
import json
import re
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from PIL import Image
from trainers import QUIET, SmallNet, loader, quiet_trainer, watcher

from lightning_anomaly.callbacks._loggers import log_page
from lightning_anomaly.report.pictures import probe_images

pytestmark = QUIET


def index_of(page: str) -> dict[str, Any]:
    found = re.search(r'id="index">([^<]*)<', page)
    assert found is not None
    return json.loads(zlib.decompress(base64.b64decode(found[1])))


def sprite_of(page: str) -> Image.Image:
    found = re.search(r'id="sprite">([^<]*)<', page)
    assert found is not None
    return Image.open(io.BytesIO(base64.b64decode(found[1])))


def test_it_lies_beside_the_files_of_each_logger_unless_it_is_off(tmp_path: Path) -> None:
    loggers = [TensorBoardLogger(tmp_path / "a"), CSVLogger(tmp_path / "b")]
    probe = loader(seed=1)
    probe.dataset.tensors[0][7] *= 20
    off, ours = watcher(log_key_prefix="off"), watcher(browser=True)
    quiet_trainer(tmp_path, off, ours, logger=loggers, max_epochs=3).fit(SmallNet(), loader(), probe)
    files = {Path(logger.log_dir) / "anomaly_filters" / "browser.html" for logger in loggers}
    assert set(tmp_path.rglob("*.html")) == files
    for file in files:
        index = index_of(file.read_text())
        assert index["votes"] == ours.report.outlier_samples
        assert index["title"] == "Anomaly filters, step 8"
        assert index["images"] == {"height": 8, "width": 8, "columns": 8}
        assert index["layers"][0]["maps"]["kept"] == 60
        sheet = torch.from_numpy(np.array(sprite_of(file.read_text()))).reshape(-1, 8, 8, 8, 1)
        assert torch.equal(sheet.transpose(1, 2).flatten(0, 1)[:60], probe_images(probe.dataset.tensors[0]))
        assert index["history"]["epochs"] == [0, 1, 2]
        assert index["history"]["counts"] == [entry["metrics"]["count"] for entry in ours.history]
        losses = index["history"]["losses"]
        assert set(losses) == {"train_loss", "val_loss"}
        assert all(value is not None for values in losses.values() for value in values)
    assert all("losses" not in entry for entry in off.history)


class Notes(Logger):
    """Notes the step of each page in the title."""

    name, version = "notes", "0"

    def __init__(self) -> None:
        super().__init__()
        self.titles: list[str] = []

    @property
    def experiment(self) -> Any:
        titles = self.titles

        class Experiment:
            def log_asset_data(self, data: str, name: str, overwrite: bool, step: int) -> None:
                assert (name, overwrite) == ("anomaly_filters/browser.html", True)
                assert index_of(data)["title"] == f"Anomaly filters, step {step}"
                titles.append(index_of(data)["title"].rpartition(" ")[2])

        return Experiment()

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        pass

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass


def test_a_resumed_fit_goes_on_with_the_steps_of_the_whole_one(tmp_path: Path) -> None:
    def fit(epochs: int, ckpt_path: Any = None) -> list[str]:
        logger = Notes()
        trainer = quiet_trainer(tmp_path, watcher(browser=True), logger=logger, max_epochs=epochs)
        trainer.fit(SmallNet(), loader(), loader(seed=1), ckpt_path=ckpt_path)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return logger.titles

    assert fit(3) == ["2", "5", "8"]  # the 1st, the 2nd and the last of three
    assert fit(9, tmp_path / "last.ckpt") == ["11", "23", "26"]  # the 4th, the 8th and the last of nine


MEAN, BOTH = ({"on_step": step, "on_epoch": True} for step in (False, True))


@pytest.mark.parametrize(
    ("logged", "options", "expected"),
    [
        (BOTH, {}, {"train_loss_epoch": [1, 11, 21, 31]}),
        (
            MEAN,
            {"val_check_interval": 1},
            {"train_loss": [*[None, None, 1], *[None, None, 11], *[None, None, 21], *[None, None, 31]]},
        ),
    ],
    ids=["both", "mean, every batch"],
)
def test_the_losses_are_those_of_their_epochs(logged: Any, options: Any, expected: Any, tmp_path: Path) -> None:
    class Losses(SmallNet):
        """Losses that tell the epoch and the batch."""

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("train_loss", 10.0 * self.current_epoch + batch_idx, **logged)
            return self.loss(batch)

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self(batch[0])
            self.log("val_loss", 100.0 + self.current_epoch)

    ours = watcher(browser=True)
    trainer = quiet_trainer(tmp_path, ours, logger=CSVLogger(tmp_path), max_epochs=4, **options)
    trainer.fit(Losses(), loader(), loader(seed=1))
    found = [entry["losses"] for entry in ours.history]
    assert [losses.pop("val_loss") for losses in found] == [100.0 + entry["epoch"] for entry in ours.history]
    assert {name for losses in found for name in losses} == set(expected)
    assert {name: [losses.get(name) for losses in found] for name in expected} == expected


@pytest.mark.parametrize("part", ["_probe.take_pictures", "_figures.page_text"])
def test_a_browser_that_fails_costs_no_analysis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise ValueError("no page today")

    monkeypatch.setattr(f"lightning_anomaly.callbacks.{part}", fail)
    ours = watcher(browser=True)
    with pytest.warns(UserWarning, match="could not .*ValueError: no page today"):
        quiet_trainer(tmp_path, ours, logger=CSVLogger(tmp_path)).fit(SmallNet(), loader(), loader(seed=1))
    assert [entry["analysed"] for entry in ours.history] == [True, True]


class TestLogPage:
    def test_wandb_gets_html_without_anything_from_the_network(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Html:
            def __init__(self, data: Any, inject: bool = True) -> None:
                self.page, self.inject = data.read(), inject

        class Wandb(Notes):
            def log_image(self) -> None: ...

            def log_metrics(self, metrics: Any, step: Any = None) -> None:
                self.got = metrics, step

        monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Html=Html))
        logger = Wandb()
        assert log_page(logger, "anomaly_filters/browser", "<p>", 7)
        ((name, html),) = logger.got[0].items()
        assert (name, html.page, html.inject, logger.got[1]) == ("anomaly_filters/browser", "<p>", False, 7)

    def test_mlflow_gets_an_artifact(self) -> None:
        calls: list[Any] = []

        class Client:
            def log_text(self, run_id: str, text: str, artifact_file: str) -> None:
                calls.append((run_id, text, artifact_file))

        class Mlflow(Notes):
            run_id = property(lambda self: "run 1")
            experiment = property(lambda self: Client())

        assert log_page(Mlflow(), "anomaly_filters/browser", "<p>", 7)
        assert calls == [("run 1", "<p>", "anomaly_filters/browser.html")]

    def test_others_are_left_alone(self) -> None:
        class Plain(Notes):
            experiment = property(lambda self: object())

        assert not log_page(Plain(), "anomaly_filters/browser", "<p>", 7)
