"""Trainings with a turn that tests seldom have: what is logged stays right, or it is said, and the training goes on."""

import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from trainers import QUIET, SmallNet, images, loader, plain, quiet_trainer, said, watcher

from lightning_anomaly import TwoSampleCallback
from lightning_anomaly.callbacks import _figures, two_sample
from lightning_anomaly.callbacks._figures import FigureSchedule

pytestmark = QUIET


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Dropout and the order of the images are the same whatever ran before."""
    torch.manual_seed(0)


# an epoch of NaN


class NanInTheThird(SmallNet):
    """Its third validation, and no other, sees weights of NaN."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * math.nan if self.current_epoch == 2 and not self.training else x)


def test_a_validation_in_which_nothing_can_be_found_repeats_the_last_values(tmp_path: Path) -> None:
    ours = watcher()
    trainer = quiet_trainer(tmp_path, ours, max_epochs=4, num_sanity_val_steps=0)
    with pytest.warns(UserWarning, match="not analyzed.* So AnomalyFilterCallback logs its last values") as caught:
        trainer.fit(NanInTheThird(), loader(), loader())
    assert len(said(caught)) == 1
    assert [entry["analysed"] for entry in ours.history] == [True, True, False, True]
    before, third = ours.history[1], ours.history[2]
    assert before["metrics"]["count"] > 0
    assert third["metrics"] == before["metrics"]


def test_a_probe_that_is_validated_alone_does_not_repeat_what_a_fit_found(tmp_path: Path) -> None:
    ours, module = watcher(), SmallNet()
    trainer = quiet_trainer(tmp_path, ours)
    trainer.fit(module, loader(), loader())
    assert ours.history[-1]["metrics"]["count"] > 0
    with pytest.warns(UserWarning, match="fewer than .* the logged zeros stand for nothing"):
        (logged,) = trainer.validate(module, loader(5), verbose=False)
    assert logged["anomaly_filters/count"] == 0


# a network that is wrapped while it trains


class Wraps(SmallNet):
    """Its layer `body.conv` becomes `body.inner.conv`."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 1, 3, padding=1)))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.body(x))

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.body = nn.Sequential(OrderedDict(inner=self.body))


@pytest.mark.parametrize("kind", ["filters", "two samples"])
def test_a_layer_that_is_gone_in_mid_training_is_said_once_and_the_training_goes_on(tmp_path: Path, kind: str) -> None:
    ours = (
        watcher(layers=["body.conv"])
        if kind == "filters"
        else TwoSampleCallback(images(60) + 0.1, images(80, seed=1), layers=["body.conv"])
    )
    trainer = quiet_trainer(tmp_path, ours, max_epochs=3)
    with pytest.warns(UserWarning, match="should name layers of the model.* and logs its last values") as caught:
        trainer.fit(Wraps(), loader(), loader())
    assert len(said(caught)) == 1
    assert trainer.current_epoch == 3
    assert len(ours.history) == 3
    assert ours.history[2]["metrics"] == ours.history[0]["metrics"]


# layers that see a part of a batch


class Chunked(SmallNet):
    """Validates a batch in two halves."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        for part in batch[0].chunk(2):
            self(part)


def test_layers_called_with_parts_of_a_batch_are_said_and_no_image_is_shown_under_a_wrong_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []
    ours = watcher(probe_size=30, log_figures=True)
    monkeypatch.setattr(FigureSchedule, "log", lambda *args: shown.append(args[3]))
    trainer = quiet_trainer(tmp_path, ours, logger=CSVLogger(tmp_path))
    with pytest.warns(UserWarning, match="validation batch of 20 samples gave 10 maps") as caught:
        trainer.fit(Chunked(), loader(), loader())
    assert len(said(caught)) == 1
    assert "not numbered as those of the loader" in str(ours.report)
    assert shown == [None, None]


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


def test_images_that_a_hook_runs_before_the_validation_step_are_no_part_of_the_probe(tmp_path: Path) -> None:
    class Runs(pl.Callback):
        def on_validation_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            with torch.no_grad():
                pl_module(100 * images(20, seed=9))

    first, second, alone = watcher(), watcher(), watcher()
    quiet_trainer(tmp_path, first, Runs()).fit(SmallNet(), loader(), loader())
    torch.manual_seed(0)
    quiet_trainer(tmp_path, Runs(), second).fit(SmallNet(), loader(), loader())
    torch.manual_seed(0)
    quiet_trainer(tmp_path, alone).fit(SmallNet(), loader(), loader())
    assert plain(first.history) == plain(second.history) == plain(alone.history)


# what is loaded for the training probe


@pytest.mark.filterwarnings("ignore:You requested to overfit but enabled train")
@pytest.mark.parametrize(
    ("options", "shuffle"),
    [({"overfit_batches": 2}, True), ({"limit_train_batches": 2}, False)],
    ids=["overfitted", "first ones"],
)
def test_a_training_probe_is_of_the_batches_that_are_trained_on(
    tmp_path: Path, options: dict[str, Any], shuffle: bool
) -> None:
    seen: list[Any] = []

    class Sees(SmallNet):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return super().forward(x)

    ours = watcher(probe="train", probe_size=60)
    trainer = quiet_trainer(tmp_path, ours, max_epochs=1, num_sanity_val_steps=0, **options)
    with pytest.warns(UserWarning, match="The probe has 40 samples"):
        trainer.fit(Sees(), loader(shuffle=shuffle), loader(seed=1))
    assert ours.report is not None
    assert ours.report.n_samples == 40
    trained, probe = torch.cat(seen[:2]), torch.cat(seen[3:5])  # two batches, a step of the validation, the probe
    assert {x.sum().item() for x in probe} == {x.sum().item() for x in trained}


# a fit that the user ends


class Interrupts(pl.Callback):
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 3:
            raise KeyboardInterrupt


def test_the_last_figures_are_there_when_the_user_ends_the_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, int]] = []
    monkeypatch.setattr(_figures, "log_report", lambda *args: drawn.append(("filters", args[-2])))
    monkeypatch.setattr(two_sample, "log_comparisons", lambda *args: drawn.append(("layers", args[-2])))
    both = watcher(log_figures=True), TwoSampleCallback(images(60) + 0.1, images(80, seed=1))
    trainer = quiet_trainer(tmp_path, *both, Interrupts(), max_epochs=9)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        trainer.fit(SmallNet(), loader(), loader())
    steps = [2, 5, 8]  # the first, the second, and the last, which is the third
    assert [step for name, step in drawn if name == "filters"] == steps
    assert [step for name, step in drawn if name == "layers"] == steps
