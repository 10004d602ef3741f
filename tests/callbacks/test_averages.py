"""Averages of the weights do not bring masked filters back, or a warning says that they may."""

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from acting import GeluNet, fit, leak, pruner
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn
from trainers import QUIET

pytestmark = QUIET

needs_averaging = pytest.mark.skipif(not hasattr(callbacks, "WeightAveraging"), reason="lightning < 2.6")


def ema() -> Any:
    return callbacks.WeightAveraging(avg_fn=get_ema_avg_fn(0.9))


class Validated(pl.Callback):
    """How much leaks out of masked filters while the averaged weights are validated."""

    def __init__(self, prune: Any) -> None:
        self.prune = prune
        self.leaks: list[int] = []

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if self.prune.masked:
            self.leaks.append(leak(pl_module, self.prune.masked))


@needs_averaging
@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_ema_is_masked_too(tmp_path: Path, first: bool) -> None:
    prune, model = pruner(2), GeluNet()
    seen, saving = Validated(prune), ModelCheckpoint(tmp_path / "saved", save_last=True)
    fit(tmp_path, model, *([ema(), prune] if first else [prune, ema()]), seen, saving, max_epochs=5)
    assert seen.leaks == [0] * 6
    assert leak(model, prune.masked) == 0
    saved = torch.load(tmp_path / "saved" / "last.ckpt", weights_only=True)
    for key in ("state_dict", "current_model_state"):
        loaded = GeluNet()
        loaded.load_state_dict(saved[key])
        assert leak(loaded, prune.masked) == 0


@needs_averaging
def test_ema_is_masked_after_a_resume(tmp_path: Path) -> None:
    fit(tmp_path, GeluNet(), pruner(1), ema(), ModelCheckpoint(tmp_path / "saved", save_last=True), max_epochs=2)
    prune, model = pruner(1), GeluNet()
    seen = Validated(prune)
    with pytest.warns(UserWarning, match="callbacks used to create the checkpoint"):
        fit(tmp_path, model, prune, ema(), seen, max_epochs=4, ckpt_path=tmp_path / "saved" / "last.ckpt")
    assert seen.leaks == [0] * 4
    assert leak(model, prune.masked) == 0


@pytest.mark.parametrize("masked_at", [1, 3, 4], ids="masked before epoch {}".format)
@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_swa_is_masked_too(tmp_path: Path, first: bool, masked_at: int) -> None:
    """SWA averages from epoch 2 on, and has an epoch more for the BatchNorm."""
    prune, model = pruner(masked_at), GeluNet()
    swa = StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=3, annealing_epochs=1)
    seen = Validated(prune)
    fit(tmp_path, model, *([swa, prune] if first else [prune, swa]), seen, max_epochs=6)
    assert prune.masked
    assert seen.leaks
    assert set(seen.leaks) == {0}
    assert leak(model, prune.masked) == 0


class Elsewhere(pl.Callback):
    """Averages a part of the model under other names."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.average = AveragedModel(pl_module.conv1)


def test_an_average_with_other_names_is_told(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Elsewhere averages a model that does not have the masked layers"):
        fit(tmp_path, GeluNet(), pruner(1), Elsewhere())


def test_an_average_inside_the_module_is_told(tmp_path: Path) -> None:
    class Holding(GeluNet):
        def __init__(self) -> None:
            super().__init__()
            self.average = AveragedModel(nn.Linear(2, 2))

    with pytest.warns(UserWarning, match="The module has an AveragedModel among its layers"):
        fit(tmp_path, Holding(), pruner(1))


class Replacing(pl.Callback):
    """Validates and ends with weights that it kept in a way of its own."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.kept = copy.deepcopy(pl_module.state_dict())

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.current = copy.deepcopy(pl_module.state_dict())
        pl_module.load_state_dict(self.kept)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.load_state_dict(self.current)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.load_state_dict(self.kept)


def test_weights_that_come_back_in_an_unknown_way_are_told_when_they_are_there(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Masked filters were not at zero") as caught:
        fit(tmp_path, GeluNet(), pruner(1), Replacing())
    said = [str(warning.message) for warning in caught if "at zero" in str(warning.message)]
    assert [text.split(":")[0] for text in said] == [
        "Masked filters were not at zero in a validation",
        "Masked filters were not at zero at the end of the fit",
    ]


def test_another_network_in_a_callback_is_not_touched(tmp_path: Path) -> None:
    class Teaching(pl.Callback):
        def __init__(self) -> None:
            self.teacher = GeluNet()

    teaching, prune = Teaching(), pruner(1)
    before = copy.deepcopy(teaching.teacher.state_dict())
    fit(tmp_path, GeluNet(), prune, teaching)
    assert prune.masked
    assert all(torch.equal(value, before[name]) for name, value in teaching.teacher.state_dict().items())
