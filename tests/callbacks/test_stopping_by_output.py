"""Beside a TwoSampleCallback it stops when the network is surer of training images, and needs no validation label."""

import logging
import warnings
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


def run(folder: Path, gaps: list[float], *callbacks: Any, **options: Any) -> tuple[AnomalyEarlyStopping, int]:
    """What stopped, and after how many validations the training ended."""
    stopping, written = AnomalyEarlyStopping(**options), Written(gaps)
    trainer = quiet_trainer(folder, stopping, *callbacks, written, max_epochs=len(gaps), limit_train_batches=1)
    trainer.fit(SmallNet(), loader(4), loader(4))
    return stopping, written.validations


def test_it_stops_when_the_mean_of_three_has_risen_above_its_lowest(tmp_path: Path) -> None:
    stopping, ended = run(tmp_path, [0.4, 0.3, 0.2, 0.3, 0.3, 0.4, 1.3, 1.0])
    assert ended == 7
    assert stopping.stopped_epoch == 6
    assert stopping.stopping_reason_message == (
        "The network knows its training images: over the last 3 validations it was surer of them than of validation "
        "images, by 0.67 in log-odds on average (two_sample/confidence_log_odds_gap), 0.40 more than at its lowest "
        "level, and the two are told apart by its output."
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
    gaps = [0.5] * 3 + [1.22] * 6
    assert run(tmp_path, gaps)[1] == 4
    assert run(tmp_path, gaps, threshold=0.6)[1] == 6
    assert run(tmp_path, gaps, patience=3)[1] == 6


def test_it_says_what_it_watches(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run(tmp_path, [0.5])
    said = (
        "AnomalyEarlyStopping watches 'two_sample/confidence_log_odds_gap' and stops when the rise of its mean over 3 "
    )
    assert said + "validations has been above 0.2 for 1 validation in a row." in caplog.messages
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


def test_a_resumed_run_stops_where_the_whole_one_does(tmp_path: Path) -> None:
    gaps = [0.5] * 4 + [0.6] * 6
    options = {"threshold": 0.06, "patience": 3}
    _, whole = run(tmp_path / "whole", gaps, **options)
    run(tmp_path, gaps[:6], ModelCheckpoint(tmp_path, save_last=True), **options)
    stopping, written = AnomalyEarlyStopping(**options), Written(gaps)
    trainer = quiet_trainer(
        tmp_path, stopping, written, ModelCheckpoint(tmp_path / "second"), max_epochs=10, limit_train_batches=1
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The dirpath has changed")
        trainer.fit(SmallNet(), loader(4), loader(4), ckpt_path=tmp_path / "last.ckpt")
    assert written.validations == whole == 8


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
        assert last > 0.2
        assert list(compared.report.telling_layers) == ["network.1"]  # the hidden linear layer
        assert str(stopping.stopping_reason_message).endswith(f" told apart {compared.report.where}.")
        # The weights are the last epoch's: nothing was restored.
        with torch.no_grad():
            sure = model(unseen[750:]).softmax(1).amax(1).mean().item()
        assert sure == pytest.approx(trainer.callback_metrics["sureness"].item(), rel=1e-5)
        assert sure > keep.best_model_score.item()
