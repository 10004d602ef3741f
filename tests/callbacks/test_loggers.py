"""Figures in the files of TensorBoard and CSVLogger, beside loggers that take none or fail."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from PIL import Image
from reports import contents
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from trainers import SmallNet, fit, images, loader, said, watcher

from lightning_anomaly import MemorizationCallback

FIGURES = {f"anomaly_filters/{name}" for name in ("curves", "verdicts", "filters", "outliers")}
SHOWN = [2, 5, 11]  # the steps of the 1st, 2nd and 4th validation


class Other(Logger):
    name, version = "other", "0"
    experiment: Any = None

    def log_metrics(self, metrics: Any, step: Any = None) -> None: ...

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None: ...


class Gone:
    def __init__(self, folder: str = "") -> None: ...

    def add_figure(self, *args: Any, **kwargs: Any) -> None:
        raise ConnectionError("the server is gone")


class Broken(Other):
    experiment = Gone()


class Halves(SmallNet):
    """Its convolutions see the halves of each image."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.cat(x.chunk(2, 3))).unflatten(0, (2, -1)).mean(0)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Four epochs with a logger of each kind, one of them broken, and the warnings."""
    folder, ours = tmp_path_factory.mktemp("logged"), watcher(log_figures=True)
    probe, names = loader(seed=1), ["ape", "bee", "cat"]
    probe.dataset.tensors[0][7] *= 20
    probe.dataset.classes, probe.dataset.root = names, "data"
    probe.dataset.targets = [place % 3 for place in range(60)]
    probe.dataset.samples = [(f"data/{place}.png", place % 3) for place in range(60)]
    tensorboard = TensorBoardLogger(folder / "tensorboard", prefix="run.1")
    tensorboard.log_metrics({"train_loss_step": 1.0, "val_loss_2": 1.0}, 0)
    loggers = {"broken": Broken(), "tensorboard": tensorboard, "csv": CSVLogger(folder / "csv"), "other": Other()}
    with pytest.warns(UserWarning, match="to Broken") as caught:
        fit(folder, ours, train=loader(), val=probe, logger=list(loggers.values()), max_epochs=4)
    return SimpleNamespace(ours=ours, loggers=loggers, warnings=said(caught))


def test_a_failing_logger_gives_one_warning(fitted: SimpleNamespace) -> None:
    assert [re.findall("log a (.*) to Broken", text) for text in fitted.warnings] == [["figure"]]
    assert len(fitted.ours.history) == 4


def test_csv_logger_has_pictures_beside_its_table(fitted: SimpleNamespace) -> None:
    folder = Path(fitted.loggers["csv"].log_dir)
    names = {f"{name}/step={step:06d}.png" for name in FIGURES for step in SHOWN}
    assert {file.relative_to(folder).as_posix() for file in folder.rglob("*.png")} == names
    with Image.open(folder / min(names)) as image:
        assert min(image.size) > 100


def test_maps_of_parts_of_images_have_no_figure_of_images(tmp_path: Path) -> None:
    ours = watcher(log_figures=True)
    fit(tmp_path, ours, module=Halves(), logger=CSVLogger(tmp_path), max_epochs=1)
    assert ours.report.n_samples == 60
    drawn = {file.parent.name for file in tmp_path.rglob("*.png")}
    assert "verdicts" in drawn
    assert "outliers" not in drawn


def test_tensorboard_has_each_figure_once_at_a_step_and_the_history_all_losses(fitted: SimpleNamespace) -> None:
    events = EventAccumulator(fitted.loggers["tensorboard"].log_dir, {"images": 0}).Reload()
    tags = events.Tags()
    assert set(tags["images"]) == {f"run.1-{name}" for name in FIGURES}
    steps = {tag.partition("-")[2]: [event.step for event in events.Images(tag)] for tag in tags["images"]}
    assert steps == dict.fromkeys(FIGURES, SHOWN)  # TensorBoard would show the first of two at a step
    assert [set(entry["logged"]) for entry in fitted.ours.history] == [{"train_loss", "val_loss"}] * 4


def test_the_page_of_a_report_has_votes_images_labels_and_files(fitted: SimpleNamespace, tmp_path: Path) -> None:
    index, blocks = contents(fitted.ours.report.save_html(tmp_path / "filters.html").path.read_text())
    assert index["votes"] == fitted.ours.report.votes
    assert index["images"] == {"height": 8, "width": 8, "columns": 8}
    assert index["names"] == [f"{place}.png" for place in range(60)]
    assert [index["labels"]["names"][place] for place in index["labels"]["of"]] == ["ape", "bee", "cat"] * 20
    assert set(blocks) == {"points-0", "points-1"}


def test_losses_in_a_history_are_of_their_epochs(tmp_path: Path) -> None:
    class Losses(SmallNet):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("train_loss", 10.0 * self.current_epoch + batch_idx, on_step=False, on_epoch=True)
            return self.loss(batch)

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self(batch[0])
            self.log("val_loss", 100.0 + self.current_epoch)

    both = watcher(), MemorizationCallback(images(40), images(40, seed=1))
    fit(tmp_path, *both, module=Losses(), train=loader(), max_epochs=4, val_check_interval=1)
    for ours in both:
        found = [entry["logged"] for entry in ours.history]
        assert [losses["val_loss"] for losses in found] == [100.0 + entry["epoch"] for entry in ours.history]
        known = [value for mean in (1, 11, 21, 31) for value in (None, None, mean)]  # at the last of three batches
        assert [losses.get("train_loss") for losses in found] == known
