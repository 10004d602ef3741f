"""Where nothing can be watched, it is said once, with those in the Trainer who wait for it."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from trainers import QUIET, SmallNet, hook_count, images, loader, quiet_trainer, said, watcher

from lightning_anomaly import AnomalyEarlyStopping, AnomalyPruneCallback, TwoSampleCallback
from lightning_anomaly.callbacks import _probe
from lightning_anomaly.callbacks._base import describe_dead_monitors

pytestmark = QUIET
TRAIN, VAL = images(60) + 0.1, images(80, seed=1)


class NoForward(SmallNet):
    """Its steps call its layers; `forward` is not written."""

    forward = pl.LightningModule.forward

    def loss(self, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(SmallNet.forward(self, batch[0]), batch[1])


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(loader().dataset)


class Late(SmallNet):
    """Its convolutions are used from the sixth epoch on; nothing is learnt, so that what they give stays the same."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        early = self.current_epoch < 5
        self.log("val_loss", self.head(batch[0].flatten(1)[:, :6]).mean() if early else self.loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def damaged() -> DataLoader[Any]:
    """Images with outliers in all filters."""
    val = loader(seed=1)
    val.dataset.tensors[0][[3, 20, 41]] *= 20
    return val


def stopping() -> EarlyStopping:
    return EarlyStopping("two_sample/p_value", mode="max", divergence_threshold=0.01, patience=10**9)


def fit(folder: Path, *callbacks: Any, module: Any = None, train: Any = None, **options: Any) -> pl.Trainer:
    torch.manual_seed(0)
    trainer = quiet_trainer(folder, *callbacks, **options)
    trainer.fit(SmallNet() if module is None else module, loader(80) if train is None else train, loader(seed=1))
    return trainer


# who reads


@pytest.mark.parametrize("name", ["lightning.pytorch", "pytorch_lightning"])
def test_callbacks_of_both_trees_that_read_our_keys_are_named(name: str) -> None:
    tree = pytest.importorskip(name).callbacks

    class Trainer:
        callbacks = [
            tree.EarlyStopping("mine/p_value"),
            tree.EarlyStopping("val_loss"),
            tree.ModelCheckpoint(monitor="mine/fraction"),
            tree.ModelCheckpoint(),
            tree.ModelCheckpoint(monitor="mine_too/fraction"),
            tree.LambdaCallback(),
        ]

    assert describe_dead_monitors(Trainer, "mine") == (
        " EarlyStopping on 'mine/p_value' will never have a reason to stop and ModelCheckpoint on 'mine/fraction' has "
        "nothing to rank by."
    )
    assert describe_dead_monitors(Trainer, "other") == ""


# comparing


def test_a_module_that_takes_no_images_is_said_not_to_be_watched(tmp_path: Path) -> None:
    compared = TwoSampleCallback(images(60), images(80, seed=1))
    others = stopping(), ModelCheckpoint(tmp_path, monitor="two_sample/fraction", mode="max")
    with pytest.warns(UserWarning, match="could not compare") as caught:
        trainer = fit(tmp_path, compared, *others, module=NoForward(), max_epochs=3)
    (text,) = said(caught)
    assert text.startswith("TwoSampleCallback could not compare (")
    assert "so nothing is watched" in text
    assert text.endswith(
        "Give `train_inputs` and `val_inputs` as the module's `forward` takes them, which has to be one tensor. "
        "EarlyStopping on 'two_sample/p_value' will never have a reason to stop and ModelCheckpoint on "
        "'two_sample/fraction' has nothing to rank by."
    )
    assert "last values" not in text
    assert trainer.current_epoch == 3
    assert hook_count(trainer.lightning_module) == 0


@pytest.mark.parametrize("others", [(), (stopping,)], ids=["alone", "with a reader"])
def test_too_few_images_are_one_warning(tmp_path: Path, others: Any) -> None:
    compared = TwoSampleCallback(TRAIN[:5], VAL[:5])
    with pytest.warns(UserWarning, match="hold 5 and 5 images, .* give at least 10 of each") as caught:
        fit(tmp_path, compared, *(other() for other in others), max_epochs=3)
    (text,) = said(caught)
    assert "So nothing is watched and the logged fraction of 0 and p-value of 1 stand for nothing." in text
    assert ("EarlyStopping on 'two_sample/p_value' will never have a reason to stop." in text) == bool(others)
    assert list(compared.report.notes) == ["few images"]
    fit(tmp_path, TwoSampleCallback(TRAIN[:20], VAL[:20]), stopping())  # without a word: warnings are errors


def test_a_network_without_live_filters_is_one_warning(tmp_path: Path) -> None:
    class Silent(SmallNet):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if self.training else x * 0)

    with pytest.warns(UserWarning, match="None of the 10 filters responds to enough of the 60 training") as caught:
        fit(tmp_path, TwoSampleCallback(TRAIN, VAL), stopping(), module=Silent())
    (text,) = said(caught)
    assert text.endswith("EarlyStopping on 'two_sample/p_value' will never have a reason to stop.")


# analysing


def test_a_training_probe_that_cannot_be_drawn_is_said_not_to_be_watched(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="could not analyze") as caught:
        fit(tmp_path, watcher(probe="train"), AnomalyEarlyStopping(), train=DataLoader(Stream(), 20), max_epochs=3)
    (text,) = said(caught)
    assert text.startswith(
        'AnomalyFilterCallback could not analyze the filters (ValueError: `probe = "train"` should be used with'
    )
    assert "Found DataLoader over Stream" in text
    assert '. Use `probe = "val"`' in text
    assert text.endswith("AnomalyEarlyStopping on 'anomaly_filters/rise' will never have a reason to stop.")


def test_a_training_probe_of_a_module_that_takes_no_images_is_said_not_to_be_watched(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r'nothing is watched .* Use `probe = "val"`, ') as caught:
        fit(tmp_path, ours := watcher(probe="train"), module=NoForward())
    assert len(said(caught)) == 1
    assert ours.report is None
    fit(tmp_path, ours := watcher(), module=NoForward())  # the advice is good: not a word
    assert ours.report.n_samples == 60


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_what_a_checkpoint_brought_is_said_to_be_the_last_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves = ModelCheckpoint(tmp_path)
    fit(tmp_path, watcher(), saves, max_epochs=1)
    monkeypatch.setattr(_probe, "analyze_maps", lambda *_: 1 / 0)
    trainer = quiet_trainer(tmp_path, watcher(), ModelCheckpoint(tmp_path), max_epochs=2)
    with pytest.warns(UserWarning, match="could not analyze .* and logs its last values"):
        trainer.fit(SmallNet(), loader(80), loader(seed=1), ckpt_path=saves.best_model_path)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_fit_that_could_find_nothing_has_no_last_values_after_a_resume_either(tmp_path: Path) -> None:
    small = {"probe_size": 200, "rare_fraction": 0.01}
    for path in (None, tmp_path / "last.ckpt"):
        ours, saves = watcher(**small), ModelCheckpoint(tmp_path, save_last=True)
        trainer = quiet_trainer(tmp_path, ours, saves, max_epochs=1 if path is None else 2)
        with pytest.warns(UserWarning, match="So nothing is watched and the logged zeros stand for nothing") as caught:
            trainer.fit(SmallNet(), loader(80), loader(seed=1), ckpt_path=path)
        assert "last values" not in str(said(caught))
    assert [entry["analysed"] for entry in ours.history] == [True, True]


def test_a_validation_of_another_module_leaves_a_fits_last_values_alone(tmp_path: Path) -> None:
    class Renamed(SmallNet):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = self.conv1, self.conv2
            del self.conv1, self.conv2

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.second(self.norm(self.first(x)).relu()).relu().mean((2, 3)))

    probe = loader(seed=1)
    probe.dataset.tensors[0][7] *= 20
    ours, module = watcher(every_n_validations=3), SmallNet()
    quiet_trainer(tmp_path, ours, max_epochs=1).fit(module, loader(), probe)
    before = ours.history[-1]["metrics"]
    assert before["layer/conv1"] + before["layer/conv2"] == before["count"] > 0
    quiet_trainer(tmp_path, ours).validate(Renamed(), probe, verbose=False)
    quiet_trainer(tmp_path, ours, max_epochs=1).fit(module, loader(), probe)
    assert not ours.history[-1]["analysed"]
    assert ours.history[-1]["metrics"] == before


def test_a_model_without_maps_and_a_probe_too_small_name_who_waits(tmp_path: Path) -> None:
    class Flat(SmallNet):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Identity(), nn.Identity()
            self.norm, self.head = nn.Identity(), nn.Linear(1, 3)

    waits = " So nothing is watched and the logged zeros stand for nothing. EarlyStopping on 'anomaly_filters/count' "
    for module, ours, reason in (
        (Flat, watcher(), "The model has no convolution"),
        (SmallNet, watcher(probe_size=200, rare_fraction=0.01), "60 samples, fewer than .* at least 100 are needed"),
    ):
        with pytest.warns(UserWarning, match=reason) as caught:
            fit(tmp_path, ours, EarlyStopping("anomaly_filters/count", patience=100), module=module())
        (text,) = said(caught)
        assert waits in text


def test_without_validation_those_who_wait_are_named(tmp_path: Path) -> None:
    for ours, key in ((watcher(), "anomaly_filters/rise"), (TwoSampleCallback(TRAIN, VAL), "two_sample/p_value")):
        reads = AnomalyEarlyStopping() if key == "anomaly_filters/rise" else stopping()
        reads.strict = False
        with pytest.warns(UserWarning, match=rf"Nothing will be .*ed\. {type(reads).__name__} on '{key}' will never"):
            fit(tmp_path, ours, reads, limit_val_batches=0)


# layers that are not in use yet


def test_validations_without_a_live_filter_are_no_level_from_which_a_fraction_rises(tmp_path: Path) -> None:
    ours, stops = watcher(), AnomalyEarlyStopping()
    trainer = quiet_trainer(tmp_path, ours, stops, max_epochs=20)
    with pytest.warns(UserWarning, match="it was never called.* So nothing is watched"):
        trainer.fit(Late(), loader(), damaged())
    assert trainer.current_epoch == 20
    assert [entry["live"] for entry in ours.history] == [False] * 5 + [True] * 15
    assert [entry["metrics"]["count"] > 0 for entry in ours.history] == [False] * 5 + [True] * 15
    assert {entry["metrics"]["rise"] for entry in ours.history} == {0}


def test_reports_without_a_live_filter_are_none_for_pruning(tmp_path: Path) -> None:
    ours, prune = watcher(), AnomalyPruneCallback(at_epoch=2)
    with (
        pytest.warns(UserWarning, match="So nothing is watched"),
        pytest.warns(UserWarning, match="has 0 reports as epoch 2 begins, fewer than `min_votes = 2`"),
    ):
        quiet_trainer(tmp_path, ours, prune, max_epochs=9).fit(Late(), loader(), damaged())
    assert "before epoch 7:" in prune.describe()  # three reports, of which two have to agree


# validations outside a fit


def test_another_module_is_validated_without_the_values_of_an_earlier_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = watcher()
    trainer = quiet_trainer(tmp_path, ours, max_epochs=1)
    trainer.fit(SmallNet(), loader(), damaged())
    assert ours.history[-1]["metrics"]["count"] > 0

    def no_memory(*args: Any, **kwargs: Any) -> Any:
        raise MemoryError("no memory is left")

    monkeypatch.setattr(_probe, "analyze_maps", no_memory)
    for _ in range(2):  # each of them is told
        with pytest.warns(UserWarning, match="could not analyze .*, so nothing is watched"):
            (logged,) = trainer.validate(SmallNet(), damaged(), verbose=False)
        assert logged["anomaly_filters/count"] == logged["anomaly_filters/rise"] == 0
