"""What is masked in a Trainer gives exactly 0 to the end, in what is validated, saved, resumed and fitted again."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from acting import PROBE, GeluNet, ManualNet, fit, leak, probe_loader, pruner, training_loader
from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint
from torch import Tensor, nn
from trainers import QUIET, hook_count, quiet_trainer, watcher

from lightning_anomaly.callbacks import AnomalyPruneCallback

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch"),
]

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "weight decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


class Saving(pl.Callback):
    """Keeps the weights that each validation saw."""

    def __init__(self) -> None:
        self.validated: list[dict[str, Tensor]] = []

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.validated.append(copy.deepcopy(pl_module.state_dict()))


class Watching(pl.Callback):
    """Fails as soon as a masked filter gives anything but 0 in training."""

    def __init__(self, prune: AnomalyPruneCallback) -> None:
        self.prune = prune
        self.batches = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.prune.masked:
            assert leak(pl_module, self.prune.masked) == 0
            self.batches += 1


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return list(left) == list(right) and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("how", [{}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.1}], ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_outputs_stay_exactly_0_through_five_further_epochs(
    tmp_path: Path, optimizer: str, how: dict[str, Any]
) -> None:
    prune, model = pruner(1), GeluNet(OPTIMIZERS[optimizer])
    seen = Watching(prune)
    fit(tmp_path, model, prune, seen, max_epochs=6, **how)
    assert seen.batches == 5 * 3
    assert leak(model, prune.masked) == 0
    assert set(prune.masked) == {"conv1", "conv2", "up"}
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_outputs_stay_exactly_0_under_manual_optimization(tmp_path: Path) -> None:
    prune, model = pruner(1), ManualNet()
    seen = Watching(prune)
    fit(tmp_path, model, prune, seen, max_epochs=6)
    assert seen.batches == 5 * 3
    assert leak(model, prune.masked) == 0


def test_the_rest_goes_on_learning(tmp_path: Path) -> None:
    prune, model, seen = pruner(1), GeluNet(), Saving()
    fit(tmp_path, model, prune, seen, max_epochs=6)
    kept = [i for i in range(6) if i not in prune.masked["conv1"]]
    before, after = (weights["conv1.weight"] for weights in (seen.validated[1], model.state_dict()))
    assert not torch.equal(before[kept], after[kept])


def test_masked_filters_do_not_use_up_the_clipping_norm(tmp_path: Path) -> None:
    norms = []

    class Norms(pl.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            if prune.masked:
                masked = pl_module.conv1.weight.grad[prune.masked["conv1"]]
                norms.append(masked.norm().item())

    prune = pruner(1)
    fit(tmp_path, GeluNet(), prune, Norms(), gradient_clip_val=0.1)
    assert norms == [0.0] * 3


def test_a_checkpoint_loads_into_the_plain_module_without_this_package(tmp_path: Path) -> None:
    prune, model = pruner(1), GeluNet()
    fit(tmp_path, model, prune, ModelCheckpoint(tmp_path / "saved", save_last=True), max_epochs=3)
    torch.save((PROBE, model.eval()(PROBE)), tmp_path / "outputs.pt")
    script = """
import sys
import torch
from torch import nn
sys.modules["lightning_anomaly"] = None
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.norm1, self.conv2 = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3)
        self.up, self.head = nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2), nn.Linear(4, 3)
    def forward(self, x):
        x = self.up(nn.functional.gelu(self.conv2(nn.functional.gelu(self.norm1(self.conv1(x))))))
        return self.head(nn.functional.gelu(x).mean((2, 3)))
torch.set_num_threads(1)
model = Net().eval()
model.load_state_dict(torch.load("saved/last.ckpt", weights_only=True)["state_dict"])
images, outputs = torch.load("outputs.pt", weights_only=True)
assert torch.equal(model(images), outputs)
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=120)


@pytest.mark.parametrize("masked_at", [1, 2, 3], ids="masked before epoch {}".format)
@pytest.mark.parametrize("save", ["at the end of epoch 1", "in the middle of epoch 1"])
def test_a_resumed_run_ends_with_the_weights_of_the_whole_one(tmp_path: Path, save: str, masked_at: int) -> None:
    def checkpoint(folder: str) -> ModelCheckpoint:
        steps = {"every_n_train_steps": 5} if "middle" in save else {"every_n_epochs": 2}
        return ModelCheckpoint(tmp_path / folder, save_top_k=-1, **steps)

    def run(folder: str, **options: Any) -> tuple[GeluNet, AnomalyPruneCallback]:
        prune, model = pruner(masked_at), GeluNet(OPTIMIZERS["Adam"])
        seen = Watching(prune)
        trainer = quiet_trainer(
            tmp_path, prune, watcher(), seen, checkpoint(folder), num_sanity_val_steps=0, max_epochs=5
        )
        trainer.fit(model, Resumable(), probe_loader(), **options)
        assert seen.batches > 0
        assert leak(model, prune.masked) == 0
        return model, prune

    whole, pruned = run("whole")
    (saved,) = (path for path in (tmp_path / "whole").iterdir() if path.name.startswith("epoch=1"))
    with pytest.warns(UserWarning, match="The dirpath has changed"):
        resumed, again = run("resumed", ckpt_path=saved)
    assert again.masked == pruned.masked
    assert again.events == pruned.events
    assert same(resumed.state_dict(), whole.state_dict())


class Resumable:
    """Batches that a checkpoint knows the place of, as a loader has to for a resume in the middle of an epoch."""

    def __init__(self) -> None:
        self.place = 0

    def __iter__(self) -> Any:
        for place, batch in list(enumerate(training_loader()))[self.place :]:
            self.place = (place + 1) % len(self)  # the place of the batch to come
            yield batch

    def __len__(self) -> int:
        return 3

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


def test_a_checkpoint_of_a_run_without_it_is_taken(tmp_path: Path) -> None:
    fit(tmp_path, GeluNet(), ModelCheckpoint(tmp_path / "plain", save_last=True), max_epochs=3)
    prune, model = pruner(2), GeluNet()
    trainer = quiet_trainer(tmp_path, prune, watcher(), max_epochs=6, num_sanity_val_steps=0)
    with pytest.warns(UserWarning, match=r"has 0 reports as epoch 3 begins|callbacks used to create the checkpoint"):
        trainer.fit(model, training_loader(), probe_loader(), ckpt_path=tmp_path / "plain" / "last.ckpt")
    assert [event["epoch"] for event in prune.events] == [4]
    assert leak(model, prune.masked) == 0


def test_a_second_fit_of_the_model_keeps_the_mask_and_another_model_starts_without(tmp_path: Path) -> None:
    prune, watching, model = pruner(1), watcher(), GeluNet()
    trainer = quiet_trainer(tmp_path, prune, watching, max_epochs=2)
    trainer.fit(model, training_loader(), probe_loader())
    masked = prune.masked
    trainer.fit_loop.max_epochs = 4
    trainer.fit(model, training_loader(), probe_loader())
    assert prune.masked == masked
    assert len(prune.events) == 1
    trainer = quiet_trainer(tmp_path, prune, watching, max_epochs=3)
    trainer.fit(model, training_loader(), probe_loader())
    assert len(prune.events) == 2  # epoch 1 of another training
    assert all(set(filters) <= set(prune.masked[layer]) for layer, filters in masked.items())
    assert leak(model, prune.masked) == 0
    other = GeluNet()
    trainer = quiet_trainer(tmp_path, prune, watching, max_epochs=1)
    with pytest.warns(UserWarning, match="when nothing will happen"):
        trainer.fit(other, training_loader(), probe_loader())
    assert prune.masked == {}
    assert all((other.conv1.weight[i] != 0).any() for i in range(6))


def test_weights_that_were_loaded_since_are_not_said_to_be_masked_and_a_fit_says_that_it_masks_them(
    tmp_path: Path,
) -> None:
    prune, model = pruner(1), GeluNet()
    before = copy.deepcopy(model.state_dict())
    fit(tmp_path, model, prune)
    count = sum(map(len, prune.masked.values()))
    trainer = quiet_trainer(tmp_path, prune, watcher(), max_epochs=2)
    (held,) = trainer.validate(model, probe_loader(), verbose=False)
    assert held["anomaly_prune/masked"] == count > 0
    (other,) = trainer.validate(GeluNet(), probe_loader(), verbose=False)
    model.load_state_dict(before)
    (loaded,) = trainer.validate(model, probe_loader(), verbose=False)
    assert other["anomaly_prune/masked"] == loaded["anomaly_prune/masked"] == 0
    assert other["anomaly_prune/masked_fraction"] == loaded["anomaly_prune/masked_fraction"] == 0
    with pytest.warns(UserWarning, match=f"Other weights were loaded since .* masked {count} filters"):
        trainer.fit(model, training_loader(), probe_loader())
    assert leak(model, prune.masked) == 0


def test_the_mask_restores_after_the_fit(tmp_path: Path) -> None:
    prune, model = pruner(1), GeluNet()
    fit(tmp_path, model, prune)
    assert prune.mask is not None
    prune.mask.restore()
    assert all((model.conv1.weight[i] != 0).any() for i in range(6))


def test_a_test_of_a_checkpoint_leaves_the_state_with_the_weights(tmp_path: Path) -> None:
    prune, model = pruner(2), GeluNet()
    model.test_step = lambda batch, batch_idx: None
    saving = ModelCheckpoint(tmp_path / "saved", save_top_k=-1, filename="{epoch}")
    trainer = fit(tmp_path, model, prune, saving, max_epochs=3)
    assert prune.masked
    trainer.test(model, probe_loader(), ckpt_path=tmp_path / "saved" / "epoch=0.ckpt", verbose=False)
    assert prune.masked == {}
    trainer = quiet_trainer(tmp_path, prune, watcher(), max_epochs=1, num_sanity_val_steps=0)
    with pytest.warns(UserWarning, match="when nothing will happen"):
        trainer.fit(model, training_loader(), probe_loader())
    assert prune.masked == {}


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint")
def test_the_mask_of_a_checkpoint_that_is_validated_is_there(tmp_path: Path) -> None:
    prune, model = pruner(1), GeluNet()
    fit(tmp_path, model, prune, ModelCheckpoint(tmp_path / "saved", save_last=True))
    for used, module in ((prune, model), (pruner(1), GeluNet())):
        trainer = quiet_trainer(tmp_path, used, watcher())
        trainer.validate(module, probe_loader(), ckpt_path=tmp_path / "saved" / "last.ckpt", verbose=False)
        assert used.mask is not None
        assert used.mask.masked == used.masked == prune.masked
        assert trainer.callback_metrics["anomaly_prune/masked_fraction"] == pytest.approx(used.mask.parameter_fraction)
        assert 0 < used.mask.parameter_fraction < 1
        assert hook_count(module) == 0


class Searching(LearningRateFinder):
    """Looks for a learning rate before epoch 2, as in Lightning's example of fine-tuning: it loads what it saved."""

    def __init__(self) -> None:
        super().__init__(num_training_steps=2, early_stop_threshold=None, update_attr=False)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        pass

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 2 and self.optimal_lr is None:
            self.lr_find(trainer, pl_module)


def test_a_checkpoint_that_is_loaded_in_the_middle_of_a_fit_keeps_the_mask(tmp_path: Path) -> None:
    prune, model, searching = pruner([1, 3], max_fraction=0.5), GeluNet(), Searching()
    seen = Watching(prune)
    fit(tmp_path, model, searching, prune, seen, max_epochs=4)
    assert searching.optimal_lr is not None
    assert [event["epoch"] for event in prune.events] == [1, 3]
    assert prune.mask is not None
    assert prune.mask.masked == prune.masked
    assert seen.batches == 3 * 3
    assert leak(model, prune.masked) == 0


def test_a_norm_that_mixes_channels_is_left_with_a_warning(tmp_path: Path) -> None:
    class Grouped(GeluNet):
        def __init__(self) -> None:
            super().__init__()
            self.norm1 = nn.GroupNorm(2, 6)

    prune, model = pruner(1), Grouped()
    message = r"normalisation layers that depend on other channels .* 'conv1' -> 'norm1' \(GroupNorm\)"
    with pytest.warns(UserWarning, match=message):
        fit(tmp_path, model, prune)
    assert model.maps(PROBE)["conv1"][:, prune.masked["conv1"]].count_nonzero() == 0


class FunctionalNet(GeluNet):
    """Its norm is behind a function, and another one behind a concatenation."""

    def __init__(self, between: Any = nn.functional.relu, **options: Any) -> None:
        super().__init__(**options)
        self.between = between
        self.behind = nn.BatchNorm2d(7)
        self.conv2 = nn.Conv2d(7, 8, 3)
        for norm in (self.norm1, self.behind):
            nn.init.constant_(norm.bias, 0.5)

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        conv1 = self.conv1(x)
        norm1 = self.norm1(self.between(conv1))
        conv2 = self.conv2(self.behind(torch.cat([x, norm1], 1)))
        return {"conv1": conv1, "norm1": norm1, "conv2": conv2, "up": self.up(conv2.relu())}


def behind(model: FunctionalNet) -> list[int]:
    """The filters of the first convolution that are masked in the norm behind the concatenation."""
    return [channel - 1 for channel in model.behind.bias.eq(0).nonzero().flatten().tolist()]


def test_norms_behind_functions_are_masked_with_the_filter(tmp_path: Path) -> None:
    prune, model = pruner(1), FunctionalNet()
    seen = Watching(prune)
    fit(tmp_path, model, prune, seen, max_epochs=4)
    assert seen.batches == 3 * 3
    assert leak(model, prune.masked) == 0
    assert behind(model) == prune.masked["conv1"]


def test_a_norm_behind_what_cannot_be_followed_is_left_with_one_warning(tmp_path: Path) -> None:
    prune, model = pruner([1, 2]), FunctionalNet(between=torch.sigmoid)
    with pytest.warns(UserWarning, match=r"could not be followed: 'conv1' -> 'norm1' \(BatchNorm2d\)\. ") as caught:
        fit(tmp_path, model, prune, max_epochs=3)
    assert len([warning for warning in caught if "Masked filters" in str(warning.message)]) == 1
    assert model.maps(PROBE)["conv1"][:, prune.masked["conv1"]].count_nonzero() == 0
    assert model.norm1.bias.count_nonzero() == 6


def test_a_resumed_run_masks_the_same_norms(tmp_path: Path) -> None:
    first, saving = pruner(1), ModelCheckpoint(tmp_path / "saved", save_last=True)
    fit(tmp_path, FunctionalNet(), first, saving)
    prune, model = pruner([1, 2]), FunctionalNet()  # masks as the resumed epoch begins, on what was seen before
    with pytest.warns(UserWarning, match="callbacks used to create the checkpoint"):
        fit(tmp_path, model, prune, max_epochs=4, ckpt_path=tmp_path / "saved" / "last.ckpt")
    assert len(prune.masked["conv1"]) >= len(first.masked["conv1"])
    assert leak(model, prune.masked) == 0
    assert behind(model) == prune.masked["conv1"]


def test_a_checkpoint_of_before_functions_were_followed_is_taken(tmp_path: Path) -> None:
    first, saving = pruner(1), ModelCheckpoint(tmp_path / "saved", save_last=True)
    fit(tmp_path, FunctionalNet(), first, saving)
    path = tmp_path / "saved" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    state = checkpoint["callbacks"][first.state_key]
    norms = {"conv1": [], "conv2": [], "up": []}
    state["mask"] = {"filters": state["mask"]["filters"], "norms": dict(norms)}
    state["norms"] = norms
    del state["lost_norms"]
    torch.save(checkpoint, path)
    prune, model = pruner([1, 3], max_fraction=0.8), FunctionalNet()
    with pytest.warns(UserWarning, match="callbacks used to create the checkpoint"):
        fit(tmp_path, model, prune, max_epochs=4, ckpt_path=path)
    assert [event["epoch"] for event in prune.events] == [1, 3]
    assert leak(model, prune.masked) == 0
    assert behind(model) == prune.masked["conv1"]


def test_a_layer_that_validation_never_calls_is_left_with_a_warning(tmp_path: Path) -> None:
    """Watched on training images, it is in the report; but which norm follows it was never seen."""

    class Sparing(GeluNet):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.conv1(batch[0]).mean())

    prune = pruner(1)
    trainer = quiet_trainer(tmp_path, watcher(probe="train", layers=["conv1", "conv2"]), prune, num_sanity_val_steps=0)
    loader = probe_loader()
    with pytest.warns(UserWarning, match=r"leaves layer 'conv2' as it is. .* seen a call of layer 'conv2'"):
        trainer.fit(Sparing(), loader, loader)
    assert list(prune.masked) == ["conv1"]


def test_a_lazy_model_is_masked_once_it_is_there(tmp_path: Path) -> None:
    class Lazy(GeluNet):
        def __init__(self) -> None:
            super().__init__()
            self.conv2 = nn.LazyConv2d(8, 3)

    prune, model = pruner(1), Lazy()
    trainer = quiet_trainer(tmp_path, prune, watcher(), max_epochs=3)
    trainer.fit(model, training_loader(), probe_loader())
    assert "conv2" in prune.masked
    assert leak(model, prune.masked) == 0


# What ModelPruning of Lightning gets wrong, one test for each of the eight; some are also shown in more detail above.


def test_defect_1_resume_keeps_masks(tmp_path: Path) -> None:
    first, saving = pruner(1), ModelCheckpoint(tmp_path / "saved", save_last=True)
    fit(tmp_path, GeluNet(), first, saving)
    prune, model = pruner(1), GeluNet()
    with pytest.warns(UserWarning, match="callbacks used to create the checkpoint"):
        fit(tmp_path, model, prune, max_epochs=4, ckpt_path=tmp_path / "saved" / "last.ckpt")
    assert prune.masked == first.masked
    assert leak(model, prune.masked) == 0


def test_defect_2_checkpoints_in_the_middle_of_the_training_have_ordinary_keys(tmp_path: Path) -> None:
    fit(tmp_path, GeluNet(), pruner(1), ModelCheckpoint(tmp_path / "saved", save_top_k=-1), max_epochs=3)
    paths = list((tmp_path / "saved").iterdir())
    assert len(paths) == 3
    for path in paths:
        GeluNet().load_state_dict(torch.load(path, weights_only=True)["state_dict"], strict=True)


def test_defect_3_a_buffer_named_mask_is_the_users(tmp_path: Path) -> None:
    class Masked(GeluNet):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("attention_mask", torch.ones(3))
            self.conv1.register_buffer("weight_mask", torch.ones(2))

    model = Masked()
    fit(tmp_path, model, pruner(1), ModelCheckpoint(tmp_path / "saved", save_last=True))
    saved = torch.load(tmp_path / "saved" / "last.ckpt", weights_only=True)["state_dict"]
    assert list(saved) == list(Masked().state_dict())
    assert torch.equal(saved["attention_mask"], torch.ones(3))
    assert torch.equal(saved["conv1.weight_mask"], torch.ones(2))


def test_defect_4_what_is_validated_is_what_is_saved(tmp_path: Path) -> None:
    seen, saving = Saving(), ModelCheckpoint(tmp_path / "saved", save_top_k=-1, filename="{epoch}")
    fit(tmp_path, GeluNet(), pruner([1, 2]), seen, saving, max_epochs=4)
    for epoch, validated in enumerate(seen.validated):
        saved = torch.load(tmp_path / "saved" / f"epoch={epoch}.ckpt", weights_only=True)["state_dict"]
        assert same(saved, validated)


def test_defect_5_a_second_fit_works(tmp_path: Path) -> None:
    prune, model = pruner(1), GeluNet()
    trainer = fit(tmp_path, model, prune)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(model, training_loader(), probe_loader())
    assert trainer.current_epoch == 4
    assert leak(model, prune.masked) == 0


def test_defect_6_the_bias_goes_too(tmp_path: Path) -> None:
    prune, model = pruner(1), GeluNet()
    fit(tmp_path, model, prune)
    for layer, filters in prune.masked.items():
        assert getattr(model, layer).bias[filters].count_nonzero() == 0
    assert model.norm1.bias[prune.masked["conv1"]].count_nonzero() == 0


def test_defect_7_a_filter_of_a_transposed_convolution_is_an_output_channel(tmp_path: Path) -> None:
    prune, model = pruner(1), GeluNet()
    fit(tmp_path, model, prune)
    maps = model.eval().maps(PROBE)["up"]
    off = [i for i in range(4) if maps[:, i].count_nonzero() == 0]
    assert off == prune.masked["up"]
    assert model.up.weight.count_nonzero() == model.up.weight.numel() * (4 - len(off)) // 4


def test_defect_8_convolutions_under_weight_norm_are_masked(tmp_path: Path) -> None:
    prune, model = pruner(1), GeluNet()
    nn.utils.parametrizations.weight_norm(model.conv2)
    fit(tmp_path, model, prune, max_epochs=3)
    assert prune.masked["conv2"]
    assert leak(model, prune.masked) == 0
