"""Callbacks do not disturb the user's code, Lightning's or other callbacks."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from acting import GeluNet, fit, probe_loader, pruner
from lightning.fabric import Fabric
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from trainers import SmallNet, images, loader, quiet_trainer

from lightning_anomaly import (
    AnomalyEarlyStopping,
    AnomalyFilterCallback,
    AnomalyPruneCallback,
    MemorizationCallback,
    MemorizationEarlyStopping,
)


class Logs(GeluNet):
    """Logs in `forward` how often it is called in a training epoch."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.log("calls", 1.0, on_step=False, on_epoch=True, reduce_fx="sum", batch_size=1)
        return super().forward(x)


def test_masking_logs_nothing(tmp_path: Path) -> None:
    prune, compared = pruner(1), MemorizationCallback(images(40), images(40, seed=1))
    trainer = fit(tmp_path, Logs(), prune, compared, max_epochs=2)
    assert prune.masked
    assert trainer.callback_metrics["calls"] == 3  # batches


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_a_copied_callback_keeps_its_key_in_checkpoints(tmp_path: Path, copied: Any) -> None:
    compared = MemorizationCallback(images(40), images(40, seed=1))
    trainer = quiet_trainer(tmp_path, compared, max_epochs=1, limit_train_batches=1)
    trainer.fit(SmallNet(), loader(), loader(seed=1))
    assert copied(compared).state_key == compared.state_key == "MemorizationCallback[memorization]"


def test_validating_an_earlier_checkpoint_keeps_the_mask_of_the_fit(tmp_path: Path) -> None:
    model, prune, keep = GeluNet(), pruner(1), ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    trainer = fit(tmp_path, model, prune, keep, max_epochs=2)
    masked = prune.masked
    trainer.validate(model, probe_loader(), ckpt_path=str(tmp_path / "epoch=0.ckpt"), verbose=False)
    assert prune.masked == masked != {}
    assert trainer.callback_metrics["anomaly_prune/masked"] == 0  # of that checkpoint
    assert torch.isfinite(trainer.callback_metrics["val_loss"])


@pytest.mark.parametrize(
    "callback",
    [
        AnomalyFilterCallback(),
        AnomalyPruneCallback(at_epoch=1),
        AnomalyEarlyStopping(),
        MemorizationCallback(),
        MemorizationEarlyStopping(),
    ],
)
def test_fabric_is_refused_when_it_sets_up_a_model(callback: Any) -> None:
    with pytest.raises(TypeError, match=rf"{type(callback).__name__} .* of a Trainer\. Found Fabric"):
        Fabric(accelerator="cpu", callbacks=[callback]).setup(SmallNet())
