"""When AnomalyPruneCallback masks filters, which ones, what it logs, and what it refuses."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from acting import GeluNet, fit, probe_loader, pruner
from functional import same
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from trainers import FakeTrainer, hook_count, loader, quiet_trainer, watcher

from lightning_anomaly import AnomalyFilterCallback, AnomalyPruneCallback


class Epochs(pl.Callback):
    def __init__(self, prune: AnomalyPruneCallback) -> None:
        self.prune = prune
        self.trained: list[int] = []
        self.logged: list[tuple[float, float]] = []
        self.flagged: list[dict[str, list[int]]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.trained.append(sum(map(len, self.prune.masked.values())))

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            values = [trainer.callback_metrics[f"anomaly_prune/{name}"] for name in ("masked", "masked_fraction")]
            self.logged.append((float(values[0]), float(values[1])))
            (watching,) = (c for c in trainer.callbacks if isinstance(c, AnomalyFilterCallback))
            self.flagged.append(watching.report.anomaly_filters)


@pytest.mark.parametrize(("first", "sanity"), [(True, 2), (False, 0)], ids=["before the watcher", "after the watcher"])
def test_flagged_filters_are_masked_before_the_given_epoch(tmp_path: Path, first: bool, sanity: int) -> None:
    watching, prune = watcher(), pruner(2, max_fraction=1.0)
    seen, model = Epochs(prune), GeluNet()
    callbacks = [prune, watching] if first else [watching, prune]
    fit(tmp_path, model, *callbacks, seen, max_epochs=4, num_sanity_val_steps=sanity)
    flagged, masked = seen.flagged[1], prune.masked
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


def test_votes_are_counted_over_the_last_reports(tmp_path: Path) -> None:
    prune = pruner(4, min_votes=2, last_reports=3, max_fraction=1.0)
    seen = Epochs(prune)
    fit(tmp_path, GeluNet(), prune, seen, max_epochs=5)
    reports = seen.flagged[1:4]
    sizes = {"conv1": 6, "conv2": 8, "up": 4}
    for layer, size in sizes.items():
        votes = [sum(index in report.get(layer, []) for report in reports) for index in range(size)]
        voted = [index for index in range(size) if votes[index] >= 2]
        assert set(prune.masked.get(layer, [])) <= set(voted)
        assert len(prune.masked.get(layer, [])) == min(len(voted), size - 1)


def test_reports_come_from_the_first_watcher(tmp_path: Path) -> None:
    one, two = watcher(log_key_prefix="one", layers=["conv1"]), watcher(log_key_prefix="two", layers=["conv2"])
    for first, second, layer in ((one, two, "conv1"), (two, one, "conv2")):
        prune = pruner(1)
        fit(tmp_path, GeluNet(), prune, first, second)
        assert list(prune.masked) == [layer]


@pytest.mark.parametrize("options", [{"min_votes": 4}, {"last_reports": 1}], ids=str)
def test_more_votes_than_reports_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"`last_reports = \d`.* Found `min_votes = "):
        AnomalyPruneCallback(1, **options)


def test_a_weight_that_cannot_be_masked_is_refused_before_training(tmp_path: Path) -> None:
    model = GeluNet()
    nn.utils.parametrizations.orthogonal(model.conv2)
    with pytest.raises(ValueError, match="Found 'conv2' with"):
        fit(tmp_path, model, pruner())
    prune = pruner()
    fit(tmp_path, model, watcher(layers=["conv1"]), prune)
    assert list(prune.masked) == ["conv1"]


def test_a_model_that_fails_on_a_few_samples_gives_one_warning(tmp_path: Path) -> None:
    class Large(GeluNet):
        def forward(self, x: Tensor) -> Tensor:
            output = super().forward(x)
            if len(x) < 10:
                raise RuntimeError("needs a large batch")
            return output

    model, prune = Large(), pruner(1)
    with pytest.warns(UserWarning, match="^AnomalyPruneCallback.*large batch") as caught:
        trainer = fit(tmp_path, model, prune, max_epochs=3)
    assert len([warning for warning in caught if "large batch" in str(warning.message)]) == 1
    assert trainer.current_epoch == 3
    assert prune.masked == {}
    assert hook_count(model) == 0
    assert "anomaly_prune/masked" in trainer.callback_metrics


def test_masking_a_layer_without_effect_does_not_change_training(tmp_path: Path) -> None:
    class Dropping(GeluNet):
        """Draws random numbers, also when the norms are searched; its masked convolution has no effect."""

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(super().forward(x), 0.2) + 0 * self.side(x).mean()

    def weights(*callbacks: Any) -> dict[str, Tensor]:
        model = Dropping()
        model.side = nn.Conv2d(1, 60, 3).requires_grad_(False)
        pl.seed_everything(1, verbose=False)
        fit(tmp_path, model, watcher(layers=["side"]), *callbacks, max_epochs=3)
        return {name: value for name, value in model.state_dict().items() if "side" not in name}

    prune = pruner(1)
    assert same(weights(), weights(prune))
    assert prune.masked


def test_masking_waits_for_enough_reports_with_a_warning(tmp_path: Path) -> None:
    """Validations 0 and 3 have reports; the others repeat them."""
    prune = pruner(1, min_votes=2, last_reports=2)
    seen = Epochs(prune)
    with pytest.warns(UserWarning, match="reports is 1"):
        fit(tmp_path, GeluNet(), prune, watcher(every_n_validations=3), seen, max_epochs=5, num_sanity_val_steps=2)
    assert [count > 0 for count in seen.trained] == [False] * 4 + [True]


def test_a_run_says_what_it_has_masked_or_that_it_ended_before(tmp_path: Path, caplog: Any) -> None:
    caplog.set_level("INFO")
    for at_epoch in (10, 2, 1):
        fit(tmp_path, GeluNet(), pruner(at_epoch), max_epochs=2)
    found = [text.partition(" masked ")[2] for text in caplog.messages if " masked " in text]
    assert found[:2] == [f"no filter: the run ended before `at_epoch = {at_epoch}`." for at_epoch in (10, 2)]
    assert found[2].startswith("before epoch 1: 'conv1' [")


def test_impossible_configurations_are_reported_in_setup(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, AnomalyPruneCallback(at_epoch=1))
    with pytest.raises(MisconfigurationException, match=r"AnomalyFilterCallback .* Found none"):
        trainer.fit(GeluNet(), loader(), probe_loader())
    trainer.validate(GeluNet(), probe_loader(), verbose=False)  # nothing to mask
    prune = pruner()
    trainer = FakeTrainer(callbacks=[prune, watcher()], strategy=FSDPStrategy(), world_size=1, global_step=0)
    with pytest.raises(ValueError, match=r"strategy .* Found FSDPStrategy"):
        prune.setup(trainer, GeluNet(), "fit")
    watching, prune = watcher(layers=["norm1", "conv2"]), pruner(1)
    with pytest.warns(UserWarning, match="'norm1'.*not convolutions"):
        fit(tmp_path, GeluNet(), watching, prune)
    assert list(prune.masked) == ["conv2"]
