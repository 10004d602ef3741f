"""Figures, charts and pages: TensorBoard's and CSV files are read back; W&B, MLflow and Comet are doubles here."""

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
from lightning.pytorch.loggers.logger import DummyLogger
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from trainers import QUIET, SmallNet, loader, quiet_trainer, said, watcher

from lightning_anomaly.callbacks._loggers import log_figure, log_overlay_layout, log_page, loss_tags
from lightning_anomaly.report.pictures import probe_images

pytestmark = QUIET


@pytest.fixture
def figure() -> Figure:
    figure = Figure(figsize=(2, 1), dpi=50, facecolor="red")
    figure.add_subplot().plot([0, 1])
    return figure


class Double(Logger):
    """A logger that writes down what it is told; its experiment does too, if it has one."""

    name, version = "double", "0"
    experiment: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        self.calls.append((metrics, step))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None: ...


class WandbDouble(Double):
    def log_image(self, key: str, images: Any, step: Any = None) -> None:
        (image,) = images
        self.calls.append((key, np.asarray(image.convert("RGB")).shape, step))


class MlflowClient(list):
    def log_figure(self, run_id: str, figure: Figure, artifact_file: str, *, save_kwargs: Any = None) -> None:
        self.append((run_id, figure, artifact_file))

    def log_text(self, run_id: str, text: str, artifact_file: str) -> None:
        self.append((run_id, text, artifact_file))


class MlflowDouble(Double):
    run_id = property(lambda self: "run 1")

    def __init__(self) -> None:
        super().__init__()
        self.experiment = MlflowClient()


class CometExperiment(list):
    def log_figure(self, figure_name=None, figure=None, overwrite=False, step=None, metadata=None, format="auto"):
        self.append((figure_name, figure, step))

    def log_asset_data(self, data: str, name: str, overwrite: bool, step: int) -> None:
        self.append((data, name, overwrite, step))


class CometDouble(Double):
    def __init__(self) -> None:
        super().__init__()
        self.experiment = CometExperiment()


def events(logger: TensorBoardLogger) -> EventAccumulator:
    logger.save()
    logger.finalize("success")
    return EventAccumulator(logger.log_dir).Reload()


def layouts(logger: TensorBoardLogger) -> dict[str, dict[str, list[str]]]:
    (event,) = events(logger).Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    return {part.title: {chart.title: list(chart.multiline.tag) for chart in part.chart} for part in layout.category}


NAME = "anomaly_filters/filters"


@pytest.mark.parametrize("name", [NAME, "../../outside", "/outside", "a:b*?/..", ""])
def test_csv_has_a_picture_beside_its_table_and_no_name_leads_out_of_its_folder(tmp_path, figure, name):
    logger = CSVLogger(tmp_path / "logs")
    log_figure(logger, name, figure, 12)
    (file,) = tmp_path.rglob("*.png")
    inside = file.relative_to(logger.log_dir)
    assert all(re.fullmatch(r"[\w.=-]+", part) for part in inside.parts)
    assert inside.name == "step=000012.png"
    assert name != NAME or inside.parent.as_posix() == NAME
    with Image.open(file) as image:
        assert image.size == (100, 50)
        assert image.convert("RGB").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("logger", [Double(), DummyLogger(), None], ids=lambda own: type(own).__name__)
def test_others_are_left_alone(logger, figure):
    log_figure(logger, "filters", figure, 1)
    log_page(logger, "browser", "<p>", 1)
    log_overlay_layout(logger, ["train_loss", "val_loss"], "losses")
    assert not isinstance(logger, Double) or logger.calls == []


def test_wandb_gets_pictures_and_pages_without_anything_from_the_network(figure, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Html=lambda data, inject=True: (data.read(), inject)))
    logger = WandbDouble()
    log_figure(logger, NAME, figure, 7)
    log_page(logger, NAME, "<p>", 8)
    assert logger.calls == [(NAME, (50, 100, 3), 7), ({NAME: ("<p>", False)}, 8)]


def test_mlflow_gets_artifacts_of_its_run_and_comet_figures_and_assets_at_their_steps(figure):
    mlflow, comet = MlflowDouble(), CometDouble()
    for logger in (mlflow, comet):
        log_figure(logger, NAME, figure, 7)
        log_page(logger, NAME, "<p>", 8)
    assert mlflow.experiment == [("run 1", figure, f"{NAME}/step=000007.png"), ("run 1", "<p>", f"{NAME}.html")]
    assert comet.experiment == [(NAME, figure, 7), ("<p>", f"{NAME}.html", True, 8)]


def test_a_fit_lays_its_losses_and_the_fraction_into_one_chart(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    quiet_trainer(tmp_path, watcher(), logger=logger).fit(SmallNet(), loader(), loader(seed=1))
    expected = ["^train_loss$", "^val_loss$", "^anomaly_filters/fraction$"]
    assert list(layouts(logger)["anomaly_filters"].values()) == [expected]


def test_expressions_match_the_logged_tag_alone(tmp_path, figure):
    names = ["loss", "loss_step", "a.b (c)+[d]|e", "aXb (c)+[d]|e"]
    logger = TensorBoardLogger(tmp_path, prefix="run.1")
    logger.log_metrics(dict.fromkeys(names, 1.0), 0)
    log_overlay_layout(logger, names, "losses")
    (expressions,) = layouts(logger)["losses"].values()
    log_figure(logger, "filters", figure, 7)
    tags = events(logger).Tags()
    assert tags["images"] == ["run.1-filters"]
    for name, expression in zip(names, expressions, strict=True):
        assert [tag for tag in tags["scalars"] if re.match(expression, tag)] == [f"run.1-{name}"]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("epoch accuracy val_accuracy lr-Adam", []),
        ("train_loss_step train_loss train_loss_epoch val_loss", ["train_loss_epoch", "val_loss"]),
        ("train_loss_step val_loss_step val_loss_epoch", ["train_loss_step", "val_loss_epoch"]),
        ("loss valid/loss", ["loss", "valid/loss"]),
        ("Loss/val Loss/train", ["Loss/train", "Loss/val"]),
        ("trainLoss valLoss", ["trainLoss", "valLoss"]),
        ("valloss trainloss", ["trainloss", "valloss"]),
        ("loss/train/epoch loss/dev", ["loss/train/epoch", "loss/dev"]),
        ("losses/train losses/eval", ["losses/train", "losses/eval"]),
        ("train_aux_loss train_loss val_kl_loss val_loss", ["train_loss", "val_loss"]),
        ("train_aux_loss train_total_loss", ["train_total_loss"]),
        ("loss train_loss", ["train_loss"]),
        ("nll_loss val_nll_loss", ["nll_loss", "val_nll_loss"]),
        ("train_loss test_loss test/loss_epoch", ["train_loss"]),
        ("val_loss/dataloader_idx_10 val_loss/dataloader_idx_2", ["val_loss/dataloader_idx_2"]),
        ("anomaly_filters/layer/loss_net.conv1 anomaly_filters/count", []),
        ("train_val_loss_gap training_step_time evaluation_loss", ["evaluation_loss"]),
    ],
)
def test_losses_are_found_by_their_names_in_any_order(names, found):
    assert loss_tags(names.split()) == loss_tags(names.split()[::-1]) == found


class Gone:
    def add_figure(self, *args, **kwargs):
        raise ConnectionError("the server is gone")

    add_custom_scalars = add_figure


class Broken(Double):
    experiment = Gone()


def test_a_failing_logger_is_one_warning_and_the_others_get_their_figures(tmp_path):
    csv = CSVLogger(tmp_path)
    ours = watcher(log_figures=True)
    trainer = quiet_trainer(tmp_path, ours, logger=[Broken(), csv], max_epochs=2)
    with pytest.warns(
        UserWarning, match=r"could not log .* to Broken \(ConnectionError: the server is gone\)"
    ) as caught:
        trainer.fit(SmallNet(), loader(), loader(seed=1))
    assert len(said(caught)) == 2  # the layout of the charts, and figures
    assert len(list(Path(csv.log_dir).rglob("*.png"))) > 1
    assert len(ours.history) == 2


# The filter browser.


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
    probe.dataset.classes, probe.dataset.root = ["ape", "bee", "cat"], "data"
    probe.dataset.samples = [(f"data/{place}.png", place % 3) for place in range(60)]
    off, ours, module = watcher(log_key_prefix="off"), watcher(browser=True), SmallNet()
    quiet_trainer(tmp_path, off, ours, logger=loggers, max_epochs=4).fit(module, loader(), probe)
    predicted = [probe.dataset.classes[place] for place in module.eval()(probe.dataset.tensors[0]).argmax(1)]
    labels = [("ape", "bee", "cat")[place % 3] for place in range(60)]
    files = {Path(logger.log_dir) / "anomaly_filters" / "browser.html" for logger in loggers}
    assert set(tmp_path.rglob("*.html")) == files
    for file in files:
        index = index_of(file.read_text())
        assert index["votes"] == ours.report.outlier_samples
        assert index["title"] == "Anomaly filters, step 11"
        assert index["images"] == {"height": 8, "width": 8, "columns": 8}
        assert index["names"] == [f"{place}.png" for place in range(60)]
        assert [index["labels"]["names"][place] for place in index["labels"]["of"]] == [
            own if own == other else f"{own}, predicted {other}" for own, other in zip(labels, predicted, strict=True)
        ]
        assert index["layers"][0]["maps"]["kept"] == 60
        sheet = torch.from_numpy(np.array(sprite_of(file.read_text()))).reshape(-1, 8, 8, 8, 1)
        assert torch.equal(sheet.transpose(1, 2).flatten(0, 1)[:60], probe_images(probe.dataset.tensors[0]))
        assert index["history"]["epochs"] == [0, 1, 2, 3]  # the page of the 4th analysis is there before its last loss
        assert index["epochs"] == {"of": ["epoch 0", "epoch 1", "epoch 2"], "samples": 60}
        assert index["history"]["counts"] == [entry["metrics"]["count"] for entry in ours.history]
        losses = index["history"]["losses"]
        assert set(losses) == {"train_loss", "val_loss"}
        assert all(value is not None for values in losses.values() for value in values)
    assert all("losses" not in entry for entry in off.history)


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


def test_a_browser_that_fails_costs_no_analysis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise ValueError("no page today")

    monkeypatch.setattr("lightning_anomaly.callbacks._figures.page_text", fail)
    ours = watcher(browser=True)
    with pytest.warns(UserWarning, match="could not .*ValueError: no page today"):
        quiet_trainer(tmp_path, ours, logger=CSVLogger(tmp_path)).fit(SmallNet(), loader(), loader(seed=1))
    assert [entry["analysed"] for entry in ours.history] == [True, True]
