"""Real TensorBoard and CSV files are read back; W&B, MLflow and Comet are doubles with the methods of the real ones."""

import re
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from trainers import QUIET, SmallNet, loader, quiet_trainer, said, watcher

from lightning_anomaly.callbacks._loggers import log_figure, log_overlay_layout, loss_tags

pytestmark = QUIET
LOSSES, COUNT = ["train_loss_epoch", "val_loss"], "anomaly_filters/count"


@pytest.fixture
def figure() -> Figure:
    figure = Figure(figsize=(2, 1), dpi=50, facecolor="red")
    figure.add_subplot().plot([0, 1])
    return figure


class Double(Logger):
    """A logger that writes down what it is told."""

    name, version = "double", "0"

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[dict] = []

    def log_metrics(self, metrics, step=None):
        raise AssertionError("not asked for")

    def log_hyperparams(self, params, *args, **kwargs):
        raise AssertionError("not asked for")


class WandbDouble(Double):
    def log_image(self, key, images, step=None, **kwargs):
        assert isinstance(images, list)
        self.calls.append({"key": key, "images": images, "step": step, **kwargs})


class MlflowClient:
    def __init__(self, calls):
        self._calls = calls

    def log_figure(self, run_id, figure, artifact_file, *, save_kwargs=None):
        self._calls.append({"run_id": run_id, "figure": figure, "artifact_file": artifact_file})


class MlflowDouble(Double):
    run_id = property(lambda self: "run 1")
    experiment = property(lambda self: MlflowClient(self.calls))


class CometExperiment:
    def __init__(self, calls):
        self._calls = calls

    def log_figure(
        self, figure_name=None, figure=None, overwrite=False, step=None, metadata=None, format="auto"
    ):  # as Comet's
        self._calls.append({"figure_name": figure_name, "figure": figure, "step": step})


class CometDouble(Double):
    experiment = property(lambda self: CometExperiment(self.calls))


def events(logger: TensorBoardLogger) -> EventAccumulator:
    logger.save()
    logger.finalize("success")
    return EventAccumulator(logger.log_dir).Reload()


def layouts(logger: TensorBoardLogger) -> dict[str, dict[str, list[str]]]:
    (event,) = events(logger).Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    return {part.title: {chart.title: list(chart.multiline.tag) for chart in part.chart} for part in layout.category}


class TestLogFigure:
    def test_csv_has_a_picture_beside_its_table(self, tmp_path, figure):
        logger = CSVLogger(tmp_path)
        logger.log_metrics({"loss": 1.0}, 0)
        for step in (12, 123_456_789):
            assert log_figure(logger, "anomaly_filters/filters", figure, step)
        logger.save()
        folder = Path(logger.log_dir) / "anomaly_filters" / "filters"
        assert sorted(file.name for file in folder.iterdir()) == ["step=000012.png", "step=123456789.png"]
        with Image.open(folder / "step=000012.png") as image:
            assert image.size == (100, 50)
            assert image.convert("RGB").getpixel((0, 0)) == (255, 0, 0)
        assert (Path(logger.log_dir) / "metrics.csv").is_file()

    @pytest.mark.parametrize("name", ["../../outside", "/outside", "a:b*?/..", "..", ""])
    def test_no_name_leads_out_of_the_log_folder(self, tmp_path, figure, name):
        logger = CSVLogger(tmp_path / "logs")
        assert log_figure(logger, name, figure, 1)
        (file,) = tmp_path.rglob("*.png")
        assert file.is_relative_to(logger.log_dir)
        assert all(re.fullmatch(r"[\w.=-]+", part) for part in file.relative_to(logger.log_dir).parts)

    def test_wandb_gets_a_picture(self, figure):
        logger = WandbDouble()
        assert log_figure(logger, "anomaly_filters/filters", figure, 7)
        (call,) = logger.calls
        (image,) = call.pop("images")
        assert call == {"key": "anomaly_filters/filters", "step": 7}
        assert np.asarray(image.convert("RGB")).shape == (50, 100, 3)

    def test_mlflow_gets_the_figure_under_its_run_and_comet_at_its_step(self, figure):
        mlflow, comet = MlflowDouble(), CometDouble()
        for logger in (mlflow, comet):
            assert log_figure(logger, "anomaly_filters/filters", figure, 7)
        file = "anomaly_filters/filters/step=000007.png"
        assert mlflow.calls == [{"run_id": "run 1", "figure": figure, "artifact_file": file}]
        assert comet.calls == [{"figure_name": "anomaly_filters/filters", "figure": figure, "step": 7}]

    @pytest.mark.parametrize(
        "logger", [Double(), DummyLogger(), object(), None], ids=lambda logger: type(logger).__name__
    )
    def test_others_are_left_alone(self, logger, figure):
        assert log_figure(logger, "filters", figure, 1) is False
        assert log_overlay_layout(logger, LOSSES, "losses") is False


class TestLogOverlayLayout:
    def test_curves_of_another_scale_are_shown_apart_as_well(self, tmp_path):
        logger = TensorBoardLogger(tmp_path)
        log_overlay_layout(logger, [*LOSSES, COUNT], "anomaly_filters", apart=[COUNT])
        charts = layouts(logger)["anomaly_filters"]
        assert list(charts.values()) == [
            ["^train_loss_epoch$", "^val_loss$", "^anomaly_filters/count$"],
            ["^train_loss_epoch$", "^val_loss$"],
            ["^anomaly_filters/count$"],
        ]

    def test_expressions_match_the_logged_tag_alone(self, tmp_path, figure):
        names = ["loss", "loss_step", "a.b (c)+[d]|e", "aXb (c)+[d]|e", "loss/dataloader_idx_0"]
        logger = TensorBoardLogger(tmp_path, prefix="run.1")
        logger.log_metrics(dict.fromkeys(names, 1.0), 0)
        log_overlay_layout(logger, names, "losses")
        (expressions,) = layouts(logger)["losses"].values()
        log_figure(logger, "filters", figure, 7)
        tags = events(logger).Tags()
        logged = tags["scalars"]
        assert tags["images"] == ["run.1-filters"]
        for name, expression in zip(names, expressions, strict=True):
            assert [tag for tag in logged if re.match(expression, tag)] == [f"run.1-{name}"]


class TestLossTags:
    @pytest.mark.parametrize(
        ("names", "found"),
        [
            ("", []),
            ("epoch accuracy val_accuracy lr-Adam", []),
            ("train_loss val_loss", ["train_loss", "val_loss"]),
            ("val_loss train_loss", ["train_loss", "val_loss"]),
            ("train_loss_step train_loss train_loss_epoch val_loss", ["train_loss_epoch", "val_loss"]),
            ("train_loss_step train_loss val_loss", ["train_loss", "val_loss"]),
            ("train_loss_step val_loss_step val_loss_epoch", ["train_loss_step", "val_loss_epoch"]),
            ("loss valid/loss", ["loss", "valid/loss"]),
            ("loss_step loss_epoch valid_loss", ["loss_epoch", "valid_loss"]),
            ("training/loss_epoch training/loss_step validation/loss", ["training/loss_epoch", "validation/loss"]),
            ("Loss/val Loss/train", ["Loss/train", "Loss/val"]),
            ("trainLoss valLoss", ["trainLoss", "valLoss"]),
            ("TrainLoss ValidationLoss", ["TrainLoss", "ValidationLoss"]),
            ("valloss trainloss", ["trainloss", "valloss"]),
            ("loss/train/epoch loss/dev", ["loss/train/epoch", "loss/dev"]),
            ("losses/train losses/eval", ["losses/train", "losses/eval"]),
            ("train_aux_loss train_loss val_kl_loss val_loss", ["train_loss", "val_loss"]),
            ("train_aux_loss train_total_loss", ["train_total_loss"]),
            ("loss train_loss", ["train_loss"]),
            ("nll_loss val_nll_loss", ["nll_loss", "val_nll_loss"]),
            ("train_loss test_loss test/loss_epoch", ["train_loss"]),
            ("val_loss/dataloader_idx_1 val_loss/dataloader_idx_0", ["val_loss/dataloader_idx_0"]),
            ("val_loss/dataloader_idx_10 val_loss/dataloader_idx_2", ["val_loss/dataloader_idx_2"]),
            ("anomaly_filters/layer/loss_net.conv1 anomaly_filters/count", []),
            ("train_val_loss_gap", []),
            ("training_step_time evaluation_loss", ["evaluation_loss"]),
        ],
    )
    def test_finds(self, names, found):
        assert loss_tags(names.split()) == found

    def test_the_order_of_names_does_not_matter(self):
        names = ["loss", "train_loss_step", "train_loss_epoch", "train_aux_loss_epoch", "val_loss_epoch", "val_loss"]
        assert loss_tags(names) == loss_tags(names[::-1]) == ["train_loss_epoch", "val_loss_epoch"]


class Gone:
    def add_figure(self, *args, **kwargs):
        raise ConnectionError("the server is gone")

    add_custom_scalars = add_figure


class Broken(Double):
    experiment = property(lambda self: Gone())

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params, *args, **kwargs):
        pass


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
