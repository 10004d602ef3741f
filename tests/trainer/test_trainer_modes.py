"""Ways to run a Trainer: validation intervals, several loaders, precisions, other callbacks and copies of ours."""

from typing import Any

import lightning.pytorch as pl
import lightning.pytorch.callbacks as pl_callbacks
import pytest
import torch
from lightning.fabric import Fabric
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, StochasticWeightAveraging
from reports import facts
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from trainers import SmallNet, fit, hook_count, loader, plain, quiet_trainer, watcher

from lightning_anomaly import (
    AnomalyEarlyStopping,
    AnomalyFilterCallback,
    AnomalyPruneCallback,
    MemorizationCallback,
    MemorizationEarlyStopping,
)

COUNT = "anomaly_filters/count"

INTERVALS = {
    "each epoch": ({}, 4),
    "twice an epoch": ({"val_check_interval": 0.5}, 8),
    # Without a sanity check, there is no loader when a fit begins.
    "every second epoch": ({"check_val_every_n_epoch": 2, "num_sanity_val_steps": 0}, 2),
    "by steps": ({"check_val_every_n_epoch": None, "val_check_interval": 3}, 5),
}


@pytest.mark.parametrize(("interval", "place"), list(zip(INTERVALS, ["first", "last", "first", "last"], strict=True)))
def test_early_stopping_and_checkpoints_read_every_value(tmp_path: Any, interval: str, place: str) -> None:
    class Reads(EarlyStopping):
        seen: list[float]

        def _run_early_stopping_check(self, trainer: Any) -> None:
            self.seen.append(trainer.callback_metrics[self.monitor].item())
            super()._run_early_stopping_check(trainer)

    options, validations = INTERVALS[interval]
    ours, stopping = watcher(), Reads(COUNT, patience=100)
    stopping.seen = []
    saving = ModelCheckpoint(tmp_path, "{epoch}-{step}-{anomaly_filters/count}", monitor=COUNT, save_top_k=-1)
    others = [stopping, saving]
    fit(tmp_path, *([ours, *others] if place == "first" else [*others, ours]), max_epochs=4, **options)
    counts = [entry["metrics"]["count"] for entry in ours.history]
    assert len(counts) == validations
    assert stopping.seen == counts
    assert sorted(value.item() for value in saving.best_k_models.values()) == sorted(counts)


def test_sanity_checks_log_nothing_and_validations_outside_a_fit_have_no_history(tmp_path: Any) -> None:
    class AfterSanityCheck(pl.Callback):
        def on_sanity_check_end(self, trainer: Any, pl_module: Any) -> None:
            assert ours.history == []
            assert not any(key.startswith("anomaly") for key in {**trainer.callback_metrics, **trainer.logged_metrics})
            checked.append(hook_count(pl_module))

    checked: list[int] = []
    ours, module = watcher(every_n_validations=2), SmallNet()
    trainer = quiet_trainer(tmp_path, ours)
    (result,) = trainer.test(module, loader(seed=1), verbose=False)
    assert list(result) == ["test_loss"]
    assert ours.report is None
    (result,) = trainer.validate(module, loader(seed=1), verbose=False)
    assert result[COUNT] == ours.report.count
    for layer in ours.report.layers.values():
        assert not any(part.is_inference() for part in (layer.points, layer.clusters))

    trainer = fit(tmp_path, ours, AfterSanityCheck(), module=module, num_sanity_val_steps=2, max_epochs=1)
    assert checked == [0]
    history, report = list(ours.history), ours.report
    assert len(history) == 1
    (result,) = trainer.validate(module, loader(seed=1), verbose=False)
    assert ours.history == history
    assert ours.report is not report
    assert facts(ours.report) == facts(report)
    assert result[COUNT] == report.count
    assert hook_count(module) == 0

    black = DataLoader(TensorDataset(torch.zeros(60, 1, 8, 8), torch.arange(60) % 3), batch_size=20)
    (result,) = trainer.validate(module, black, verbose=False)
    assert result["anomaly_filters/dead"] == 10
    trainer.fit_loop.max_epochs, trainer.num_sanity_val_steps = 2, 0
    trainer.fit(module, loader(80), loader(seed=1))
    assert [entry["analyzed"] for entry in ours.history] == [True, False]
    assert ours.history[1]["metrics"] == ours.history[0]["metrics"]  # not those of the black images


def test_fast_dev_run_analyzes_its_batch_without_warnings_and_files(tmp_path: Any) -> None:
    ours = watcher(log_figures=True)
    trainer = fit(tmp_path, ours, fast_dev_run=True, logger=True)
    assert ours.report.n_samples == 20
    assert COUNT in trainer.callback_metrics
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:Your `val_dataloader`'s sampler has shuffling enabled")
def test_the_first_of_several_validation_loaders_is_the_probe(tmp_path: Any) -> None:
    ours = watcher()
    trainer = fit(tmp_path, ours, val={"a": loader(seed=1), "b": loader(40, seed=2, shuffle=True)})
    assert {COUNT, "val_loss/dataloader_idx_1"} <= set(trainer.callback_metrics)
    report = ours.report
    trainer.validate(trainer.lightning_module, loader(seed=1), verbose=False)
    assert ours.report is not report
    assert facts(ours.report) == facts(report)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_reports_are_float32_in_every_precision(tmp_path: Any, precision: str) -> None:
    ours, exact = watcher(), watcher()
    outputs: list[torch.dtype] = []

    class Dtypes(SmallNet):
        def forward(self, x: Tensor) -> Tensor:
            outputs.append(self.conv1(x).dtype)
            return super().forward(x)

    trainer = fit(tmp_path, ours, module=Dtypes(), precision=precision, max_epochs=1)
    assert set(outputs) == {torch.float64 if precision == "64-true" else torch.bfloat16}
    fit(tmp_path, exact, max_epochs=1)
    for name, layer in ours.report.layers.items():
        assert torch.allclose(layer.sparsity, exact.report.layers[name].sparsity, atol=0.05)
        assert layer.points.dtype == torch.float32
    assert trainer.callback_metrics[COUNT] == ours.report.count


def ema() -> pl.Callback:
    if not hasattr(pl_callbacks, "EMAWeightAveraging"):
        pytest.skip("this Lightning has no EMAWeightAveraging")
    return pl_callbacks.EMAWeightAveraging(decay=0.8)


def swa() -> pl.Callback:
    return StochasticWeightAveraging(0.05, swa_epoch_start=1, annealing_epochs=1)


@pytest.mark.parametrize("average", [swa, ema])
def test_weight_averaging_before_or_after_ours_gives_the_same_report(tmp_path: Any, average: Any) -> None:
    def run(*callbacks: Any) -> AnomalyFilterCallback:
        (ours,) = (c for c in callbacks if isinstance(c, AnomalyFilterCallback))
        trainer = fit(tmp_path, *callbacks, max_epochs=4)
        assert hook_count(trainer.lightning_module) == 0
        return ours

    first, last = run(watcher(), average()), run(average(), watcher())
    assert plain(first.history) == plain(last.history)
    assert facts(first.report) == facts(last.report)
    assert plain(first.history) != plain(run(watcher()).history)


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
