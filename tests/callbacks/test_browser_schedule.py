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
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from trainers import QUIET, SmallNet, loader, quiet_trainer, watcher

from lightning_anomaly.callbacks._loggers import log_page
from lightning_anomaly.callbacks._probe import small_images
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


@pytest.mark.parametrize("make", [TensorBoardLogger, CSVLogger])
def test_it_lies_beside_the_files_of_the_logger(make: Any, tmp_path: Path) -> None:
    logger = make(tmp_path)
    probe = loader(seed=1)
    probe.dataset.tensors[0][7] *= 20
    ours = watcher(browser=True)
    quiet_trainer(tmp_path, ours, logger=logger, max_epochs=3).fit(SmallNet(), loader(), probe)
    (file,) = tmp_path.rglob("*.html")
    assert file == Path(logger.log_dir) / "anomaly_filters" / "browser.html"
    index = index_of(file.read_text())
    assert index["votes"] == ours.report.outlier_samples
    assert index["title"] == "Anomaly filters, step 8"
    assert index["images"] == {"height": 8, "width": 8, "columns": 8}
    assert index["layers"][0]["maps"]["kept"] == 60
    assert index["history"]["epochs"] == [0, 1, 2]
    assert index["history"]["counts"] == [entry["metrics"]["count"] for entry in ours.history]
    losses = index["history"]["losses"]
    assert set(losses) == {"train_loss", "val_loss"}
    assert all(value is not None for values in losses.values() for value in values)


class Other(SmallNet):
    """The same for signals or volumes."""

    def __init__(self, conv: type[nn.Module]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv1, self.conv2 = conv(1, 4, 3), conv(4, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv2(self.conv1(x).relu()).relu().flatten(2).mean(2))


@pytest.mark.parametrize(
    ("conv", "shape"), [(nn.Conv1d, (1, 200)), (nn.Conv3d, (1, 5, 9, 12))], ids=["signals", "volumes"]
)
def test_signals_and_volumes_are_seen_too(conv: type[nn.Module], shape: tuple[int, ...], tmp_path: Path) -> None:
    inputs = torch.randn(60, *shape, generator=torch.Generator().manual_seed(0)).cumsum(-1)
    inputs[7] *= 20
    probe = DataLoader(TensorDataset(inputs, torch.arange(60) % 3), batch_size=20)
    logger = CSVLogger(tmp_path)
    quiet_trainer(tmp_path, watcher(browser=True, log_figures=True), logger=logger, max_epochs=1).fit(
        Other(conv), probe, probe
    )
    folder = Path(logger.log_dir) / "anomaly_filters"
    assert [file.name for file in folder.glob("outliers/*.png")] == ["step=000002.png"]
    page = (folder / "browser.html").read_text()
    expected = probe_images(inputs)
    count, height, width, channels = expected.shape
    told = index_of(page)
    assert {key: told["images"][key] for key in ("height", "width")} == {"height": height, "width": width}
    assert told["layers"][0]["maps"]["kept"] == count
    sheet = torch.from_numpy(np.array(sprite_of(page))).reshape(-1, height, told["images"]["columns"], width, channels)
    assert torch.equal(sheet.transpose(1, 2).flatten(0, 1)[:count], expected)


def test_long_signals_are_kept_as_what_their_picture_shows() -> None:
    signals = torch.randn(4, 5, 100_000, generator=torch.Generator().manual_seed(0)).cumsum(2)
    signals[1, 0, 500] = torch.nan
    signals[2] = torch.inf
    kept = small_images((signals, torch.zeros(4)))
    assert kept.shape == (4, 3, 128)
    assert torch.equal(kept[0].amax(1), signals[0, :3].amax(1))
    assert torch.equal(kept[0].amin(1), signals[0, :3].amin(1))
    assert kept[1].isfinite().all()
    assert torch.equal(probe_images(kept), probe_images(signals))


def test_what_cannot_be_drawn_is_left_out() -> None:
    assert small_images(torch.zeros(4)) is None
    assert small_images(torch.zeros(4, 0)) is None
    assert small_images({"ids": torch.zeros(4, dtype=torch.int64)}) is None
    assert small_images(torch.zeros(4, 3).to_sparse()) is None


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


def test_it_is_off_unless_asked_for(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    ours = watcher()
    quiet_trainer(tmp_path, ours, logger=logger).fit(SmallNet(), loader(), loader(seed=1))
    assert not list(tmp_path.rglob("*.html"))
    assert all("losses" not in entry for entry in ours.history)


STEP, MEAN, BOTH = ({"on_step": step, "on_epoch": mean} for step, mean in [(True, False), (False, True), (True, True)])


@pytest.mark.parametrize(
    ("logged", "options", "expected"),
    [
        (STEP, {}, {"train_loss": [2, 12, 22, 32]}),
        (BOTH, {}, {"train_loss_epoch": [1, 11, 21, 31]}),
        (
            MEAN,
            {"val_check_interval": 1},
            {"train_loss": [*[None, None, 1], *[None, None, 11], *[None, None, 21], *[None, None, 31]]},
        ),
    ],
    ids=["step", "both", "mean, every batch"],
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


def test_a_failing_browser_is_a_warning_and_the_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> str:
        raise ValueError("no page today")

    monkeypatch.setattr("lightning_anomaly.callbacks._figures.page_text", fail)
    ours = watcher(browser=True)
    with pytest.warns(UserWarning, match=r"could not run .* \(ValueError: no page today\)"):
        quiet_trainer(tmp_path, ours, logger=CSVLogger(tmp_path)).fit(SmallNet(), loader(), loader(seed=1))
    assert len(ours.history) == 2


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
