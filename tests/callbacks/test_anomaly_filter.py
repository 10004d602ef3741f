"""The arguments, logs and history of AnomalyFilterCallback, with real Trainers."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import TensorBoardLogger
from reports import facts
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from trainers import FakeTrainer, SmallNet, Values, fit, loader, plain, quiet_trainer, watcher

from lightning_anomaly import AnomalyReport

METRICS = {"count", "fraction", "isolated", "dead", "sparsity", "outlier_samples", "rise", "seconds"}
LAYERS = {"layer/conv1", "layer/conv2"}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Three epochs with six validations, and TensorBoard's file."""
    folder = tmp_path_factory.mktemp("fitted")
    logger = TensorBoardLogger(folder)
    ours, values, module = watcher(), Values(), SmallNet()
    module.allow_zero_length_dataloader_with_multiple_devices = True  # one process has all batches
    options = {"max_epochs": 3, "val_check_interval": 0.5, "logger": logger}
    trainer = fit(folder, ours, values, module=module, **options)
    events = EventAccumulator(logger.log_dir).Reload()
    return SimpleNamespace(ours=ours, values=values.seen, events=events, bar=trainer.progress_bar_metrics)


def test_every_validation_logs_finite_floats_and_stores_plain_values(fitted: SimpleNamespace) -> None:
    history, report = fitted.ours.history, fitted.ours.report
    assert len(history) == 6
    assert len(fitted.values) == 3
    for seen, entry in zip(fitted.values, history[1::2], strict=True):
        logged = {k.replace("_layers/", "/layer/").partition("/")[2]: v for k, v in seen.items() if "anomaly" in k}
        assert set(logged) == METRICS | LAYERS == set(entry["metrics"])
        assert all(value.is_floating_point() and math.isfinite(value) for value in logged.values())
        assert {k: pytest.approx(v) for k, v in entry["metrics"].items()} == {k: v.item() for k, v in logged.items()}
        assert all(type(value) is float for value in entry["metrics"].values())
    assert [(entry["epoch"], entry["step"]) for entry in history] == [(i // 2, 2 * i + 2) for i in range(6)]
    assert isinstance(report, AnomalyReport)
    assert report.n_samples == 60
    assert history[-1]["metrics"]["count"] == report.count
    for name in ("conv1", "conv2"):
        assert history[-1]["metrics"][f"layer/{name}"] == len(report.anomaly_filters.get(name, []))
    assert fitted.bar == {"anomaly_filters/count": report.count}
    assert not any(layer.points.is_inference() for layer in report.layers.values())


def test_curves_have_the_steps_of_the_validation_loss(fitted: Any) -> None:
    def steps(tag: str) -> list[int]:
        return [event.step for event in fitted.events.Scalars(tag)]

    validations = steps("val_loss")
    assert validations == [1, 3, 5, 7, 9, 11]
    assert steps("anomaly_filters/count") == validations == steps("anomaly_filters_layers/conv1")
    assert set(steps("train_loss")) & set(validations)


class BuiltInSetup(SmallNet):
    def setup(self, stage: str) -> None:
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.conv3 = nn.Conv2d(1, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.conv3(x).mean()


def test_layer_names_are_checked_before_training(tmp_path: Any) -> None:
    trainer = quiet_trainer(tmp_path, watcher(layers=["conv9"]))
    with pytest.raises(ValueError, match=r"`layers` .*Found \['conv9'\].*\['conv1', 'conv2', 'conv3'\]"):
        trainer.fit(BuiltInSetup(), loader(), loader())
    assert trainer.global_step == 0


class Deep(SmallNet):
    """Has thirteen convolutions, one more than are logged by default."""

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Sequential(*(nn.Conv2d(1, 1, 1) for _ in range(11)))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.more(x))


def test_every_fit_logs_its_own_layers_but_many_only_if_they_are_named(tmp_path: Any) -> None:
    callback, two = watcher(), ["conv1", "conv2"]
    all_layers = [*two, *(f"more.{index}" for index in range(11))]
    for ours, module, layers in (
        (callback, BuiltInSetup(), [*two, "conv3"]),
        (callback, SmallNet(), two),
        (callback, Deep(), []),
        (watcher(layers=all_layers), Deep(), all_layers),
    ):
        trainer = fit(tmp_path, ours, module=module, max_epochs=1)
        logged = {key for key in trainer.callback_metrics if "_layers/" in key}
        assert logged == {f"anomaly_filters_layers/{layer}" for layer in layers}
    assert len(callback.report.layers) == 13


def test_several_callbacks_have_independent_layers(tmp_path: Any) -> None:
    alone, late = (watcher(layers=["conv2"], log_key_prefix="late") for _ in range(2))
    both, early = watcher(), watcher(layers=["conv1"], log_key_prefix="early")
    fit(tmp_path, alone)
    logged = fit(tmp_path, early, both, late).callback_metrics
    assert {"early_layers/conv1", "late_layers/conv2", "anomaly_filters_layers/conv1"} <= set(logged)
    assert not {"late_layers/conv1", "early_layers/conv2"} & set(logged)
    assert plain(late.history) == plain(alone.history)
    assert facts(late.report) == facts(alone.report)
    assert list(both.report.layers) == ["conv1", "conv2"]
    with pytest.raises(MisconfigurationException, match=r"`log_key_prefix` .*Found 'anomaly_filters' twice"):
        fit(tmp_path, watcher(), watcher())


def test_processes_without_validations_are_refused() -> None:
    module = SmallNet()
    module.allow_zero_length_dataloader_with_multiple_devices = True
    trainer = FakeTrainer(callbacks=[], datamodule=None, world_size=2)
    with pytest.raises(MisconfigurationException, match=r"every process\. Found `allow_zero_length"):
        watcher().setup(trainer, module, "fit")
    watcher().setup(trainer, module, "test")
