"""What the callback checks, logs, keeps and says, with real Trainers."""

import math
import re
import warnings
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from trainers import (
    QUIET,
    Flagged,
    SmallNet,
    arguments,
    hook_count,
    images,
    loader,
    plain,
    quiet_trainer,
    said,
    watcher,
)

from lightning_anomaly import AnomalyFilterCallback, AnomalyReport
from lightning_anomaly.callbacks import _figures, _probe
from lightning_anomaly.plots import outlier_images

pytestmark = QUIET

METRICS = {"count", "fraction", "isolated", "dead", "sparsity", "outlier_samples", "outlier_score", "rise", "seconds"}
LAYERS = {"layer/conv1", "layer/conv2"}


class Values(pl.Callback):
    """What other callbacks see at the end of each training epoch."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.seen.append(dict(trainer.callback_metrics))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probe": "test"}, r"`probe` should be one of .* Found `probe = 'test'`"),
        ({"on_error": "ignore"}, r"`on_error` should be one of .* Found `on_error = 'ignore'`"),
        ({"probe_size": 49}, r"`probe_size` should be .* at least 50. Found `probe_size = 49`"),
        ({"probe_size": 64.0}, "`probe_size` should be an integer"),
        ({"every_n_validations": 0}, "`every_n_validations` should be an integer of at least 1"),
        ({"log_key_prefix": ""}, "`log_key_prefix` should be a string .* Found ''"),
        ({"layers": "conv1"}, r"`layers` should be .* Found 'conv1': give \['conv1'\]"),
        ({"overlay_tags": []}, r"`overlay_tags` should be .* Found \[\]"),
        ({"log_figures": 1}, "`log_figures` should be True or False"),
    ],
)
def test_the_constructor_names_what_is_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnomalyFilterCallback(**arguments(options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"layers": ["conv9"]},
            r"`layers` should name layers.*Found \['conv9'\].*convolutions are \['conv1', 'conv2'\]",
        ),
        (
            {"layers": ["conv1"], "signal_layers": ["conv1", "conv2"]},
            r"`signal_layers` should name layers that are analyzed, \['conv1'\]. Found \['conv2'\]: add them",
        ),
        (
            {"signal_layers": ["head"]},
            r"`signal_layers` should name layers that are analyzed, \['conv1', 'conv2'\]. Found \['head'\]",
        ),
    ],
)
@pytest.mark.parametrize("built_in_setup", [False, True])
def test_layer_names_are_checked_before_training(
    tmp_path: Any, options: dict[str, Any], message: str, built_in_setup: bool
) -> None:
    class BuiltInSetup(SmallNet):
        def setup(self, stage: str) -> None:
            self.extra = nn.Linear(1, 1)

    module = BuiltInSetup() if built_in_setup else SmallNet()
    trainer = quiet_trainer(tmp_path, watcher(**options))
    with pytest.raises(ValueError, match=message):
        trainer.fit(module, loader(), loader())
    assert trainer.global_step == 0


def test_layers_built_in_setup_are_found(tmp_path: Any) -> None:
    class BuiltInSetup(SmallNet):
        def setup(self, stage: str) -> None:
            self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
            self.conv3 = nn.Conv2d(1, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.conv3(x).mean()

    callback = watcher(layers=["conv3"])
    quiet_trainer(tmp_path, callback, max_epochs=1).fit(BuiltInSetup(), loader(), loader())
    assert list(callback.report.layers) == ["conv3"]


class Fitted(NamedTuple):
    """Six epochs, in which an image of the probe does not belong, and what TensorBoard has of them."""

    ours: AnomalyFilterCallback
    values: list[dict[str, Any]]
    flagged: list[dict[str, list[int]]]
    events: EventAccumulator


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    folder = tmp_path_factory.mktemp("fitted")
    logger, probe = TensorBoardLogger(folder), loader(seed=1)
    probe.dataset.tensors[0][7] *= 20
    ours, values = watcher(log_figures=True), Values()
    flagged = Flagged(ours)
    torch.manual_seed(0)
    options = {"max_epochs": 3, "val_check_interval": 0.5, "logger": logger}
    quiet_trainer(folder, ours, values, flagged, **options).fit(SmallNet(), loader(80), probe)
    return Fitted(ours, values.seen, flagged.filters, EventAccumulator(logger.log_dir, {"images": 0}).Reload())


def test_every_validation_logs_finite_floats_and_keeps_plain_values(fitted: Fitted) -> None:
    history, report = fitted.ours.history, fitted.ours.report
    assert len(history) == 6
    assert len(fitted.values) == 3
    for seen, entry in zip(fitted.values, history[1::2], strict=True):
        logged = {k.removeprefix("anomaly_filters/"): v for k, v in seen.items() if k.startswith("anomaly_filters/")}
        assert set(logged) == METRICS | LAYERS == set(entry["metrics"])
        assert all(value.is_floating_point() and math.isfinite(value) for value in logged.values())
        assert {k: pytest.approx(v) for k, v in entry["metrics"].items()} == {k: v.item() for k, v in logged.items()}
        assert all(type(value) is float for value in entry["metrics"].values())
    assert [(entry["epoch"], entry["step"]) for entry in history] == [(i // 2, 2 * i + 2) for i in range(6)]
    assert isinstance(report, AnomalyReport)
    assert report.n_samples == 60
    assert history[-1]["metrics"]["count"] == report.count
    assert not any(layer.points.is_inference() for layer in report.layers.values())


def test_a_history_has_the_counts_of_every_layer_and_the_filters_of_the_last_validation(fitted: Fitted) -> None:
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
    assert steps("anomaly_filters/count") == validations == steps("anomaly_filters/layer/conv1")
    assert set(steps("train_loss")) & set(validations)
    assert fitted.ours.report.outlier_samples[7] > 0
    for name in ("verdicts", "filters", "outliers"):
        found = [event.step for event in fitted.events.Images(f"anomaly_filters/{name}")]
        assert found == [validations[i] for i in (0, 1, 3, 5)], name


def test_only_every_nth_validation_is_analysed_and_the_values_stay(tmp_path: Any) -> None:
    reports: list[Any] = []

    class Reports(pl.Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            reports.append(callback.report)

    callback, values = watcher(every_n_validations=2), Values()
    trainer = quiet_trainer(tmp_path, callback, values, Reports(), max_epochs=4, num_sanity_val_steps=0)
    trainer.fit(SmallNet(), loader(), loader(seed=1))
    assert reports[0] is reports[1] is not reports[2]
    assert reports[2] is reports[3]
    seconds = [seen["anomaly_filters/seconds"].item() for seen in values.seen]
    assert seconds[0] == seconds[1] != seconds[2] == seconds[3]
    assert len(callback.history) == 4
    callback.report = None
    trainer.validate(SmallNet(), loader(seed=1), verbose=False)
    assert callback.report is not None
    assert len(callback.history) == 4


def test_a_value_that_is_only_repeated_is_no_part_of_the_rise(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    series: list[list[float]] = []
    monkeypatch.setattr("lightning_anomaly.callbacks._history.rise", lambda x: float(len(series.append(x) or x)))
    callback = watcher(every_n_validations=2)
    quiet_trainer(tmp_path, callback, max_epochs=5).fit(SmallNet(), loader(), loader(seed=1))
    assert [entry["analysed"] for entry in callback.history] == [True, False, True, False, True]
    signals = [entry["signal"] for entry in callback.history]
    assert series == [signals[:1], signals[:3:2], signals[::2]]
    assert [entry["metrics"]["rise"] for entry in callback.history] == [1, 1, 2, 2, 3]


def test_the_layers_asked_for_give_the_signal(tmp_path: Any) -> None:
    both, one = watcher(), watcher(signal_layers=["conv2"], log_key_prefix="one")
    quiet_trainer(tmp_path, both, one, max_epochs=1).fit(SmallNet(), loader(), loader(seed=1))
    assert one.history[0]["signal"] == one.report.fraction_in(["conv2"]) != one.report.fraction
    assert both.history[0]["signal"] == both.report.fraction
    assert list(one.report.layers) == ["conv1", "conv2"]


class Noisy(TensorDataset):
    """Augments with random numbers of torch, NumPy and Python, and with generators of its own."""

    def __init__(self, samples: int = 90) -> None:
        super().__init__(images(samples), torch.arange(samples) % 3)
        self.indices: list[int] = []

    def __getitem__(self, index: int) -> Any:
        self.indices.append(index)
        x, y = super().__getitem__(index)
        return x + torch.rand(()) + float(np.random.rand()), y


def noisy_collate(items: list[Any]) -> Any:
    xs, ys = zip(*items, strict=True)
    return torch.stack(xs) + torch.rand(()), torch.stack(ys)


def test_the_training_probe_is_a_fixed_sample_and_draws_no_random_number(tmp_path: Any) -> None:
    def train(folder: str, *callbacks: Any) -> tuple[Noisy, dict[str, Tensor], list[Any]]:
        pl.seed_everything(3, verbose=False)
        dataset = Noisy()
        module = SmallNet()
        train_loader = DataLoader(dataset, batch_size=30, shuffle=True, collate_fn=noisy_collate)
        quiet_trainer(tmp_path / folder, *callbacks, max_epochs=3).fit(module, train_loader, loader(seed=1))
        return dataset, module.state_dict(), [torch.rand(2).tolist(), np.random.rand()]

    callback = watcher(probe="train")
    bare, bare_weights, bare_numbers = train("bare")
    watched, weights, numbers = train("watched", callback)
    assert numbers == bare_numbers
    assert all(torch.equal(weights[key], bare_weights[key]) for key in weights)
    assert [bare.indices[i : i + 90] for i in range(0, 270, 90)] == [watched.indices[i : i + 90] for i in (0, 150, 300)]
    probes = [watched.indices[i : i + 60] for i in (90, 240, 390)]
    assert probes[0] == probes[1] == probes[2]
    assert len(set(probes[0])) == 60
    assert probes[0] != sorted(probes[0])
    assert callback.report.n_samples == 60


def test_the_training_probe_goes_through_the_batch_hooks(tmp_path: Any) -> None:
    class Hooks(SmallNet):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [batch[0].float() / 255, batch[1]]

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            assert batch[0].max() <= 1
            assert not (self.trainer.training and not torch.is_grad_enabled())
            return batch

    data = TensorDataset((images() * 255).byte(), torch.arange(60) % 3)
    callback = watcher(probe="train")
    trainer = quiet_trainer(tmp_path, callback)
    trainer.fit(Hooks(), DataLoader(data, 20, shuffle=True), DataLoader(data, 20))
    assert callback.report.n_samples == 60


class ScalesBytes(SmallNet):
    """Takes images as bytes, and learns a number about each."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float() / 255)

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        return (self(x) - y).square().mean()


def test_images_as_bytes_are_the_images_not_their_targets(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr(_figures, "log_report", lambda *args: shown.append(args[3]))
    bytes_of = TensorDataset((100 + 20 * images()).byte(), torch.rand(60, 1))
    both = DataLoader(bytes_of, batch_size=20)
    callback = watcher(probe="train", log_figures=True)
    quiet_trainer(tmp_path, callback, logger=CSVLogger(tmp_path)).fit(ScalesBytes(), both, both)
    assert callback.report.n_samples == 60
    assert {pictures.shape[1:] for pictures in shown} == {(8, 8, 1)}
    known = bytes_of.tensors[0].permute(0, 2, 3, 1)  # and shown as they are, not stretched from black to white
    assert all((known == picture).flatten(1).all(1).any() for pictures in shown for picture in pictures)


def test_a_training_probe_that_cannot_be_drawn_is_an_error_or_a_warning(tmp_path: Any) -> None:
    class Two(SmallNet):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch["a"] if isinstance(batch, dict) else batch, batch_idx)

    loaders, found = {"a": loader(), "b": loader()}, "dict"
    message = f'`probe = "train"` should be used with one training DataLoader.*Found {found}'
    with pytest.raises(ValueError, match=message):
        quiet_trainer(tmp_path, watcher(probe="train", on_error="raise")).fit(Two(), loaders, loader())
    trainer = quiet_trainer(tmp_path, callback := watcher(probe="train"))
    with pytest.warns(UserWarning, match=message) as caught:
        trainer.fit(Two(), loaders, loader())
    assert len(said(caught)) == 1
    assert trainer.current_epoch == 2
    assert callback.report is None
    assert trainer.callback_metrics["anomaly_filters/count"] == 0


class NoConvolution(SmallNet):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm, self.conv2 = nn.Identity(), nn.Identity(), nn.Identity()
        self.head = nn.Linear(1, 3)


class Teacher(SmallNet):
    """With a copy of a network that only training calls, as averaged weights or a perceptual loss are."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.ModuleList(nn.Conv2d(1, 2, 1) for _ in range(9))


class Diverges(SmallNet):
    def __init__(self) -> None:
        super().__init__()
        nn.init.constant_(self.conv1.weight, math.nan)


@pytest.mark.parametrize(
    ("module", "options", "shuffle", "message"),
    [
        (SmallNet, {}, True, r"validation loader shuffles.* keep the order, or use `probe = \"train\"`"),
        (SmallNet, {"probe_size": 70}, False, r"The probe has 60 samples, fewer than `probe_size = 70`\.$"),
        (SmallNet, {"probe_size": 512, "rare_fraction": 0.01}, False, r"60 samples, fewer.*at least 100 are needed"),
        (NoConvolution, {}, False, "The model has no convolution"),
        (Teacher, {}, False, r"Layer 'teacher.0' .* it was never called\. Likewise 'teacher.1', .* and 3 more\.$"),
        (
            Diverges,
            {},
            False,
            r"^Layer 'conv1': 4 of 4 filters .* not analyzed\. Likewise 'conv2'\. So nothing is watched",
        ),
    ],
)
def test_each_shortcoming_is_said_once(
    tmp_path: Any, module: Any, options: dict[str, Any], shuffle: bool, message: str
) -> None:
    callback = watcher(**options)
    trainer = quiet_trainer(tmp_path, callback, max_epochs=3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module(), loader(), loader(shuffle=shuffle))
    (text,) = said(caught)
    assert re.search(message, text)
    assert trainer.current_epoch == 3
    assert len(callback.history) == 3
    assert callback.report is not None


HOSTILE = {
    "nan": lambda x, g: x * math.nan,
    "one nan": lambda x, g: x.index_fill(0, torch.tensor([3]), math.nan),
    "inf": lambda x, g: x.index_fill(0, torch.tensor([5]), math.inf),
    "denormal": lambda x, g: x * 1e-42,
    "constant": lambda x, g: torch.ones_like(x),
    "duplicates": lambda x, g: x[:2].repeat(len(x) // 2, 1, 1, 1),
    "huge beside tiny": lambda x, g: x * torch.where(torch.rand(len(x), 1, 1, 1, generator=g) < 0.5, 1e30, 1e-30),
    "zeros": lambda x, g: torch.zeros_like(x),
    "mixed": lambda x, g: x * 10 ** (80 * torch.rand(len(x), 1, 1, 1, generator=g) - 40),
}


@pytest.mark.parametrize("kind", ["nan", "constant", "huge beside tiny", "mixed"])
def test_hostile_numbers_never_stop_the_training(tmp_path: Any, kind: str) -> None:
    class Hostile(SmallNet):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            generator = torch.Generator().manual_seed(self.current_epoch)
            self(HOSTILE[kind](batch[0], generator))

    callback, values = watcher(), Values()
    trainer = quiet_trainer(tmp_path, callback, values, max_epochs=4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(Hostile(), loader(), loader())
    texts = said(caught)
    assert len(texts) == len(set(texts)) <= 2
    assert all("NaN or infinite" in text for text in texts)
    assert trainer.current_epoch == len(callback.history) == 4
    for seen in values.seen:
        assert all(math.isfinite(seen[key]) for key in seen if key.startswith("anomaly_filters/"))


def test_a_handful_of_samples_is_one_warning(tmp_path: Any) -> None:
    samples, batch_size = 5, 3
    callback = watcher()
    trainer = quiet_trainer(tmp_path, callback, max_epochs=3)
    with pytest.warns(
        UserWarning, match=rf"The probe has {samples} samples, fewer than .* at least 20 are needed"
    ) as caught:
        trainer.fit(SmallNet(), loader(), loader(samples, batch_size=batch_size))
    assert len(said(caught)) == 1
    assert callback.report.n_samples == samples
    assert trainer.current_epoch == 3


def failing(after: int) -> Any:
    calls = []

    def analyze_maps(*args: Any) -> Any:
        calls.append(args)
        if len(calls) > after:
            raise RuntimeError("out of luck")
        return real(*args)

    real = _probe.analyze_maps
    return analyze_maps


def test_a_failing_analysis_warns_and_logs_the_last_values(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_probe, "analyze_maps", failing(after=2))
    callback, values = watcher(), Values()
    module = SmallNet()
    trainer = quiet_trainer(tmp_path, callback, values, max_epochs=5)
    with pytest.warns(UserWarning, match=r"could not analyze .*out of luck\) and logs its last values") as caught:
        trainer.fit(module, loader(), loader(seed=1))
    assert len(said(caught)) == 1
    assert len(values.seen) == len(callback.history) == 5
    last = {key: value for key, value in values.seen[1].items() if key.startswith("anomaly_filters/")}
    for seen in values.seen[2:]:
        assert {**last, "anomaly_filters/rise": seen["anomaly_filters/rise"]} == {key: seen[key] for key in last}
    assert hook_count(module) == 0


@pytest.mark.parametrize("probe", ["val", "train"])
def test_a_failing_analysis_raises_if_asked_to(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, probe: str) -> None:
    monkeypatch.setattr(_probe, "analyze_maps", failing(after=1))
    module = SmallNet()
    trainer = quiet_trainer(tmp_path, watcher(on_error="raise", probe=probe), max_epochs=5)
    with pytest.raises(RuntimeError, match="out of luck"):
        trainer.fit(module, loader(), loader(seed=1))
    assert trainer.current_epoch == 1
    assert hook_count(module) == 0


def test_names_of_lightning_s_own_that_are_gone_do_not_end_a_fit(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*args: Any, **kwargs: Any) -> Any:
        raise AttributeError("'Loop' has no attribute '_name'")

    monkeypatch.setattr("lightning_anomaly.callbacks.anomaly_filter.logged_step", gone)
    monkeypatch.setattr("lightning_anomaly.callbacks.anomaly_filter.remember_losses", gone)
    callback, values = watcher(browser=True), Values()
    trainer = quiet_trainer(tmp_path, callback, values, logger=CSVLogger(tmp_path), max_epochs=3)
    with pytest.warns(UserWarning, match=r"could not .*AttributeError: 'Loop' has no attribute") as caught:
        trainer.fit(SmallNet(), loader(), loader(seed=1))
    texts = said(caught)
    assert len(texts) == len(set(texts)) <= 4  # each once in a fit, not at every validation
    assert len(callback.history) == len(values.seen) == 3
    with pytest.raises(AttributeError, match="'Loop' has no attribute"):
        quiet_trainer(tmp_path, watcher(on_error="raise"), max_epochs=1).fit(SmallNet(), loader(), loader(seed=1))


def test_a_second_fit_logs_the_layers_of_its_own_model(tmp_path: Any) -> None:
    callback = watcher()
    first = quiet_trainer(tmp_path, callback, max_epochs=1)
    first.fit(SmallNet(), loader(), loader())

    class Other(SmallNet):
        def __init__(self) -> None:
            super().__init__()
            self.conv3, self.conv2 = self.conv2, nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv3(self.norm(self.conv1(x)).relu()).mean((2, 3)))

    second = quiet_trainer(tmp_path, callback, max_epochs=1)
    second.fit(Other(), loader(), loader())
    for trainer, layers in ((first, ["conv1", "conv2"]), (second, ["conv1", "conv3"])):
        logged = {key for key in trainer.callback_metrics if "/layer/" in key}
        assert logged == {f"anomaly_filters/layer/{layer}" for layer in layers}


def test_two_callbacks_live_side_by_side(tmp_path: Any) -> None:
    torch.manual_seed(0)
    alone = watcher(layers=["conv2"], log_key_prefix="late")
    quiet_trainer(tmp_path, alone).fit(SmallNet(), loader(), loader(seed=1))
    torch.manual_seed(0)
    early, late = watcher(layers=["conv1"], log_key_prefix="early"), watcher(layers=["conv2"], log_key_prefix="late")
    trainer = quiet_trainer(tmp_path, early, late)
    trainer.fit(SmallNet(), loader(), loader(seed=1))
    assert "early/layer/conv1" in trainer.callback_metrics
    assert "late/layer/conv2" in trainer.callback_metrics
    assert "late/layer/conv1" not in trainer.callback_metrics
    assert plain(late.history) == plain(alone.history)


def test_two_callbacks_with_the_same_prefix_are_an_error(tmp_path: Any) -> None:
    trainer = quiet_trainer(tmp_path, watcher(), watcher(probe="train"))
    with pytest.raises(ValueError, match=r"`log_key_prefix` should be different for each.*'anomaly_filters' twice"):
        trainer.fit(SmallNet(), loader(), loader())


def test_each_fit_of_a_module_lays_out_the_charts_of_its_own_logger(tmp_path: Any) -> None:
    callback, module = watcher(), SmallNet()
    for name in ("first", "second"):
        logger = TensorBoardLogger(tmp_path / name)
        quiet_trainer(tmp_path, callback, logger=logger).fit(module, loader(), loader(seed=1))
        assert "custom_scalars__config__" in EventAccumulator(logger.log_dir).Reload().Tags()["tensors"]


def test_the_probe_ends_within_a_batch_and_its_images_too(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr(_figures, "log_report", lambda *args: shown.append(args[3]))
    validation = loader(seed=1)
    pictures = validation.dataset.tensors[0]
    pictures[[7, 49, 50, 59]] *= 20
    ours = watcher(probe_size=50, log_figures=True)
    quiet_trainer(tmp_path, ours, logger=CSVLogger(tmp_path)).fit(SmallNet(), loader(), validation)
    assert ours.report.n_samples == 50
    assert set(ours.report.by_outlier_score[:2]) == {7, 49}
    assert len(shown) == 2
    assert torch.equal(shown[-1], outlier_images(ours.report, pictures[:50]))


def test_another_callbacks_training_probe_does_not_get_into_the_validation_probe(tmp_path: Any) -> None:
    def fit(*callbacks: Any) -> None:
        torch.manual_seed(0)
        quiet_trainer(tmp_path, *callbacks).fit(SmallNet(), loader(80), loader(seed=1))

    alone, beside, other = watcher(), watcher(), watcher(probe="train", log_key_prefix="other")
    fit(alone)
    fit(other, beside)
    assert beside.report.to_dict() == alone.report.to_dict()
