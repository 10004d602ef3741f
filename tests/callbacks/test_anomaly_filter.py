"""The arguments, logs, history and warnings of AnomalyFilterCallback, with real Trainers."""

import math
import re
import warnings
from collections import OrderedDict
from time import perf_counter
from types import SimpleNamespace
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numba.core.event
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from trainers import (
    QUIET,
    Flagged,
    SmallNet,
    arguments,
    fit,
    hook_count,
    images,
    loader,
    plain,
    quiet_trainer,
    said,
    watcher,
)

from lightning_anomaly import (
    AnalysisSettings,
    AnomalyEarlyStopping,
    AnomalyFilterCallback,
    AnomalyPruneCallback,
    AnomalyReport,
    TwoSampleCallback,
)
from lightning_anomaly.clustering import numba_engine

pytestmark = QUIET

METRICS = {"count", "fraction", "isolated", "dead", "sparsity", "outlier_samples", "outlier_score", "rise", "seconds"}
LAYERS = {"layer/conv1", "layer/conv2"}


class Values(pl.Callback):
    """Keeps the logged values at the end of each training epoch."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.seen.append(dict(trainer.callback_metrics))


class Fitted(NamedTuple):
    """Three epochs with six validations, one outlier in the probe, and TensorBoard's file."""

    ours: AnomalyFilterCallback
    values: list[dict[str, Any]]
    flagged: list[dict[str, list[int]]]
    events: EventAccumulator
    bar: dict[str, Any]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    folder = tmp_path_factory.mktemp("fitted")
    logger, probe = TensorBoardLogger(folder), loader(seed=1)
    probe.dataset.tensors[0][7] *= 20
    ours, values, module = watcher(log_figures=True), Values(), SmallNet()
    module.allow_zero_length_dataloader_with_multiple_devices = True  # one process has all batches
    flagged = Flagged(ours)
    options = {"max_epochs": 3, "val_check_interval": 0.5, "logger": logger}
    trainer = fit(folder, ours, values, flagged, module=module, val=probe, **options)
    events = EventAccumulator(logger.log_dir, {"images": 0}).Reload()
    return Fitted(ours, values.seen, flagged.filters, events, trainer.progress_bar_metrics)


def test_every_validation_logs_finite_floats_and_stores_plain_values(fitted: Fitted) -> None:
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
    assert set(fitted.bar) == {"anomalies"}
    assert f"{fitted.bar['anomalies']:.3f}" == str(report.count)
    assert not any(layer.points.is_inference() for layer in report.layers.values())


def test_a_history_has_all_counts_and_the_filters_of_the_last_validation(fitted: Fitted) -> None:
    assert fitted.ours.history[-1]["anomaly_filters"] == fitted.ours.report.anomaly_filters == fitted.flagged[-1]
    assert not any("anomaly_filters" in entry for entry in fitted.ours.history[:-1])
    for entry, flagged in zip(fitted.ours.history, fitted.flagged, strict=True):
        assert [entry["metrics"][layer] for layer in sorted(LAYERS)] == [
            len(flagged.get(name, [])) for name in ("conv1", "conv2")
        ]


def test_curves_have_the_steps_of_the_validation_loss_and_figures_come_at_powers_of_two(fitted: Fitted) -> None:
    def steps(tag: str) -> list[int]:
        return [event.step for event in fitted.events.Scalars(tag)]

    validations = steps("val_loss")
    assert validations == [1, 3, 5, 7, 9, 11]
    assert steps("anomaly_filters/count") == validations == steps("anomaly_filters_layers/conv1")
    assert set(steps("train_loss")) & set(validations)
    assert fitted.ours.report.outlier_samples[7] > 0
    for name in ("verdicts", "filters", "outliers", "curves"):
        drawn = [event.step for event in fitted.events.Images(f"anomaly_filters/{name}")]
        assert drawn == [validations[i] for i in (0, 1, 3, 5)], name


class Clock(pl.Callback):
    """Measures the time between the last batch of a validation and its end."""

    def on_validation_batch_end(self, *args: Any) -> None:
        self.start = perf_counter()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.seconds = perf_counter() - self.start


def test_seconds_do_not_include_compilation_by_numba(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = numba.njit(nogil=True)(numba_engine.lloyd.py_func)
    monkeypatch.setattr(numba_engine, "lloyd", fresh)
    clock, ours, compiled = Clock(), watcher(), []
    with numba.core.event.install_timer("numba:compile", compiled.append):
        fit(tmp_path, clock, ours, max_epochs=1)
    assert len(compiled) == 1
    assert 0 < ours.history[0]["metrics"]["seconds"] < clock.seconds - compiled[0]


# Arguments.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probe": "test"}, "`probe` .* Found `probe = 'test'`"),
        ({"probe_size": 49}, "at least 50. Found `probe_size = 49`"),
        ({"every_n_validations": 0}, "Found `every_n_validations = 0`"),
        ({"log_key_prefix": ""}, "`log_key_prefix` .* Found ''"),
        ({"layers": "conv1"}, "`layers` .* Found 'conv1'"),
        ({"signal_layers": []}, r"`signal_layers` .* Found \[\]"),
        ({"log_figures": 1}, "`log_figures` "),
        ({"browser": "no"}, "`browser` "),
    ],
)
def test_the_constructor_names_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnomalyFilterCallback(**arguments(options))


def test_a_repr_has_the_arguments_that_differ_from_the_defaults() -> None:
    assert repr(AnomalyFilterCallback()) == "AnomalyFilterCallback()"
    named = AnomalyFilterCallback(layers=["a"], probe_size=200, settings=AnalysisSettings(seed=3))
    assert repr(named) == f"AnomalyFilterCallback(layers=['a'], probe_size=200, settings={AnalysisSettings(seed=3)!r})"
    assert repr(AnomalyPruneCallback([3, 5])) == "AnomalyPruneCallback(at_epoch=[3, 5])"
    assert "train_inputs=<(60, 1, 8, 8)>" in repr(TwoSampleCallback(images(60), images(80)))


class BuiltInSetup(SmallNet):
    def setup(self, stage: str) -> None:
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.conv3 = nn.Conv2d(1, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.conv3(x).mean()


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (SmallNet, {"layers": ["conv9"]}, r"`layers` .*Found \['conv9'\].*\['conv1', 'conv2'\]"),
        (BuiltInSetup, {"layers": ["conv9"]}, r"`layers` .*Found \['conv9'\].*'conv3'"),
        (SmallNet, {"layers": ["conv1"], "signal_layers": ["conv1", "conv2"]}, r"\['conv1'\]. Found \['conv2'\]"),
    ],
)
def test_layer_names_are_checked_before_training(tmp_path: Any, module: Any, options: Any, message: str) -> None:
    trainer = quiet_trainer(tmp_path, watcher(**options))
    with pytest.raises(ValueError, match=message):
        trainer.fit(module(), loader(), loader())
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


def test_several_callbacks_have_independent_layers_signals_and_probes(tmp_path: Any) -> None:
    alone, late = (watcher(layers=["conv2"], log_key_prefix="late") for _ in range(2))
    both, early = watcher(signal_layers=["conv2"]), watcher(probe="train", layers=["conv1"], log_key_prefix="early")
    fit(tmp_path, alone)
    logged = fit(tmp_path, early, both, late).callback_metrics
    assert {"early_layers/conv1", "late_layers/conv2", "anomaly_filters_layers/conv1"} <= set(logged)
    assert not {"late_layers/conv1", "early_layers/conv2"} & set(logged)
    assert plain(late.history) == plain(alone.history)
    assert late.report.to_dict() == alone.report.to_dict()
    assert list(both.report.layers) == ["conv1", "conv2"]
    assert both.history[-1]["signal"] == both.report.fraction_in(["conv2"])
    assert late.history[-1]["signal"] == late.report.fraction
    with pytest.raises(ValueError, match=r"`log_key_prefix` .*Found 'anomaly_filters' twice"):
        fit(tmp_path, watcher(), watcher(probe="train"))


def test_processes_without_validations_are_refused() -> None:
    module = SmallNet()
    module.allow_zero_length_dataloader_with_multiple_devices = True
    trainer = SimpleNamespace(callbacks=[], datamodule=None, world_size=2)
    with pytest.raises(ValueError, match=r"every process\. Found `allow_zero_length"):
        watcher().setup(trainer, module, "fit")
    watcher().setup(trainer, module, "test")


# Warnings and failures.


class NoConvolution(SmallNet):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm, self.conv2 = nn.Identity(), nn.Identity(), nn.Identity()
        self.head = nn.Linear(1, 3)


class Teacher(SmallNet):
    """Has a second network that validations do not call, like averaged weights or a perceptual loss."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.ModuleList(nn.Conv2d(1, 2, 1) for _ in range(9))


class Diverges(SmallNet):
    def __init__(self) -> None:
        super().__init__()
        nn.init.constant_(self.conv1.weight, math.nan)


WAITS = "Nothing is watched.* 'anomaly_filters/count' will only see a constant"


@pytest.mark.parametrize(
    ("module", "options", "val", "message"),
    [
        (SmallNet, {}, {"shuffle": True}, 'validation loader shuffles.*`probe = "train"`'),
        (SmallNet, {"probe_size": 70}, {}, r"60 samples, fewer than `probe_size = 70`\.$"),
        (SmallNet, {"probe_size": 512, "rare_fraction": 0.01}, {}, f"60 samples, .*at least 100 are needed.*{WAITS}"),
        (NoConvolution, {}, {}, f"The model has no convolution.*{WAITS}"),
        (Teacher, {}, {}, "Layer 'teacher.0' .* never called.* The same holds for 'teacher.1', .* 3 more"),
        (Diverges, {}, {}, f"Layer 'conv1': 4 of 4 filters .* The same holds for 'conv2'.*{WAITS}"),
    ],
)
def test_each_problem_is_one_warning(tmp_path: Any, module: Any, options: Any, val: Any, message: str) -> None:
    callback, values, waits = watcher(**options), Values(), EarlyStopping("anomaly_filters/count", patience=100)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fit(tmp_path, callback, values, waits, module=module(), val=loader(**val), max_epochs=3)
    (text,) = said(caught)
    assert re.search(message, text)
    assert trainer.current_epoch == len(callback.history) == 3
    assert callback.report is not None
    assert all(math.isfinite(seen[key]) for seen in values.seen for key in seen if key.startswith("anomaly_filters/"))


class Wraps(SmallNet):
    """Renames its layer `body.conv` to `body.inner.conv`, so that the watched layer is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 1, 3, padding=1)))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.body(x))

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.body = nn.Sequential(OrderedDict(inner=self.body))


def test_an_analysis_that_fails_warns_once_and_logs_the_last_values_or_raises(tmp_path: Any) -> None:
    ours, values, module = watcher(layers=["body.conv"]), Values(), Wraps()
    compared = TwoSampleCallback(images(60) + 0.1, images(80, seed=1), layers=["body.conv"])
    with pytest.warns(UserWarning, match="could not .* last values") as caught:
        trainer = fit(tmp_path, ours, compared, values, module=module, max_epochs=3)
    assert [text.split()[0] for text in said(caught)] == ["AnomalyFilterCallback", "TwoSampleCallback"]
    assert trainer.current_epoch == len(ours.history) == len(compared.history) == 3
    for callback in (ours, compared):
        assert callback.history[2]["metrics"] == callback.history[0]["metrics"]
    assert all(values.seen[0][key] == values.seen[2][key] for key in values.seen[0] if "anomaly" in key)
    assert hook_count(module) == 0
    ours = watcher(layers=["body.conv"])
    ours.on_error = "raise"
    trainer = quiet_trainer(tmp_path, ours, max_epochs=3)
    with pytest.raises(ValueError, match=r"`layers` .* Found \['body.conv'\]"):
        trainer.fit(module := Wraps(), loader(), loader())
    assert trainer.current_epoch == 1
    assert hook_count(module) == 0


class Late(SmallNet):
    """Uses its convolutions from the sixth epoch on and gives them NaN in the ninth; learns nothing."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        x = batch[0] * math.nan if self.current_epoch == 8 else batch[0]
        early = self.current_epoch < 5
        self.log("val_loss", self.head(x.flatten(1)[:, :6]).mean() if early else self.loss([x, batch[1]]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_a_failed_analysis_repeats_values_and_counts_neither_for_a_rise_nor_as_a_report(tmp_path: Any) -> None:
    ours, prune = watcher(), AnomalyPruneCallback(at_epoch=2)
    probe = loader(seed=1)
    probe.dataset.tensors[0][[3, 20, 41]] *= 20  # outliers of all filters
    with (
        pytest.warns(UserWarning, match="it was never called.* Nothing is watched"),
        pytest.warns(UserWarning, match="has 0 reports as epoch 2 begins"),
        pytest.warns(UserWarning, match="NaN.* The last values are logged again"),
    ):
        trainer = fit(tmp_path, ours, AnomalyEarlyStopping(), prune, module=Late(), val=probe, max_epochs=16)
    assert trainer.current_epoch == 16
    assert [entry["live"] for entry in ours.history] == [False] * 5 + [True] * 3 + [False] + [True] * 7
    assert [entry["metrics"]["count"] > 0 for entry in ours.history[:8]] == [False] * 5 + [True] * 3
    assert [entry["analysed"] for entry in ours.history].index(False) == 8
    assert ours.history[8]["metrics"] == ours.history[7]["metrics"]
    assert {entry["metrics"]["rise"] for entry in ours.history} == {0}
    assert [event["epoch"] for event in prune.events] == [7]  # three reports, of which two have to agree
    for _ in range(2):  # each validation warns
        with pytest.warns(UserWarning, match="fewer than .* are placeholders"):
            (logged,) = quiet_trainer(tmp_path, ours).validate(SmallNet(), loader(5), verbose=False)
        assert logged["anomaly_filters/count"] == logged["anomaly_filters/rise"] == 0  # not the values of the fit


@pytest.mark.filterwarnings("ignore:You .* Skipping val loop")
def test_without_validation_there_is_one_warning(tmp_path: Any) -> None:
    ours = watcher()
    trainer = quiet_trainer(tmp_path, ours, AnomalyEarlyStopping())
    with pytest.warns(UserWarning, match="this Trainer has none: ") as caught:
        trainer.fit(SmallNet(), loader())
    (text,) = said(caught)
    assert text.endswith("'anomaly_filters/rise' will only see a constant.")
    assert trainer.current_epoch == 2
    assert ours.history == []
    assert "anomaly_filters/count" not in trainer.callback_metrics
