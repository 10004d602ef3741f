"""Where nothing can be watched, it is said once, with those in the Trainer who wait for it; and what is logged then."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from trainers import QUIET, SmallNet, loader, quiet_trainer, said, watcher

from lightning_anomaly import AnomalyEarlyStopping, AnomalyPruneCallback

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint"),
]


class NoForward(SmallNet):
    """Its steps call its layers; `forward` is not written."""

    forward = pl.LightningModule.forward

    def loss(self, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(SmallNet.forward(self, batch[0]), batch[1])


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(loader().dataset)


class Late(SmallNet):
    """Its convolutions are used from the sixth epoch on; nothing is learnt, so that what they give stays the same."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        early = self.current_epoch < 5
        self.log("val_loss", self.head(batch[0].flatten(1)[:, :6]).mean() if early else self.loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def damaged() -> DataLoader[Any]:
    """Images with outliers in all filters."""
    val = loader(seed=1)
    val.dataset.tensors[0][[3, 20, 41]] *= 20
    return val


def fit(folder: Path, *callbacks: Any, module: Any = None, train: Any = None, ckpt_path: Any = None, **options: Any):
    torch.manual_seed(0)
    trainer = quiet_trainer(folder, *callbacks, **options)
    trainer.fit(module or SmallNet(), loader(80) if train is None else train, damaged(), ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize(
    ("module", "train", "found"),
    [(SmallNet, DataLoader(Stream(), 20), "Found DataLoader over Stream"), (NoForward, None, "forward")],
)
def test_a_training_probe_that_cannot_be_run_is_said_with_what_waits(
    tmp_path: Path, module: Any, train: Any, found: str
) -> None:
    ours = watcher(probe="train")
    with pytest.warns(UserWarning, match="could not analyze the filters .*, so nothing is watched") as caught:
        trainer = fit(tmp_path, ours, EarlyStopping("anomaly_filters/rise", patience=9), module=module(), train=train)
    (text,) = said(caught)
    assert found in text
    assert text.endswith("'anomaly_filters/rise' waits in vain.")
    assert ours.report is None
    assert trainer.callback_metrics["anomaly_filters/count"] == 0


def test_what_a_checkpoint_brought_are_the_last_values(tmp_path: Path) -> None:
    saves = ModelCheckpoint(tmp_path)
    fit(tmp_path, first := watcher(probe="train"), saves, max_epochs=1)
    ours = watcher(probe="train")
    with pytest.warns(UserWarning, match="could not analyze .* and logs its last values"):
        fit(tmp_path, ours, module=NoForward(), ckpt_path=saves.best_model_path)
    assert ours.history[1]["metrics"] == first.history[0]["metrics"]


def test_validations_without_a_live_filter_are_no_level_of_a_rise_and_no_report_for_pruning(tmp_path: Path) -> None:
    ours, stops, prune = watcher(), AnomalyEarlyStopping(), AnomalyPruneCallback(at_epoch=2)
    with (
        pytest.warns(UserWarning, match=r"it was never called.* So nothing is watched"),
        pytest.warns(UserWarning, match="has 0 reports as epoch 2 begins"),
    ):
        trainer = fit(tmp_path, ours, stops, prune, module=Late(), max_epochs=16)
    assert trainer.current_epoch == 16
    assert [entry["live"] for entry in ours.history] == [False] * 5 + [True] * 11
    assert [entry["metrics"]["count"] > 0 for entry in ours.history[:8]] == [False] * 5 + [True] * 3
    assert {entry["metrics"]["rise"] for entry in ours.history} == {0}
    assert [event["epoch"] for event in prune.events] == [7]  # three reports, of which two have to agree


@pytest.mark.filterwarnings("ignore:You .* Skipping val loop")
def test_without_validation_there_is_one_warning(tmp_path: Path) -> None:
    class NoStep(SmallNet):
        validation_step = pl.LightningModule.validation_step

    for module, val in ((SmallNet(), None), (NoStep(), loader(seed=1))):
        ours, reads = watcher(), AnomalyEarlyStopping()
        trainer = quiet_trainer(tmp_path, ours, reads)
        with pytest.warns(UserWarning, match="this Trainer has none: ") as caught:
            trainer.fit(module, loader(), val)
        (text,) = said(caught)
        assert text.endswith("'anomaly_filters/rise' waits in vain.")
        assert trainer.current_epoch == 2
        assert ours.history == []
        assert "anomaly_filters/count" not in trainer.callback_metrics
