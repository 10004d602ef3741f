"""Trainings with a turn that tests seldom have: what is logged stays right, or it is said, and the training goes on."""

import copy
import io
import math
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)
from trainers import QUIET, SmallNet, images, loader, plain, quiet_trainer, said, watcher

from lightning_anomaly import AnomalyPruneCallback, TwoSampleCallback
from lightning_anomaly.callbacks import _figures, two_sample
from lightning_anomaly.callbacks._figures import FigureSchedule
from lightning_anomaly.capture.images import training_batches

pytestmark = QUIET


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Dropout and the order of the images are the same whatever ran before."""
    torch.manual_seed(0)


# an epoch of NaN


class NanInTheThird(SmallNet):
    """Its third validation, and no other, sees weights of NaN."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * math.nan if self.current_epoch == 2 and not self.training else x)


def test_a_validation_in_which_nothing_can_be_found_repeats_the_last_values(tmp_path: Path) -> None:
    ours = watcher()
    trainer = quiet_trainer(tmp_path, ours, max_epochs=4, num_sanity_val_steps=0)
    with pytest.warns(UserWarning, match="not analyzed.* So AnomalyFilterCallback logs its last values") as caught:
        trainer.fit(NanInTheThird(), loader(), loader())
    assert len(said(caught)) == 1
    assert [entry["analysed"] for entry in ours.history] == [True, True, False, True]
    before, third = ours.history[1], ours.history[2]
    assert before["metrics"]["count"] > 0
    assert third["metrics"] == before["metrics"]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_after_a_resume_too_and_beside_masked_filters(tmp_path: Path) -> None:
    saves, ours, module = ModelCheckpoint(tmp_path), watcher(), SmallNet()
    quiet_trainer(tmp_path, ours, saves).fit(module, loader(), loader())
    again, broken = watcher(), SmallNet()
    trainer = quiet_trainer(tmp_path, again, Breaks(), ModelCheckpoint(tmp_path), max_epochs=5)
    with pytest.warns(UserWarning, match="not analyzed.* So AnomalyFilterCallback logs its last values") as caught:
        trainer.fit(broken, loader(), loader(), ckpt_path=saves.best_model_path)
    assert len(said(caught)) == 1
    assert [entry["analysed"] for entry in again.history] == [True, True, False, False, False]
    assert again.history[4]["metrics"] == again.history[1]["metrics"]


def test_a_probe_that_is_validated_alone_does_not_repeat_what_a_fit_found(tmp_path: Path) -> None:
    ours, module = watcher(), SmallNet()
    trainer = quiet_trainer(tmp_path, ours)
    trainer.fit(module, loader(), loader())
    assert ours.history[-1]["metrics"]["count"] > 0
    with pytest.warns(UserWarning, match="fewer than .* the logged zeros stand for nothing"):
        (logged,) = trainer.validate(module, loader(5), verbose=False)
    assert logged["anomaly_filters/count"] == 0


class Breaks(pl.Callback):
    """Makes all weights NaN but those of one filter, which is masked."""

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        with torch.no_grad():
            for parameter in pl_module.parameters():
                parameter.fill_(math.nan)
            pl_module.conv1.weight[0] = pl_module.conv1.bias[0] = 0


# a network that is wrapped while it trains


class Wraps(SmallNet):
    """Its layer `body.conv` becomes `body.inner.conv`."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 1, 3, padding=1)))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.body(x))

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.body = nn.Sequential(OrderedDict(inner=self.body))


@pytest.mark.parametrize("kind", ["filters", "two samples"])
def test_a_layer_that_is_gone_in_mid_training_is_said_once_and_the_training_goes_on(tmp_path: Path, kind: str) -> None:
    ours = (
        watcher(layers=["body.conv"])
        if kind == "filters"
        else TwoSampleCallback(images(60) + 0.1, images(80, seed=1), layers=["body.conv"])
    )
    trainer = quiet_trainer(tmp_path, ours, max_epochs=3)
    with pytest.warns(UserWarning, match="should name layers of the model.* and logs its last values") as caught:
        trainer.fit(Wraps(), loader(), loader())
    assert len(said(caught)) == 1
    assert trainer.current_epoch == 3
    assert len(ours.history) == 3
    assert ours.history[2]["metrics"] == ours.history[0]["metrics"]


def test_a_layer_that_is_gone_raises_where_that_is_asked_for(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, watcher(layers=["body.conv"], on_error="raise"), max_epochs=3)
    with pytest.raises(ValueError, match="should name layers of the model"):
        trainer.fit(Wraps(), loader(), loader())


# layers that see a part of a batch


class Chunked(SmallNet):
    """Validates a batch in two halves."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        for part in batch[0].chunk(2):
            self(part)


def test_layers_called_with_parts_of_a_batch_are_said_and_no_image_is_shown_under_a_wrong_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []
    ours = watcher(probe_size=30, log_figures=True)
    monkeypatch.setattr(FigureSchedule, "log", lambda *args: shown.append(args[3]))
    trainer = quiet_trainer(tmp_path, ours, logger=CSVLogger(tmp_path))
    with pytest.warns(UserWarning, match="validation batch of 20 samples gave 10 maps") as caught:
        trainer.fit(Chunked(), loader(), loader())
    assert len(said(caught)) == 1
    assert "not numbered as those of the loader" in str(ours.report)
    assert shown == [None, None]


class Nested(SmallNet):
    """Its validation batches are nested tensors, of images of several sizes."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self(torch.stack([image[:, :8, :8] for image in batch.unbind()]))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_batches_whose_number_of_samples_is_not_known_are_nothing_to_be_said(tmp_path: Path) -> None:
    def together(items: list[Any]) -> Tensor:
        return torch.nested.nested_tensor([image for image, _ in items])

    data = [(torch.nn.functional.pad(image, (0, i % 3)), 0) for i, image in enumerate(images())]
    ours = watcher()
    quiet_trainer(tmp_path, ours).fit(Nested(), loader(), DataLoader(data, 20, collate_fn=together))
    assert ours.report is not None
    assert ours.report.n_samples == 60
    assert not ours.report.notes


def test_a_probe_that_ends_within_a_batch_is_nothing_to_be_said(tmp_path: Path) -> None:
    ours = watcher(probe_size=50)
    quiet_trainer(tmp_path, ours).fit(SmallNet(), loader(), loader())
    assert ours.report is not None
    assert ours.report.n_samples == 50
    assert not ours.report.notes


class Regions(SmallNet):
    """Looks at four regions of each image in its last layer."""

    def forward(self, x: Tensor) -> Tensor:
        maps = self.norm(self.conv1(x)).relu()
        parts = maps.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        return self.head(self.conv2(parts).mean((2, 3)).unflatten(0, (len(x), 4)).mean(1))


@pytest.mark.parametrize("probe", ["val", "train"])
def test_a_layer_with_several_maps_of_each_image_leaves_the_others_their_probe(tmp_path: Path, probe: str) -> None:
    ours, named = watcher(probe=probe), watcher(probe=probe, layers=["conv1"], log_key_prefix="named")
    with pytest.warns(UserWarning, match="'conv2' is left out .*: it gave 80 maps where most layers gave 20"):
        quiet_trainer(tmp_path, ours, named).fit(Regions(), loader(), loader())
    assert ours.report is not None
    assert named.report is not None
    assert ours.report.n_samples == 60
    assert list(ours.report.layers) == ["conv1"]
    assert torch.equal(ours.report.layers["conv1"].outliers, named.report.layers["conv1"].outliers)


def test_images_that_a_hook_runs_before_the_validation_step_are_no_part_of_the_probe(tmp_path: Path) -> None:
    class Runs(pl.Callback):
        def on_validation_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            with torch.no_grad():
                pl_module(100 * images(20, seed=9))

    first, second, alone = watcher(), watcher(), watcher()
    quiet_trainer(tmp_path, first, Runs()).fit(SmallNet(), loader(), loader())
    torch.manual_seed(0)
    quiet_trainer(tmp_path, Runs(), second).fit(SmallNet(), loader(), loader())
    torch.manual_seed(0)
    quiet_trainer(tmp_path, alone).fit(SmallNet(), loader(), loader())
    assert plain(first.history) == plain(second.history) == plain(alone.history)


# what is loaded for the training probe


class Traced(Dataset[Any]):
    """Gives the process that loads an item instead of a label, and draws from a generator of its own."""

    def __init__(self) -> None:
        self.images, self.own = images(), np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.own.random()
        return self.images[index], os.getpid()


def test_a_training_probe_is_loaded_in_a_worker_where_the_training_is() -> None:
    data = Traced()
    before = data.own.bit_generator.state
    plain = next(iter(training_batches(DataLoader(data, 20), 60, 0)))
    assert set(plain[1].tolist()) == {os.getpid()}
    assert data.own.bit_generator.state != before
    data = Traced()
    workers = DataLoader(data, 20, num_workers=2, worker_init_fn=lambda _: data.images.zero_())
    images_of_worker, pids = next(iter(training_batches(workers, 60, 0)))
    assert os.getpid() not in pids.tolist()
    assert not images_of_worker.any()  # the loader's own `worker_init_fn` was called
    assert data.images.any()
    assert data.own.bit_generator.state == before


class Endless(RandomSampler):
    """Has no length."""

    __len__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    "options",
    [
        {"batch_sampler": BatchSampler(RandomSampler(range(300)), 150, False)},
        {"sampler": Endless(range(300)), "batch_size": 50},
        {"sampler": SequentialSampler(range(300)), "batch_size": 50, "shuffle": None},
    ],
    ids=["batch sampler", "no length", "in order"],
)
def test_a_training_probe_is_of_all_samples_that_may_be_trained_on(tmp_path: Path, options: dict[str, Any]) -> None:
    ours = watcher(probe="train", probe_size=200)
    train = DataLoader(TensorDataset(images(300), torch.arange(300) % 3), **options)
    quiet_trainer(tmp_path, ours, max_epochs=1).fit(SmallNet(), train, loader(seed=1))
    assert ours.report is not None
    assert ours.report.n_samples == 200


@pytest.mark.filterwarnings("ignore:You requested to overfit but enabled train")
@pytest.mark.parametrize(
    ("options", "shuffle"),
    [({"overfit_batches": 2}, True), ({"limit_train_batches": 2}, False)],
    ids=["overfitted", "first ones"],
)
def test_a_training_probe_is_of_the_batches_that_are_trained_on(
    tmp_path: Path, options: dict[str, Any], shuffle: bool
) -> None:
    seen: list[Any] = []

    class Sees(SmallNet):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return super().forward(x)

    ours = watcher(probe="train", probe_size=60)
    trainer = quiet_trainer(tmp_path, ours, max_epochs=1, num_sanity_val_steps=0, **options)
    with pytest.warns(UserWarning, match="The probe has 40 samples"):
        trainer.fit(Sees(), loader(shuffle=shuffle), loader(seed=1))
    assert ours.report is not None
    assert ours.report.n_samples == 40
    trained, probe = torch.cat(seen[:2]), torch.cat(seen[3:5])  # two batches, a step of the validation, the probe
    assert {x.sum().item() for x in probe} == {x.sum().item() for x in trained}


# what a validation step does with the model


class Exports(SmallNet):
    """Saves, copies and traces what is watched, in the first validation step."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        layers = nn.Sequential(self.conv1, self.norm, self.conv2)
        if batch_idx == 0:
            file = io.BytesIO()
            torch.save(layers, file)
            file.seek(0)
            self.copies = [copy.deepcopy(layers), torch.load(file, weights_only=False)]
            for copied in self.copies:
                copied(-batch[0])  # the maps of a copy are not the model's
        super().validation_step(batch, batch_idx)
        if batch_idx == 0:
            self.traced = torch.jit.trace(layers, batch[0][:2], check_trace=False)
            self.exported = torch.export.export(layers, (batch[0],), strict=False).graph_module
            with FakeTensorMode(allow_non_fake_inputs=True) as fakes:
                layers(fakes.from_tensor(batch[0]))
            torch.func.vmap(lambda image: self.conv1(image))(batch[0])


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
def test_a_model_can_be_saved_copied_traced_and_exported_while_it_is_watched(tmp_path: Path) -> None:
    def run(*callbacks: Any) -> Exports:
        torch.manual_seed(0)
        module = Exports()
        quiet_trainer(tmp_path, *callbacks, max_epochs=1, num_sanity_val_steps=0).fit(module, loader(), loader())
        return module

    alone, ours = run(), watcher(layers=["conv2"])
    watched = run(ours, AnomalyPruneCallback(on_rise=0.9))
    unexported = watcher(layers=["conv2"])
    torch.manual_seed(0)
    quiet_trainer(tmp_path, unexported, max_epochs=1, num_sanity_val_steps=0).fit(SmallNet(), loader(), loader())
    assert plain(ours.history) == plain(unexported.history)
    assert len(watched.exported.graph.nodes) == len(alone.exported.graph.nodes)
    with torch.no_grad():
        for copied in (*watched.copies, watched.traced):
            assert torch.equal(copied(images(70)), alone.copies[0](images(70)))


# a fit that the user ends


class Interrupts(pl.Callback):
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 3:
            raise KeyboardInterrupt


def test_the_last_figures_are_there_when_the_user_ends_the_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, int]] = []
    monkeypatch.setattr(_figures, "log_report", lambda *args: drawn.append(("filters", args[-2])))
    monkeypatch.setattr(two_sample, "log_comparisons", lambda *args: drawn.append(("layers", args[-2])))
    both = watcher(log_figures=True), TwoSampleCallback(images(60) + 0.1, images(80, seed=1))
    trainer = quiet_trainer(tmp_path, *both, Interrupts(), max_epochs=9)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        trainer.fit(SmallNet(), loader(), loader())
    steps = [2, 5, 8]  # the first, the second, and the last, which is the third
    assert [step for name, step in drawn if name == "filters"] == steps
    assert [step for name, step in drawn if name == "layers"] == steps


# nested tensors


class Padded(SmallNet):
    """What torch's encoder is given with a mask of padding it packs into nested tensors, where it evaluates."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 12, batch_first=True), 2)
        self.nested: set[bool] = set()
        self.encoder.layers[0].norm1.register_forward_hook(lambda _, args, __: self.nested.add(args[0].is_nested))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.norm(self.conv1(x)).relu()).flatten(2).transpose(1, 2)
        padding = torch.arange(64)[None] >= 64 - torch.arange(len(x))[:, None] % 9
        return self.head(self.encoder(x, src_key_padding_mask=padding).mean(1))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_a_norm_of_nested_tensors_is_left_alone(tmp_path: Path) -> None:
    losses = []
    for ours in ([], [watcher(), AnomalyPruneCallback(at_epoch=1, last_reports=1, min_votes=1, max_fraction=1e-6)]):
        torch.manual_seed(0)
        trainer = quiet_trainer(tmp_path, *ours, max_epochs=2)
        trainer.fit(module := Padded(), loader(), loader(seed=1))
        assert module.nested == {False, True}
        losses.append(trainer.callback_metrics["val_loss"].item())
    assert losses[0] == losses[1]
