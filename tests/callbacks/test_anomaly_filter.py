"""What the callback checks, logs, keeps and says, with real Trainers."""

import math
import re
import warnings
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from trainers import QUIET, SmallNet, arguments, hook_count, images, loader, plain, quiet_trainer, said, watcher

from lightning_anomaly import AnalysisSettings, AnomalyFilterCallback, AnomalyReport
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
        ({"probe": "test"}, r"`probe` should be one of \['val', 'train'\]. Found `probe = 'test'`"),
        ({"on_error": "ignore"}, r"`on_error` should be one of \['warn', 'raise'\]. Found `on_error = 'ignore'`"),
        ({"probe_size": 49}, r"`probe_size` should be an integer of at least 50. Found `probe_size = 49`"),
        ({"probe_size": 19, "rare_fraction": 0.5, "max_components": 10}, r"`probe_size` .* at least 20"),
        ({"probe_size": 64.0}, r"`probe_size` should be an integer"),
        ({"every_n_validations": 0}, r"`every_n_validations` should be an integer of at least 1"),
        ({"log_key_prefix": ""}, r"`log_key_prefix` should be a string of at least one character. Found ''"),
        ({"log_key_prefix": 3}, r"`log_key_prefix` should be a string of at least one character. Found 3"),
        ({"layers": []}, r"`layers` should be a list of layer names or None. Found \[\]"),
        ({"layers": "conv1"}, r"`layers` should be a list of layer names or None. Found 'conv1': give \['conv1'\]"),
        ({"layers": 3}, r"`layers` should be a list of layer names or None. Found 3"),
        ({"signal_layers": "conv1"}, r"`signal_layers` should be a list of layer names or None. Found 'conv1'"),
        ({"overlay_tags": "val_loss"}, r"`overlay_tags` should be a list of tags or None. Found 'val_loss': give \["),
        ({"log_figures": "no"}, r"`log_figures` should be True or False. Found `log_figures = 'no'`"),
        ({"max_components": 1}, r"`max_components` should be an integer of at least 2. Found `max_components = 1`"),
        ({"rare_fraction": 0.0}, r"`rare_fraction` should be a number in \(0, 0.5\]"),
        ({"rare_fraction": 0.51}, r"`rare_fraction` should be a number in \(0, 0.5\]"),
        ({"rule": "most"}, r"`rule` should be one of \['index', 'best'\]"),
        ({"n_init": 0}, r"`n_init` should be an integer of at least 1"),
        ({"rectify": 1}, r"`rectify` should be True or False"),
        ({"max_map_side": 0}, r"`max_map_side` should be an integer of at least 1"),
        ({"engine": "jax"}, r"`engine` should be one of \['auto', 'numba', 'torch', 'sklearn'\]"),
        ({"seed": -1}, r"`seed` should be an integer of at least 0"),
        ({"max_memory_mb": 0}, r"`max_memory_mb` should be an integer of at least 1"),
    ],
)
def test_the_constructor_names_what_is_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnomalyFilterCallback(**arguments(options))


@pytest.mark.parametrize("settings", [{"rectify": False}, "paper", 3])
def test_settings_are_nothing_else(settings: Any) -> None:
    with pytest.raises(ValueError, match=r"`settings` should be an AnalysisSettings or None\. Found "):
        AnomalyFilterCallback(settings=settings)


def test_the_papers_reading_is_a_setting(tmp_path: Any) -> None:
    callback = AnomalyFilterCallback(probe_size=100, log_figures=False, settings=AnalysisSettings.paper())
    quiet_trainer(tmp_path, callback, max_epochs=1).fit(SmallNet(), loader(), loader(100))
    assert callback.report is not None
    assert AnalysisSettings(**callback.report.settings) == AnalysisSettings.paper()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"layers": ["conv9"]},
            r"`layers` should name layers.*Found \['conv9'\].*convolutions are \['conv1', 'conv2'\]",
        ),
        ({"signal_layers": ["conv9"]}, r"`signal_layers` should name layers.*\['conv1', 'conv2'\]"),
        (
            {"layers": ["conv1"], "signal_layers": ["conv1", "conv2"]},
            r"`signal_layers` should name layers that are analysed, \['conv1'\]. Found \['conv2'\]: add them",
        ),
        (
            {"signal_layers": ["head"]},
            r"`signal_layers` should name layers that are analysed, \['conv1', 'conv2'\]. Found \['head'\]",
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


def test_every_validation_logs_finite_floats_and_keeps_plain_values(tmp_path: Any) -> None:
    callback, values = watcher(), Values()
    quiet_trainer(tmp_path, callback, values, max_epochs=3).fit(SmallNet(), loader(), loader(seed=1))
    assert len(values.seen) == len(callback.history) == 3
    for seen, entry in zip(values.seen, callback.history, strict=True):
        logged = {k.removeprefix("anomaly_filters/"): v for k, v in seen.items() if k.startswith("anomaly_filters/")}
        assert set(logged) == METRICS | LAYERS == set(entry["metrics"])
        assert all(value.is_floating_point() and math.isfinite(value) for value in logged.values())
        assert {k: pytest.approx(v) for k, v in entry["metrics"].items()} == {k: v.item() for k, v in logged.items()}
        assert all(type(value) is float for value in entry["metrics"].values())
    assert [(entry["epoch"], entry["step"]) for entry in callback.history] == [(0, 3), (1, 6), (2, 9)]
    report = callback.report
    assert isinstance(report, AnomalyReport)
    assert report.n_samples == 60
    assert callback.history[-1]["metrics"]["count"] == report.count
    assert callback.history[-1]["anomaly_filters"] == report.anomaly_filters
    assert not any(layer.points.is_inference() for layer in report.layers.values())


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


@pytest.mark.parametrize("probe", ["val", "train"])
def test_images_as_bytes_are_the_images_not_their_targets(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, probe: str
) -> None:
    shown = []
    monkeypatch.setattr(_figures, "log_report", lambda *args: shown.append(args[3]))
    bytes_of = TensorDataset((100 + 20 * images()).byte(), torch.rand(60, 1))
    both = DataLoader(bytes_of, batch_size=20)
    callback = watcher(probe=probe, log_figures=True)
    quiet_trainer(tmp_path, callback, logger=CSVLogger(tmp_path)).fit(ScalesBytes(), both, both)
    assert callback.report.n_samples == 60
    assert {pictures.shape[1:] for pictures in shown} == {(8, 8, 1)}
    known = bytes_of.tensors[0].permute(0, 2, 3, 1)  # and shown as they are, not stretched from black to white
    assert all((known == picture).flatten(1).all(1).any() for pictures in shown for picture in pictures)


@pytest.mark.parametrize("kind", ["batched items", "batch sampler"])
def test_the_training_probe_takes_loaders_of_other_kinds(tmp_path: Any, kind: str) -> None:
    data = list(loader())
    sampler = torch.utils.data.BatchSampler(range(60), 20, drop_last=False)
    train = (
        DataLoader(data, batch_size=None)
        if kind == "batched items"
        else DataLoader(loader().dataset, batch_sampler=sampler)
    )
    callback = watcher(probe="train")
    quiet_trainer(tmp_path, callback).fit(SmallNet(), train, loader())
    assert callback.report.n_samples == 60


@dataclass
class Item:
    """What torch's own collation does not know how to put into a batch."""

    image: Tensor
    label: Tensor


def test_the_training_probe_is_put_into_batches_as_the_training_set_is(tmp_path: Any) -> None:
    def collate(items: list[Item]) -> list[Tensor]:
        return [torch.stack([item.image for item in items]), torch.stack([item.label for item in items])]

    items: Any = [Item(*pair) for pair in loader().dataset]
    callback = watcher(probe="train")
    quiet_trainer(tmp_path, callback).fit(SmallNet(), DataLoader(items, 20, collate_fn=collate), loader())
    assert callback.report.n_samples == 60


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(TensorDataset(images(), torch.arange(60) % 3))


@pytest.mark.parametrize("train", ["stream", "two loaders"])
def test_a_training_probe_that_cannot_be_drawn_is_an_error_or_a_warning(tmp_path: Any, train: str) -> None:
    class Two(SmallNet):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch["a"] if isinstance(batch, dict) else batch, batch_idx)

    loaders = DataLoader(Stream(), batch_size=20) if train == "stream" else {"a": loader(), "b": loader()}
    found = "DataLoader over Stream" if train == "stream" else "dict"
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


def test_a_training_probe_without_forward_is_one_warning(tmp_path: Any) -> None:
    class NoForward(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = SmallNet()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.net.loss(batch)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.net.loss(batch)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    module = NoForward()
    with pytest.warns(UserWarning, match=r"could not analyze.*forward") as caught:
        quiet_trainer(tmp_path, watcher(probe="train")).fit(module, loader(), loader())
    assert len(said(caught)) == 1
    assert hook_count(module) == 0


class NoConvolution(SmallNet):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm, self.conv2 = nn.Identity(), nn.Identity(), nn.Identity()
        self.head = nn.Linear(1, 3)


class NeverCalled(SmallNet):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Conv2d(1, 2, 1)


class Teacher(SmallNet):
    """With a copy of a network that only training calls, as averaged weights or a perceptual loss are."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.ModuleList(nn.Conv2d(1, 2, 1) for _ in range(9))


class Diverges(SmallNet):
    def __init__(self) -> None:
        super().__init__()
        nn.init.constant_(self.conv1.weight, math.nan)


class TurnsNan(SmallNet):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            x = x * torch.tensor([math.nan, math.inf, 1e30, 1e-40]).repeat(len(x) // 4)[:, None, None, None]
        return super().forward(x)


@pytest.mark.parametrize(
    ("module", "options", "shuffle", "message"),
    [
        (SmallNet, {}, True, r"validation loader shuffles.* keep the order, or use `probe = \"train\"`"),
        (SmallNet, {"probe_size": 70}, False, r"The probe has 60 samples, fewer than `probe_size = 70`\.$"),
        (SmallNet, {"probe_size": 512, "rare_fraction": 0.01}, False, r"60 samples, fewer.*at least 100 are needed"),
        (NoConvolution, {}, False, "The model has no convolution"),
        (NeverCalled, {}, False, "Layer 'spare' is left out of the analysis: it was never called"),
        (Teacher, {}, False, r"Layer 'teacher.0' .* it was never called\. Likewise 'teacher.1', .* and 3 more\.$"),
        (
            Diverges,
            {},
            False,
            r"^Layer 'conv1': 4 of 4 filters .* not analysed\. Likewise 'conv2'\. So nothing is watched",
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


@pytest.mark.parametrize("module", [NoConvolution, NeverCalled, TurnsNan])
def test_degenerate_networks_log_finite_values_and_train_on(tmp_path: Any, module: Any) -> None:
    values = Values()
    trainer = quiet_trainer(tmp_path, watcher(), values)
    with pytest.warns(UserWarning, match=r"no convolution|never called|NaN or infinite"):
        trainer.fit(module(), loader(), loader())
    assert trainer.current_epoch == 2
    for seen in values.seen:
        ours = {key: value for key, value in seen.items() if key.startswith("anomaly_filters/")}
        assert len(ours) >= len(METRICS)
        assert all(math.isfinite(value) for value in ours.values())
    if module is NeverCalled:
        assert values.seen[0]["anomaly_filters/layer/spare"] == 0


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


@pytest.mark.parametrize("kind", HOSTILE)
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


def test_a_validation_image_with_nan_is_named_once(tmp_path: Any) -> None:
    images_with_nan = images()
    images_with_nan[17] = math.nan
    val = DataLoader(TensorDataset(images_with_nan, torch.arange(60) % 3), batch_size=20)
    trainer = quiet_trainer(tmp_path, watcher(), max_epochs=3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(SmallNet(), loader(), val)
    assert said(caught) == [
        "Sample 17 of the probe gives NaN or infinite values in 2 of 2 layers, so that 10 of 10 filters are not "
        "analysed: leave it out. So nothing is watched and the logged zeros stand for nothing."
    ]


@pytest.mark.parametrize(("samples", "batch_size"), [(1, 1), (2, 2), (5, 3)])
def test_a_handful_of_samples_is_one_warning(tmp_path: Any, samples: int, batch_size: int) -> None:
    callback = watcher()
    trainer = quiet_trainer(tmp_path, callback, max_epochs=3)
    with pytest.warns(
        UserWarning, match=rf"The probe has {samples} samples, fewer than .* at least 20 are needed"
    ) as caught:
        trainer.fit(SmallNet(), loader(), loader(samples, batch_size=batch_size))
    assert len(said(caught)) == 1
    assert callback.report.n_samples == samples
    assert trainer.current_epoch == 3


def test_maps_of_one_pixel_are_analysed(tmp_path: Any) -> None:
    class OnePixel(SmallNet):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x[:, :, :1, :1])

    callback = watcher()
    quiet_trainer(tmp_path, callback).fit(OnePixel(), loader(), loader())
    assert {layer.map_size for layer in callback.report.layers.values()} == {(1, 1)}


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


def test_a_failing_first_analysis_logs_every_key(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_probe, "analyze_maps", failing(after=0))
    values = Values()
    saves = pl.callbacks.ModelCheckpoint(tmp_path, monitor="anomaly_filters/layer/conv2")
    with pytest.warns(UserWarning, match="out of luck"):
        quiet_trainer(tmp_path, watcher(), values, saves).fit(SmallNet(), loader(), loader(seed=1))
    keys = {key.removeprefix("anomaly_filters/") for key in values.seen[0] if key.startswith("anomaly_filters/")}
    assert keys == METRICS | LAYERS


@pytest.mark.parametrize("probe", ["val", "train"])
def test_a_failing_analysis_raises_if_asked_to(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, probe: str) -> None:
    monkeypatch.setattr(_probe, "analyze_maps", failing(after=1))
    module = SmallNet()
    trainer = quiet_trainer(tmp_path, watcher(on_error="raise", probe=probe), max_epochs=5)
    with pytest.raises(RuntimeError, match="out of luck"):
        trainer.fit(module, loader(), loader(seed=1))
    assert trainer.current_epoch == 1
    assert hook_count(module) == 0


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


@pytest.mark.parametrize("options", [{}, {"val_check_interval": 0.5}, {"check_val_every_n_epoch": 2}])
def test_the_curve_has_the_steps_of_the_validation_loss(tmp_path: Any, options: dict[str, Any]) -> None:
    logger = TensorBoardLogger(tmp_path)
    quiet_trainer(tmp_path, watcher(), logger=logger, max_epochs=4, **options).fit(
        SmallNet(), loader(80), loader(seed=1)
    )
    events = EventAccumulator(logger.log_dir)
    events.Reload()

    def steps(tag: str) -> list[int]:
        return [event.step for event in events.Scalars(tag)]

    assert steps("anomaly_filters/count") == steps("val_loss") == steps("anomaly_filters/layer/conv1")
    assert len(steps("val_loss")) == {"val_check_interval": 8, "check_val_every_n_epoch": 2}.get(
        next(iter(options), ""), 4
    )
    assert set(steps("train_loss")) & set(steps("anomaly_filters/count"))


def test_figures_come_at_powers_of_two_and_at_the_end(tmp_path: Any) -> None:
    logger = TensorBoardLogger(tmp_path)
    probe = loader(seed=1)
    probe.dataset.tensors[0][7] *= 20  # an image that does not belong
    ours = watcher(log_figures=True)
    trainer = quiet_trainer(tmp_path, ours, logger=logger, max_epochs=6)
    trainer.fit(SmallNet(), loader(), probe)
    assert ours.report.outlier_samples[7] > 0
    events = EventAccumulator(logger.log_dir, {"images": 0})
    events.Reload()
    validations = [event.step for event in events.Scalars("val_loss")]
    for name in ("verdicts", "filters", "outliers"):
        steps = [event.step for event in events.Images(f"anomaly_filters/{name}")]
        assert steps == [validations[i] for i in (0, 1, 3, 5)], name


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


def test_between_validations_few_images_are_kept_and_after_the_fit_none(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_figures, "log_report", lambda *args: None)  # drawing takes time
    kept: list[tuple[int, ...] | None] = []

    class Look(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            assert ours._small_images.taken() is None
            pending = ours._figures._pending
            kept.append(pending and tuple(pending[1].shape))

    probe = loader(seed=1)
    probe.dataset.tensors[0][:2] *= 20
    ours = watcher(log_figures=True)
    logger = TensorBoardLogger(tmp_path)
    quiet_trainer(tmp_path, ours, Look(), logger=logger, max_epochs=6).fit(SmallNet(), loader(), probe)
    assert kept == [None, None, (16, 8, 8, 1), None, (16, 8, 8, 1), (16, 8, 8, 1)]
    assert ours._figures._pending is None


@pytest.mark.parametrize("first", [True, False])
def test_another_callbacks_training_probe_does_not_get_into_the_validation_probe(tmp_path: Any, first: bool) -> None:
    def fit(*callbacks: Any) -> None:
        torch.manual_seed(0)
        quiet_trainer(tmp_path, *callbacks).fit(SmallNet(), loader(80), loader(seed=1))

    alone, beside, other = watcher(), watcher(), watcher(probe="train", log_key_prefix="other")
    fit(alone)
    fit(*([beside, other] if first else [other, beside]))
    assert beside.report.to_dict() == alone.report.to_dict()
