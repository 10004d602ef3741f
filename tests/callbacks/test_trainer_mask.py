"""Masked filters stay exactly 0 in a Trainer: in validations, checkpoints, resumed runs and further fits."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from acting import PROBE, GeluNet, ManualNet, fit, leak, probe_loader, pruner
from functional import same
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.optim.swa_utils import get_ema_avg_fn
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset
from trainers import hook_count, images, quiet_trainer, watcher

from lightning_anomaly import AnomalyPruneCallback, MemorizationCallback


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01, weight_decay=0.1)


class Watching(pl.Callback):
    """Fails if a masked filter gives anything but 0, or has a gradient when gradients are clipped."""

    def __init__(self, prune: AnomalyPruneCallback) -> None:
        self.prune = prune
        self.batches = 0
        self.validated: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.prune.masked:
            assert leak(pl_module, self.prune.masked) == 0
            self.batches += 1

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        for layer, filters in self.prune.masked.items():
            bias = getattr(pl_module, layer).bias
            assert bias.grad is None or bias.grad[filters].count_nonzero() == 0

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        assert leak(pl_module, self.prune.masked) == 0

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.validated.append(copy.deepcopy(pl_module.state_dict()))


@pytest.mark.parametrize(
    ("make", "options"),
    [(lambda: GeluNet(adam), {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}), (ManualNet, {})],
    ids=["automatic", "manual"],
)
def test_outputs_stay_exactly_0_in_a_fit(tmp_path: Path, make: Any, options: dict[str, Any]) -> None:
    prune, model = pruner(1), make()
    seen = Watching(prune)
    fit(tmp_path, model, prune, seen, max_epochs=4, **options)
    assert seen.batches == 3 * 3
    assert leak(model, prune.masked) == 0
    assert len(prune.masked) >= 2
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


class Buffered(GeluNet):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("attention_mask", torch.ones(3))
        self.conv1.register_buffer("weight_mask", torch.ones(2))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A fit that masks before epochs 1 and 2 of 4, and its checkpoint of each epoch."""
    folder = tmp_path_factory.mktemp("run")
    prune, model = pruner(1, max_fraction=0.34), Buffered()
    seen, saving = Watching(prune), ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
    fit(folder, model, prune, seen, saving, max_epochs=4)
    saved = [torch.load(folder / f"epoch={epoch}.ckpt", weights_only=True) for epoch in range(4)]
    return SimpleNamespace(model=model, prune=prune, seen=seen, saved=saved)


def test_filters_of_all_layers_are_masked_within_the_limit(run: SimpleNamespace) -> None:
    sizes = {"conv1": 6, "conv2": 8, "up": 4}
    assert set(run.prune.masked) == {*sizes}
    assert leak(run.model, run.prune.masked) == 0
    assert all(len(filters) <= 0.34 * sizes[layer] for layer, filters in run.prune.masked.items())


def test_checkpoints_are_ordinary_and_have_the_validated_weights(run: SimpleNamespace) -> None:
    for epoch, validated in enumerate(run.seen.validated):
        saved = run.saved[epoch]["state_dict"]
        assert same(saved, validated)
        assert list(saved) == list(Buffered().state_dict())
        assert torch.equal(saved["attention_mask"], torch.ones(3))
        assert torch.equal(saved["conv1.weight_mask"], torch.ones(2))
    plain = Buffered()
    plain.load_state_dict(run.saved[3]["state_dict"])
    assert torch.equal(plain.eval()(PROBE), copy.deepcopy(run.model).eval()(PROBE))
    assert run.saved[3]["callbacks"][run.prune.state_key]["mask"] == {
        "filters": run.prune.masked,
        "zeros": {"norm1": run.prune.masked["conv1"]},
    }


@pytest.mark.parametrize(("save", "masked_at"), [("at the end of epoch 1", 2), ("in the middle of epoch 1", 1)])
def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(tmp_path: Path, save: str, masked_at: int) -> None:
    def train(folder: str, **options: Any) -> tuple[GeluNet, AnomalyPruneCallback]:
        steps = {"every_n_train_steps": 5} if "middle" in save else {"every_n_epochs": 2}
        saving = ModelCheckpoint(tmp_path / folder, save_top_k=-1, **steps)
        prune, model = pruner(masked_at), GeluNet(adam)
        seen = Watching(prune)
        trainer = quiet_trainer(tmp_path, prune, watcher(), seen, saving, num_sanity_val_steps=0, max_epochs=4)
        # Three times the same batch, because a resumed Lightning restarts the data of an epoch.
        batches = DataLoader(ConcatDataset([TensorDataset(images(20), torch.arange(20) % 3)] * 3), batch_size=20)
        trainer.fit(model, batches, probe_loader(), **options)
        assert seen.batches > 0
        assert leak(model, prune.masked) == 0
        return model, prune

    whole, pruned = train("whole")
    (saved,) = (path for path in (tmp_path / "whole").iterdir() if path.name.startswith("epoch=1"))
    with pytest.warns(UserWarning, match="The dirpath has changed"):
        resumed, again = train("resumed", ckpt_path=saved)
    assert again.masked == pruned.masked
    assert same(resumed.state_dict(), whole.state_dict())


def test_a_second_fit_keeps_the_mask_and_another_model_starts_without(tmp_path: Path, caplog: Any) -> None:
    caplog.set_level("INFO")
    prune, watching, model = pruner(1), watcher(), GeluNet()
    fit(tmp_path, model, prune, watching)
    masked = prune.masked
    fit(tmp_path, model, prune, watching)
    assert ["before epoch 1" in text for text in caplog.messages if "Prune" in text] == [True] * 2
    assert all(set(filters) <= set(prune.masked[layer]) for layer, filters in masked.items())
    assert leak(model, prune.masked) == 0
    fit(tmp_path, other := GeluNet(), prune, watching, max_epochs=1)
    assert prune.masked == {}
    assert all((other.conv1.weight[i] != 0).any() for i in range(6))


def test_a_validation_logs_the_mask_of_its_model(tmp_path: Path) -> None:
    prune, model = pruner(1), GeluNet()
    before = copy.deepcopy(model.state_dict())
    fit(tmp_path, model, prune, ModelCheckpoint(tmp_path / "saved", save_last=True))

    def validated(prune: AnomalyPruneCallback, model: GeluNet, path: Path | None = None) -> dict[str, float]:
        trainer = quiet_trainer(tmp_path, prune, watcher())
        (found,) = trainer.validate(model, probe_loader(), path, verbose=False)
        return {key.removeprefix("anomaly_prune/"): value for key, value in found.items() if "prune" in key}

    count, fraction = sum(map(len, prune.masked.values())), pytest.approx(prune.mask.parameter_fraction)
    assert validated(prune, model) == {"masked": count, "masked_fraction": fraction}
    fresh, loaded = pruner(1), GeluNet()
    assert validated(fresh, loaded, tmp_path / "saved" / "last.ckpt") == {"masked": count, "masked_fraction": fraction}
    assert fresh.masked == prune.masked
    assert hook_count(loaded) == 0
    model.load_state_dict(before)
    for other in (GeluNet(), model):
        assert validated(prune, other) == {"masked": 0, "masked_fraction": 0}


class Replacing(pl.Callback):
    """Validates the initial weights instead of the current ones."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.kept = copy.deepcopy(pl_module.state_dict())

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.current = copy.deepcopy(pl_module.state_dict())
        pl_module.load_state_dict(self.kept)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.load_state_dict(self.current)


def average() -> Any:
    if not hasattr(lightning_callbacks, "WeightAveraging"):
        pytest.skip("this Lightning has no WeightAveraging")
    return lightning_callbacks.WeightAveraging(avg_fn=get_ema_avg_fn(0.9))


@pytest.mark.parametrize("make", [Replacing, average], ids=["replaced", "averaged"])
def test_masked_filters_that_come_back_give_one_warning(tmp_path: Path, make: Any) -> None:
    other = make()
    with pytest.warns(UserWarning, match="not at zero") as caught:
        fit(tmp_path, GeluNet(), pruner(1), other, max_epochs=3)
    assert len([warning for warning in caught if "at zero" in str(warning.message)]) == 1


def test_validating_an_earlier_checkpoint_keeps_the_mask_of_the_fit(tmp_path: Path) -> None:
    model, prune, keep = GeluNet(), pruner(1), ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    trainer = fit(tmp_path, model, prune, keep, max_epochs=2)
    masked = prune.masked
    trainer.validate(model, probe_loader(), ckpt_path=str(tmp_path / "epoch=0.ckpt"), verbose=False)
    assert prune.masked == masked != {}
    assert trainer.callback_metrics["anomaly_prune/masked"] == 0  # of that checkpoint
    assert torch.isfinite(trainer.callback_metrics["val_loss"])


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
