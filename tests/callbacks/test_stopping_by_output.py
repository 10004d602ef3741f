"""Beside a TwoSampleCallback it stops when the network is surer of training images, and needs no validation label."""

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from scripted import Scripted
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from trainers import QUIET, SmallNet, images, loader, quiet_trainer

from lightning_anomaly import AnomalyEarlyStopping, TwoSampleCallback
from lightning_anomaly.callbacks._output_rise import output_rise

pytestmark = QUIET
RESUMES = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkp")


class Written(TwoSampleCallback):
    """Logs a given gap instead of comparing."""

    def __init__(self, gaps: list[float], **options: Any) -> None:
        super().__init__(images(20), images(20, seed=1), **options)
        self.gaps = gaps
        self.validations = 0

    def on_validation_batch_start(self, *arguments: Any, **keywords: Any) -> None:
        pass

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.validations = trainer.current_epoch + 1
            gap = self.gaps[trainer.current_epoch]
            pl_module.log(
                f"{self.log_key_prefix}/confidence_log_odds_gap", gap, on_step=False, on_epoch=True, batch_size=1
            )


def run(
    folder: Path, gaps: list[float], *callbacks: Any, ckpt_path: Path | None = None, **options: Any
) -> tuple[AnomalyEarlyStopping, int]:
    """What stopped, and after how many validations the training ended."""
    stopping, written = AnomalyEarlyStopping(**options), Written(gaps)
    trainer = quiet_trainer(folder, stopping, *callbacks, written, max_epochs=len(gaps), limit_train_batches=1)
    trainer.fit(SmallNet(), loader(4), loader(4), ckpt_path=ckpt_path)
    return stopping, written.validations


def test_it_stops_when_the_mean_of_three_has_risen_above_its_lowest(tmp_path: Path) -> None:
    stopping, ended = run(tmp_path, [0.4, 0.3, 0.2, 0.3, 0.3, 0.4, 1.3, 1.0])
    assert ended == 7
    assert stopping.stopped_epoch == 6
    assert stopping.stopping_reason_message == (
        "The network knows its training images: the log-odds of its answers to them and to validation images have "
        "moved 0.40 apart (two_sample/confidence_log_odds_gap, 0.67 on average over 3 validations), and the two are "
        "told apart by its output."
    )


@pytest.mark.parametrize(
    "gaps",
    [
        [0.5] * 8,
        [0.58] * 8,
        [0.6, 0.58, 0.56, 0.54, 0.52, 0.5, 0.48, 0.47],
        [0.5, 0.7, 1.0, 0.5, 0.8, 1.0, 0.5, 0.5],
    ],
    ids=["constant", "unlucky division", "falling", "fluctuating"],
)
def test_it_does_not_stop_a_healthy_training(tmp_path: Path, gaps: list[float]) -> None:
    stopping, ended = run(tmp_path, gaps)
    assert ended == 8
    assert stopping.stopping_reason_message is None


def test_the_rise_is_over_the_lowest_level_whenever_that_was() -> None:
    assert output_rise([]) == output_rise([0.1, 0.9]) == output_rise([0.1, 0.9, 0.2]) == 0
    gaps = [0.5, 0.5, 0.56, 0.47, 0.5, 0.5, 0.53, 0.53, 0.53]
    assert output_rise(gaps) == pytest.approx(0.53 - 0.49)


def test_threshold_and_patience_are_the_user_s(tmp_path: Path) -> None:
    gaps = [0.5] * 3 + [1.28] * 6
    assert run(tmp_path, gaps)[1] == 4
    assert run(tmp_path, gaps, threshold=0.6)[1] == 6
    assert run(tmp_path, gaps, patience=3)[1] == 6


def test_it_says_what_it_watches(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run(tmp_path, [0.5])
    said = (
        "AnomalyEarlyStopping watches 'two_sample/confidence_log_odds_gap' and stops when the rise of its mean over 3 "
    )
    assert said + "validations has been above 0.25 for 1 validation in a row." in caplog.messages
    caplog.clear()
    with caplog.at_level(logging.INFO):
        run(tmp_path, [0.5], verbose=False)
    assert not [message for message in caplog.messages if "watches" in message]


@pytest.mark.parametrize(
    ("prefix", "monitor"),
    [
        (None, "two_sample/confidence_log_odds_gap"),
        ("two_sample", "two_sample/confidence_log_odds_gap"),
        ("anomaly_filters", "anomaly_filters/rise"),
    ],
)
def test_of_two_callbacks_it_takes_the_one_with_the_prefix_and_else_the_output(
    tmp_path: Path, prefix: str | None, monitor: str
) -> None:
    stopping, _ = run(tmp_path, [0.5], Scripted([0.1]), log_key_prefix=prefix)
    assert stopping.monitor == monitor


def test_one_for_each_signal_may_stand_in_a_trainer(tmp_path: Path) -> None:
    on_rise = AnomalyEarlyStopping(log_key_prefix="anomaly_filters")
    stopping, ended = run(tmp_path, [0.5] * 20, on_rise, Scripted([0.1] * 6 + [0.3] * 14))
    assert (ended, on_rise.stopped_epoch, stopping.stopped_epoch) == (12, 11, 0)


@RESUMES
@pytest.mark.parametrize("after_the_epoch", [True, False])
def test_a_resumed_run_stops_where_the_whole_one_does(tmp_path: Path, after_the_epoch: bool) -> None:
    gaps = [0.5] * 4 + [0.6] * 6
    options = {"threshold": 0.06, "patience": 3}
    _, whole = run(tmp_path / "whole", gaps, **options)
    keep = ModelCheckpoint(tmp_path, save_last=True, save_on_train_epoch_end=after_the_epoch)
    run(tmp_path, gaps[:6], keep, **options)
    assert run(tmp_path, gaps, ckpt_path=tmp_path / "last.ckpt", **options)[1] == whole == 8


@RESUMES
def test_a_stopped_run_goes_on_by_the_arguments_of_the_resumed_one(tmp_path: Path) -> None:
    gaps = [0.5] * 3 + [1.3] * 7
    assert run(tmp_path, gaps, ModelCheckpoint(tmp_path, save_last=True))[1] == 4
    assert run(tmp_path, gaps, ckpt_path=tmp_path / "last.ckpt", patience=4)[1] == 7
    stopping, ended = run(tmp_path, gaps, ckpt_path=tmp_path / "last.ckpt", threshold=0.9)
    assert (ended, stopping.stopped_epoch, stopping.stopping_reason_message) == (10, 0, None)


@pytest.mark.parametrize(
    "options", [{"val_check_interval": 1}, {"max_epochs": -1, "max_steps": 6}, {"check_val_every_n_epoch": 2}], ids=str
)
def test_it_reads_each_validation_once_whenever_the_trainer_validates(tmp_path: Path, options: dict[str, Any]) -> None:
    compared, stopping = TwoSampleCallback(images(20), images(20, seed=1)), AnomalyEarlyStopping()
    for own in ({}, options):
        quiet_trainer(tmp_path, compared, stopping, **{"max_epochs": 4, **own}).fit(SmallNet(), loader(80), loader(20))
        assert len(stopping.state_dict()["gaps"]) == len(compared.history)


def test_a_validation_whose_output_is_nan_is_none_and_logs_what_was_before(tmp_path: Path) -> None:
    class Bright(SmallNet):
        """Surer of brighter images, always."""

        def forward(self, x: Tensor) -> Tensor:
            broken = not self.training and self.trainer.current_epoch == 3
            return super().forward(x) * 0 + x.mean((1, 2, 3))[:, None] * torch.tensor(
                [torch.nan if broken else 3, 0, 0]
            )

    compared, stopping = TwoSampleCallback(images(60), images(60, seed=1) + 0.6), AnomalyEarlyStopping()
    trainer = quiet_trainer(tmp_path, compared, stopping, max_epochs=6)
    with pytest.warns(UserWarning, match=r"it is NaN for 60 of 60 samples\. Its last values are logged\.$"):
        trainer.fit(Bright(), loader(20), loader(20))
    assert trainer.current_epoch == 6
    logged = {entry["metrics"]["confidence_gap"] for entry in compared.history}
    assert logged == {compared.history[0]["metrics"]["confidence_gap"]}
    assert max(logged) < -0.1  # for a zero among them, the mean of three would rise by more than 0.025


class ByHeart(pl.LightningModule):
    """Learns few images by heart; its validation has images alone."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, 200), nn.ReLU(), nn.Linear(200, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        (x,) = batch
        self.log("sureness", self(x).softmax(1).amax(1).mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@pytest.mark.parametrize("known", [True, False])
def test_a_validation_loader_without_labels_will_do_and_the_reason_says_where(tmp_path: Path, known: bool) -> None:
    torch.manual_seed(0)
    train, unseen = images(60), images(1500, seed=1)
    compared, stopping = TwoSampleCallback(train if known else unseen[:750], unseen[750:]), AnomalyEarlyStopping()
    keep = ModelCheckpoint(tmp_path, monitor="sureness", mode="min", save_top_k=1)
    model, without_labels = ByHeart(), DataLoader(TensorDataset(unseen[750:]), batch_size=250)
    trainer = quiet_trainer(tmp_path, compared, stopping, keep, max_epochs=60)
    with pytest.warns(UserWarning, match="The model has no convolution"):
        trainer.fit(model, loader(60, shuffle=True), without_labels)
    assert (trainer.current_epoch < 60) == known
    assert keep.best_model_path
    assert compared.report is not None
    if known:
        last = trainer.callback_metrics["two_sample/confidence_log_odds_gap"].item()
        assert last == pytest.approx(compared.report.confidence_log_odds_gap)
        assert last > 0.25
        assert list(compared.report.telling_layers) == ["network.1"]  # the hidden linear layer
        assert str(stopping.stopping_reason_message).endswith(f" told apart {compared.report.where}.")
        # The weights are the last epoch's: nothing was restored.
        with torch.no_grad():
            sure = model(unseen[750:]).softmax(1).amax(1).mean().item()
        assert sure == pytest.approx(trainer.callback_metrics["sureness"].item(), rel=1e-5)
        assert sure > keep.best_model_score.item()
