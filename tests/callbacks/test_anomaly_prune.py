"""When it masks, what it masks, what it logs and says, and what it refuses."""

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from acting import GeluNet, fit, leak, probe_loader, pruner, training_loader
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode
from trainers import QUIET, Flagged, hook_count, quiet_trainer, watcher

from lightning_anomaly.callbacks import AnomalyEarlyStopping, AnomalyFilterCallback, AnomalyPruneCallback
from lightning_anomaly.pruning.selection import filter_norms

pytestmark = QUIET


class Epochs(pl.Callback):
    """How many filters are masked in each epoch and validation, and whether they are at zero there."""

    def __init__(self, prune: AnomalyPruneCallback) -> None:
        self.prune = prune
        self.trained: list[int] = []
        self.logged: list[tuple[float, float]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        assert leak(pl_module, self.prune.masked) == 0
        if batch_idx == 0:
            self.trained.append(sum(map(len, self.prune.masked.values())))

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            assert leak(pl_module, self.prune.masked) == 0
            values = [trainer.callback_metrics[f"anomaly_prune/{name}"] for name in ("masked", "masked_fraction")]
            self.logged.append((float(values[0]), float(values[1])))


class Began(pl.Callback):
    """Looks when the training begins, behind the validation that checks it."""

    def __init__(self, look: Callable[[], object]) -> None:
        self.look = look

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.look()


class Scripted(AnomalyFilterCallback):
    """A watcher whose rise is given."""

    def __init__(self, rises: list[float]) -> None:
        super().__init__(probe_size=60, log_figures=False, settings=watcher().settings)
        self.rises = rises

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_validation_epoch_end(trainer, pl_module)
        if not trainer.sanity_checking:
            self.history[-1]["metrics"]["rise"] = self.rises[len(self.history) - 1]


def epochs(prune: AnomalyPruneCallback) -> list[int]:
    return [event["epoch"] for event in prune.events]


@pytest.mark.parametrize("first", [True, False], ids=["before the watcher", "after the watcher"])
@pytest.mark.parametrize("sanity", [0, 2])
def test_it_masks_before_the_epoch_asked_for_what_the_report_flags(tmp_path: Path, first: bool, sanity: int) -> None:
    watching, prune = watcher(), pruner(2, max_fraction=1.0)
    seen, found = Epochs(prune), Flagged(watching)
    callbacks = [prune, watching] if first else [watching, prune]
    trainer = quiet_trainer(tmp_path, *callbacks, seen, found, max_epochs=4, num_sanity_val_steps=sanity)
    model = GeluNet()
    trainer.fit(model, training_loader(), probe_loader())
    assert epochs(prune) == [2]
    flagged = found.filters[1]
    masked = prune.masked
    count = sum(map(len, masked.values()))
    assert count > 5
    for layer, filters in flagged.items():
        size = getattr(model, layer).out_channels
        assert set(masked[layer]) == set(filters) or len(masked[layer]) == size - 1
    assert seen.trained == [0, 0, count, count]
    fraction = prune.mask.parameter_fraction
    assert seen.logged == [(0, 0), (0, 0), (count, pytest.approx(fraction)), (count, pytest.approx(fraction))]
    assert 0 < fraction < 1
    assert hook_count(model) == 0


def test_a_list_of_epochs_masks_each_time_and_keeps_to_the_limit(tmp_path: Path) -> None:
    prune = pruner([3, 1], max_fraction=0.34)
    fit(tmp_path, GeluNet(), prune, max_epochs=4)
    assert epochs(prune) == [1, 3]
    sizes = {"conv1": 6, "conv2": 8, "up": 4}
    assert prune.masked
    assert all(len(filters) <= 0.34 * sizes[layer] for layer, filters in prune.masked.items())
    first, second = (event["filters"] for event in prune.events)
    assert not any(set(first[layer]) & set(filters) for layer, filters in second.items())


def test_one_filter_of_each_layer_is_left(tmp_path: Path) -> None:
    prune = pruner([1, 2, 3], max_fraction=1.0)
    fit(tmp_path, GeluNet(), prune, max_epochs=4)
    assert len(prune.masked["conv1"]) <= 5
    assert len(prune.masked["conv2"]) <= 7
    assert len(prune.masked["up"]) <= 3


def test_without_enough_reports_it_waits_and_says_so(tmp_path: Path) -> None:
    prune = pruner(1, min_votes=3, last_reports=4)
    message = "AnomalyPruneCallback has 1 reports as epoch 1 begins, fewer than `min_votes = 3`. It masks when it has"
    with pytest.warns(UserWarning, match=message):
        fit(tmp_path, GeluNet(), prune, max_epochs=5)
    assert epochs(prune) == [3]
    assert prune.masked


def test_votes_are_counted_over_the_last_reports(tmp_path: Path) -> None:
    prune, watching = pruner(3, min_votes=2, last_reports=3, max_fraction=1.0), watcher()
    found = Flagged(watching)
    trainer = quiet_trainer(tmp_path, prune, watching, found, max_epochs=4, num_sanity_val_steps=0)
    trainer.fit(GeluNet(), training_loader(), probe_loader())
    reports = found.filters[:3]
    flagged = [
        {n: [i for i, c in enumerate(counts) if c > 0] for n, counts in s.items()} for s in prune._reports.summaries
    ]
    flagged = [{n: filters for n, filters in summary.items() if filters} for summary in flagged]
    assert flagged == found.filters[1:]
    for layer, filters in prune.masked.items():
        votes = [sum(index in report.get(layer, []) for report in reports) for index in filters]
        assert min(votes) >= 2


def test_reports_count_once_however_many_validations_repeat_them(tmp_path: Path) -> None:
    prune = pruner(1, min_votes=2, last_reports=2)
    trainer = quiet_trainer(tmp_path, prune, watcher(every_n_validations=3), max_epochs=6, num_sanity_val_steps=0)
    with pytest.warns(UserWarning, match="has 1 reports as epoch 1 begins"):
        trainer.fit(GeluNet(), training_loader(), probe_loader())
    assert epochs(prune) == [4]  # analysed at validations 0 and 3


def test_a_report_of_another_validation_between_two_fits_is_no_vote(tmp_path: Path) -> None:
    model, prune, watching = GeluNet(), pruner(None), watcher()
    callbacks = [prune, watching]
    quiet_trainer(tmp_path, *callbacks, max_epochs=1).fit(model, training_loader(), probe_loader())
    known = list(prune._reports.summaries)
    quiet_trainer(tmp_path, *callbacks).validate(model, training_loader(), verbose=False)
    other = watching.report
    seen = []
    began = Began(lambda: seen.append(list(prune._reports.summaries)))
    quiet_trainer(tmp_path, *callbacks, began, max_epochs=1).fit(model, training_loader(), probe_loader())
    assert watching.report is not other
    assert seen == [known]


def test_it_masks_when_the_signal_has_risen_once_for_each_rise(tmp_path: Path) -> None:
    rises = [0.0, 0.2, 0.2, 0.0, 0.1, 0.1, 0.0]
    prune = pruner(None, on_rise=0.1)
    trainer = quiet_trainer(tmp_path, prune, Scripted(rises), max_epochs=7, num_sanity_val_steps=0)
    trainer.fit(GeluNet(), training_loader(), probe_loader())
    assert epochs(prune) == [2]
    prune = pruner(1)
    assert prune.on_rise is None
    prune = pruner(None)
    assert prune.on_rise == 0.05
    trainer = quiet_trainer(tmp_path, prune, Scripted(rises), max_epochs=7, num_sanity_val_steps=0)
    trainer.fit(GeluNet(), training_loader(), probe_loader())
    assert epochs(prune) == [2, 5]
    prune = pruner(1, on_rise=0.15)
    trainer = quiet_trainer(tmp_path, prune, Scripted(rises), max_epochs=7, num_sanity_val_steps=0)
    trainer.fit(GeluNet(), training_loader(), probe_loader())
    assert epochs(prune) == [1, 2]


@pytest.mark.parametrize("criterion", ["random", "l1"])
def test_controls_mask_as_many_in_each_layer(tmp_path: Path, criterion: Any) -> None:
    def masked(criterion: Any, seed: int = 0) -> tuple[dict[str, list[int]], GeluNet]:
        prune, model = pruner(2, criterion=criterion, seed=seed), GeluNet()
        fit(tmp_path, model, prune, max_epochs=3)
        return prune.masked, model

    flagged, _ = masked("anomaly")
    found, model = masked(criterion)
    assert {n: len(filters) for n, filters in found.items()} == {n: len(filters) for n, filters in flagged.items()}
    assert found != flagged
    assert leak(model, found) == 0
    if criterion == "random":
        assert masked("random")[0] == found
        assert masked("random", seed=1)[0] != found


def test_the_smallest_filters_are_those_with_the_smallest_norm_when_they_are_masked(tmp_path: Path) -> None:
    class Norms(pl.Callback):
        """In each epoch the filters of each layer, those with the smallest norm first."""

        def __init__(self) -> None:
            self.orders: list[dict[str, list[int]]] = []

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            norms = {name: torch.tensor(filter_norms(getattr(pl_module, name))) for name in ("conv1", "conv2", "up")}
            self.orders.append({name: own.argsort().tolist() for name, own in norms.items()})

    norms, prune = Norms(), pruner(2, criterion="l1")
    fit(tmp_path, GeluNet(), norms, prune, max_epochs=3)
    assert prune.masked == {name: sorted(norms.orders[2][name][: len(own)]) for name, own in prune.masked.items()}
    assert len(prune.masked) == 3
    assert norms.orders[2] != norms.orders[0]


def test_what_is_drawn_at_random_is_another_draw_in_another_epoch(tmp_path: Path) -> None:
    def drawn(epoch: int) -> dict[str, list[int]]:
        model = GeluNet(lambda parameters: torch.optim.SGD(parameters, lr=0.0))  # the reports stay the same
        prune = pruner(epoch, criterion="random")
        fit(tmp_path, model, prune, max_epochs=3)
        return prune.masked

    first, second = drawn(1), drawn(2)
    assert {name: len(own) for name, own in first.items()} == {name: len(own) for name, own in second.items()}
    assert first != second


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint")
def test_a_resumed_run_masks_for_the_same_rises_as_the_whole_one(tmp_path: Path) -> None:
    rises = [0.2, 0.2, 0.0, 0.2, 0.2]

    def run(*callbacks: Any, ckpt_path: Any = None) -> list[dict[str, Any]]:
        prune, ends = pruner(None, on_rise=0.1), {"max_epochs": 5, "limit_train_batches": 1}
        trainer = quiet_trainer(tmp_path, prune, Scripted(rises), *callbacks, num_sanity_val_steps=0, **ends)
        trainer.fit(GeluNet(), training_loader(), probe_loader(), ckpt_path=ckpt_path)
        return prune.events

    whole = run(ModelCheckpoint(tmp_path / "saved", "{epoch}", save_top_k=-1))
    assert [event["epoch"] for event in whole] == [1, 4]
    for last in (1, 3):  # within a rise, and behind its end
        assert run(ckpt_path=tmp_path / f"saved/epoch={last}.ckpt") == whole


def test_without_anybody_who_watches_it_says_so(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, AnomalyPruneCallback(at_epoch=1))
    message = (
        "AnomalyPruneCallback should be used with an AnomalyFilterCallback among the Trainer's callbacks. Found none"
    )
    with pytest.raises(ValueError, match=message):
        trainer.fit(GeluNet(), training_loader(), probe_loader())
    trainer.validate(GeluNet(), probe_loader(), verbose=False)  # nothing to mask


def test_of_several_watchers_it_takes_the_one_that_is_named(tmp_path: Path) -> None:
    one, two = watcher(log_key_prefix="one", layers=["conv1"]), watcher(log_key_prefix="two", layers=["conv2"])
    for named, layer in ((None, "conv1"), ("two", "conv2")):
        prune = pruner(1, reports_from=named)
        trainer = quiet_trainer(tmp_path, prune, one, two, num_sanity_val_steps=0)
        trainer.fit(GeluNet(), training_loader(), probe_loader())
        assert list(prune.masked) == [layer]
    trainer = quiet_trainer(tmp_path, pruner(1, reports_from="three"), one, two)
    with pytest.raises(ValueError, match=r"with `log_key_prefix = 'three'` among .* Found \['one', 'two'\]"):
        trainer.fit(GeluNet(), training_loader(), probe_loader())


def test_it_tells_at_the_end_what_it_did(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prune = pruner([1, 2], max_fraction=0.5)
    with caplog.at_level(logging.INFO):
        fit(tmp_path, GeluNet(), prune, max_epochs=3)
    (told,) = (message for message in caplog.messages if "AnomalyPruneCallback" in message)
    assert told == prune.describe()
    head, first, second = told.splitlines()
    count = sum(map(len, prune.masked.values()))
    assert head.startswith(f"AnomalyPruneCallback masked {count} filters with ")
    assert head.endswith('% of the parameters (criterion "anomaly", 1 votes in 1 reports).')
    assert first.startswith("  before epoch 1: 'conv1' [")
    assert second.startswith("  before epoch 2: ")
    nothing = pruner(1, min_votes=1, last_reports=1, max_fraction=0.01)
    fit(tmp_path, GeluNet(), nothing)
    assert nothing.describe().splitlines()[0].startswith("AnomalyPruneCallback masked no filter (")
    why = "no filter, for want of votes or because of `max_fraction`"
    assert nothing.describe().splitlines()[1] == f"  before epoch 1: {why}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at_epoch": 0}, r"`at_epoch` should be an integer of at least 1. Found `at_epoch = 0`"),
        ({"at_epoch": [2, -1]}, r"`at_epoch` should be an integer of at least 1. Found `at_epoch = -1`"),
        ({"at_epoch": "5"}, r"`at_epoch` should be an integer of at least 1. Found `at_epoch = '5'`"),
        ({"at_epoch": []}, r"`at_epoch` should be an epoch, a list of them, or None. Found `at_epoch = \[\]`"),
        ({"on_rise": -0.1}, r"`on_rise` should be a number in \[0, 1\]. Found `on_rise = -0.1`"),
        ({"on_rise": "0.1"}, r"`on_rise` should be a number in \[0, 1\]. Found `on_rise = '0.1'`"),
        ({"min_votes": 0}, r"`min_votes` should be an integer of at least 1. Found `min_votes = 0`"),
        ({"min_votes": 4}, r"`min_votes` should be at most `last_reports = 3`. Found `min_votes = 4`"),
        ({"last_reports": 0}, r"`last_reports` should be an integer of at least 1. Found `last_reports = 0`"),
        ({"max_fraction": 0}, r"`max_fraction` should be a number in \(0, 1\]. Found `max_fraction = 0`"),
        ({"max_fraction": 1.5}, r"`max_fraction` should be a number in \(0, 1\]. Found `max_fraction = 1.5`"),
        ({"criterion": "l2"}, r"`criterion` should be one of \['anomaly', 'random', 'l1'\]. Found `criterion = 'l2'`"),
        ({"reports_from": 3}, r"`reports_from` should be a string of at least one character. Found 3"),
        ({"seed": -1}, r"`seed` should be an integer of at least 0. Found `seed = -1`"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnomalyPruneCallback(**options)


def test_an_epoch_that_never_begins_is_told_at_the_start(tmp_path: Path) -> None:
    message = r"`at_epoch` should be below `max_epochs = 2`, .* Found \[2, 7\], when nothing will happen"
    with pytest.warns(UserWarning, match=message):
        fit(tmp_path, GeluNet(), pruner([1, 2, 7]))
    fit(tmp_path, GeluNet(), pruner(100), max_epochs=-1, max_steps=6)  # as far as anybody knows


@pytest.mark.parametrize("name", ["FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy"])
def test_sharded_strategies_are_refused(name: str) -> None:
    known = {"FSDPStrategy": FSDPStrategy, "ModelParallelStrategy": ModelParallelStrategy}
    strategy = known[name]() if name in known else type(name, (), {})()
    prune = pruner()
    trainer: Any = SimpleNamespace(callbacks=[prune, watcher()], strategy=strategy)
    message = f"should be used with a strategy that keeps whole parameters in each process, .* Found {name}"
    with pytest.raises(ValueError, match=message):
        prune.setup(trainer, GeluNet(), "fit")
    prune.setup(trainer, GeluNet(), "validate")  # nothing to mask


def test_two_of_them_live_side_by_side_under_different_prefixes(tmp_path: Path) -> None:
    one, two = pruner(1, max_fraction=0.25), pruner(2, criterion="l1", log_key_prefix="smallest")
    model = GeluNet()
    trainer = fit(tmp_path, model, one, two, max_epochs=3)
    assert {"anomaly_prune/masked", "smallest/masked"} <= set(trainer.callback_metrics)
    assert len({callback.state_key for callback in trainer.callbacks}) == len(trainer.callbacks)
    assert one.masked
    assert leak(model, one.masked) == leak(model, two.masked) == 0


def test_two_of_them_keep_to_the_limit_together(tmp_path: Path) -> None:
    """Each by itself might leave half of a layer, and both of them nothing."""
    one, two = pruner(1, max_fraction=0.34), pruner(1, criterion="random", log_key_prefix="random")
    fit(tmp_path, GeluNet(), one, two)
    assert {layer: len(filters) for layer, filters in one.masked.items()} == {"conv1": 2, "conv2": 2, "up": 1}
    assert {layer: len(filters) for layer, filters in two.masked.items()} == {"conv1": 1, "conv2": 2, "up": 1}
    assert not any(set(one.masked[layer]) & set(filters) for layer, filters in two.masked.items())


def test_a_checkpoint_with_more_reports_than_are_looked_at_now(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path / "saved", save_last=True)
    fit(tmp_path, GeluNet(), pruner(2, last_reports=3, max_fraction=0.01), saving, max_epochs=3)
    prune = pruner(2, last_reports=1)
    prune.load_state_dict(torch.load(tmp_path / "saved" / "last.ckpt", weights_only=True)["callbacks"][prune.state_key])
    assert len(prune.state_dict()["summaries"]) == 1


class Swapping(pl.Callback):
    """Takes something of the model away after the report."""

    def __init__(self, **layers: Any) -> None:
        self.layers = layers

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        for name, layer in self.layers.items():
            setattr(pl_module, name, layer)


def test_a_layer_that_vanished_since_the_report_is_left_with_a_warning(tmp_path: Path) -> None:
    wider = nn.Sequential(nn.Conv2d(6, 9, 3), nn.Conv2d(9, 8, 1))
    for layers, found in (
        ({"conv2": wider}, "no convolution"),
        ({"conv2": nn.Conv2d(6, 9, 3), "up": nn.ConvTranspose2d(9, 4, 2, stride=2)}, "one with 9 filters"),
    ):
        prune = pruner(1)
        message = rf"masks nothing in layer 'conv2', .* report on 8 filters: the model has {found} of this name"
        with pytest.warns(UserWarning, match=message):
            fit(tmp_path, GeluNet(), prune, Swapping(**layers))
        assert "conv1" in prune.masked
        assert "conv2" not in prune.masked


def test_a_name_that_is_gone_altogether_is_one_too(tmp_path: Path) -> None:
    class Wrapping(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if "conv2" in pl_module._modules:
                pl_module.hidden = nn.Sequential(pl_module._modules.pop("conv2"))
                pl_module.__dict__["conv2"] = pl_module.hidden.forward

    prune = pruner(1)
    with pytest.warns(UserWarning, match=r"masks nothing in layer 'conv2', .*: the model has none of this name"):
        fit(tmp_path, GeluNet(), prune, Wrapping())


def test_a_watched_layer_that_is_no_convolution_is_left(tmp_path: Path) -> None:
    watching, prune = watcher(layers=["norm1", "conv2"]), pruner(1)
    trainer = quiet_trainer(tmp_path, watching, prune, num_sanity_val_steps=0)
    with pytest.warns(
        UserWarning, match=r"masks nothing in layer 'norm1', .* the model has no convolution of this name"
    ):
        trainer.fit(GeluNet(), training_loader(), probe_loader())
    assert list(prune.masked) == ["conv2"]


def test_a_weight_that_cannot_be_masked_is_refused_before_the_training_begins(tmp_path: Path) -> None:
    model = GeluNet()
    nn.utils.parametrizations.orthogonal(model.conv2)
    with pytest.raises(
        ValueError, match=r"plain weight, .* Found 'conv2' .* AnomalyPruneCallback cannot mask it: name"
    ):
        fit(tmp_path, model, pruner())
    prune = pruner()
    trainer = quiet_trainer(tmp_path, watcher(layers=["conv1"]), prune, num_sanity_val_steps=0)
    trainer.fit(model, training_loader(), probe_loader())
    assert list(prune.masked) == ["conv1"]


@pytest.mark.parametrize("exception", [RuntimeError, KeyboardInterrupt])
def test_no_hook_stays_after_an_exception(tmp_path: Path, exception: Any) -> None:
    class Failing(GeluNet):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            if self.trainer.current_epoch == 1:
                assert hook_count(self) > 0
                raise exception("stop")

    model = Failing()
    with pytest.raises((exception, SystemExit)):
        fit(tmp_path, model, pruner(1))
    assert hook_count(model) == 0
    assert _get_current_dispatch_mode() is None


@pytest.mark.filterwarnings("ignore:.*Nothing will be analysed")
@pytest.mark.parametrize("options", [{"limit_val_batches": 0}, {"fast_dev_run": True}], ids=str)
def test_where_nothing_is_analysed_nothing_is_masked(tmp_path: Path, options: dict[str, Any]) -> None:
    prune = pruner(None)
    fit(tmp_path, GeluNet(), prune, **options)
    assert prune.masked == {}


def test_it_does_not_touch_what_it_does_not_mask(tmp_path: Path) -> None:
    def weights(*callbacks: Any) -> dict[str, torch.Tensor]:
        model = GeluNet()
        pl.seed_everything(1, verbose=False)
        fit(tmp_path, model, *callbacks, max_epochs=3)
        return model.state_dict()

    plain, watched = weights(), weights(pruner(None, on_rise=1.0))
    assert all(torch.equal(watched[name], value) for name, value in plain.items())


@pytest.mark.parametrize("tree", ["lightning.pytorch", "pytorch_lightning"])
def test_both_package_trees_take_those_who_act(tree: str) -> None:
    package = pytest.importorskip(tree)

    class Net(package.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 3))

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters())

    prune, stopping, watching, model = pruner(1), AnomalyEarlyStopping(), watcher(), Net()
    trainer = package.Trainer(
        callbacks=[stopping, prune, watching], accelerator="cpu", max_epochs=3, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, training_loader(), probe_loader())
    assert len(watching.history) == 3
    assert prune.masked["net.0"]
    assert model.net[:2](torch.rand(2, 1, 8, 8))[:, prune.masked["net.0"]].count_nonzero() == 0
