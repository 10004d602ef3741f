"""Trainings with a turn that tests seldom have: what is logged stays right, or it is said, and the training goes on."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from trainers import QUIET, SmallNet, images, loader, quiet_trainer, watcher

from lightning_anomaly import TwoSampleCallback

pytestmark = QUIET


class Chunked(SmallNet):
    """Validates a batch in two halves."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        for part in batch[0].chunk(2):
            self(part)


def test_no_image_is_shown_for_layers_called_with_parts_of_a_batch(tmp_path: Path) -> None:
    ours, logger = watcher(probe_size=30, log_figures=True), CSVLogger(tmp_path)
    quiet_trainer(tmp_path, ours, logger=logger).fit(Chunked(), loader(), loader())
    assert list(Path(logger.log_dir).rglob("verdicts/*.png"))
    assert not list(Path(logger.log_dir).rglob("outliers/*.png"))


class Regions(SmallNet):
    """Looks at four regions of each image in its last layer."""

    def forward(self, x: Tensor) -> Tensor:
        maps = self.norm(self.conv1(x)).relu()
        parts = maps.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        return self.head(self.conv2(parts).mean((2, 3)).unflatten(0, (len(x), 4)).mean(1))


def test_a_layer_with_several_maps_of_each_image_leaves_the_others_their_probe(tmp_path: Path) -> None:
    ours, named = watcher(), watcher(layers=["conv1"], log_key_prefix="named")
    with pytest.warns(UserWarning, match="'conv2' is left out .*: it gave 80 maps where most layers gave 20"):
        quiet_trainer(tmp_path, ours, named).fit(Regions(), loader(), loader())
    assert ours.report is not None
    assert named.report is not None
    assert ours.report.n_samples == 60
    assert list(ours.report.layers) == ["conv1"]
    assert torch.equal(ours.report.layers["conv1"].outliers, named.report.layers["conv1"].outliers)


class Interrupts(pl.Callback):
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 3:
            raise KeyboardInterrupt


def test_the_last_figures_are_there_when_the_user_ends_the_fit(tmp_path: Path) -> None:
    logger, both = CSVLogger(tmp_path), [watcher(log_figures=True)]
    both.append(TwoSampleCallback(images(60) + 0.1, images(80, seed=1)))
    trainer = quiet_trainer(tmp_path, *both, Interrupts(), logger=logger, max_epochs=9)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        trainer.fit(SmallNet(), loader(), loader())
    for name in ("anomaly_filters/verdicts", "two_sample/layers"):
        found = sorted(file.stem for file in (Path(logger.log_dir) / name).iterdir())
        assert found == [f"step={step:06d}" for step in (2, 5, 8)], name  # the last is the third
