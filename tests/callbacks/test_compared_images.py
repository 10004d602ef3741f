"""The images of a MemorizationCallback: the Trainer's data without augmentation, or given ones."""

import gc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from torchvision import transforms
from torchvision.datasets import FakeData
from trainers import SmallNet, fit, hook_count, images, loader, quiet_trainer, said, watch_count

from lightning_anomaly import MemorizationCallback, two_sample_test

PLAIN = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.25,) * 3)])
AUGMENTED = transforms.Compose([transforms.RandomCrop(8, 2), transforms.RandomHorizontalFlip(), PLAIN])


def pictures(train: bool, transform: Any = None) -> FakeData:
    return FakeData(200 if train else 150, (3, 8, 8), 3, transform, random_offset=1000 * train)


class Module(SmallNet):
    """Keeps all images that do not come in its loaders' batches of 25, or in the 12 of one that are run again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if len(x) not in (12, 25):
            self.seen.append(x)
        return super().forward(x)


def sources(seen: Tensor, train: bool) -> list[int]:
    """Return the positions of images in the plain data set; -1 for other images."""
    positions = {PLAIN(image).numpy().tobytes(): place for place, (image, _) in enumerate(pictures(train))}
    return [positions.get(image.numpy().tobytes(), -1) for image in seen]


def test_a_random_sample_of_the_trainers_data_is_compared_without_augmentation(tmp_path: Path) -> None:
    compared, keep = MemorizationCallback(sample_size=128), ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    loaders = {"train": DataLoader(pictures(True, AUGMENTED), 25, shuffle=True)}
    loaders["val"] = DataLoader(pictures(False, PLAIN), 25)
    fit(tmp_path, compared, keep, module=(model := Module()), max_epochs=4, **loaders)
    report = compared.report
    assert (report.n_train, report.n_val) == (128, 128)
    seen = torch.cat(model.seen).split(128)
    assert len(seen) == 8  # of both kinds, at four validations
    for first, again in (seen[:2], seen[-2:]), (seen[:2], seen[4:6]):
        assert all(map(torch.equal, first, again))
    for images_of_kind, train in zip(seen, (True, False), strict=False):
        positions = sources(images_of_kind, train)
        assert len(set(positions)) == 128
        assert min(positions) >= 0
        assert positions != list(range(positions[0], positions[0] + 128))
        assert max(positions) >= 128
    again = two_sample_test(model, seen[0], seen[1])
    assert again.error_ratio == pytest.approx(report.error_ratio)
    second = MemorizationCallback(sample_size=128)
    resumed = Module()
    fit(tmp_path, second, module=resumed, ckpt_path=tmp_path / "epoch=1.ckpt", max_epochs=4, **loaders)
    assert torch.equal(torch.cat(resumed.seen), torch.cat(seen[4:]))
    assert [entry["step"] for entry in second.history] == [8, 16, 24, 32]
    metrics = [[entry["metrics"] for entry in callback.history[:2]] for callback in (second, compared)]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("limit", [1, 0])
def test_images_beyond_the_memory_limit_are_read_at_each_comparison(tmp_path: Path, limit: int) -> None:
    """One that cannot be read then is left out of that comparison, and the others keep their places."""

    class Fails(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            if index == 5 and (tmp_path / "fails").exists():
                raise OSError("not now")
            return super().__getitem__(index)

    class Breaks(SmallNet):
        def on_train_epoch_end(self) -> None:
            (tmp_path / "fails").unlink(missing_ok=True)
            if self.current_epoch == 1:
                (tmp_path / "fails").touch()

    train, val = (Fails(*loader(count, seed).dataset.tensors) for count, seed in ((80, 0), (60, 1)))
    compared = MemorizationCallback(train, val, max_memory_mb=limit)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, compared, module=Breaks(), max_epochs=5)
    counts = [entry["metrics"]["seconds"] > 0 and entry["compares_output"] for entry in compared.history]
    assert counts == [True] * 5
    assert (compared.report.n_train, compared.report.n_val) == (80, 60)
    assert [*compared.report.label_doubts].count(5) == 1
    assert sum("position 5 (OSError: not now)" in text for text in said(caught)) == (2 if limit == 0 else 0)
    areas = [entry["metrics"]["auc"] for entry in compared.history]
    expected = MemorizationCallback(images(80), images(60, seed=1))
    fit(tmp_path, expected, max_epochs=5)
    same = [a == entry["metrics"]["auc"] for a, entry in zip(areas, expected.history, strict=True)]
    assert same == [True, True, limit > 0, True, True]


def test_images_are_freed_when_the_fit_ends(tmp_path: Path) -> None:
    def kept() -> int:
        gc.collect()
        return sum(issubclass(type(one), Tensor) and one.shape == (37, 1, 8, 8) for one in gc.get_objects())

    before = kept()
    compared = MemorizationCallback(sample_size=37)
    fit(tmp_path, compared, max_epochs=1)
    assert compared.report is not None
    assert kept() == before


class Averaged(SmallNet):
    """Validates other weights than it trains, which it swaps inside the step."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.head.weight.data.mul_(4)
        super().validation_step(batch, batch_idx)
        self.head.weight.data.div_(4)


class Warm(SmallNet):
    def forward(self, x: Tensor, temperature: float = 1.0) -> Tensor:
        return super().forward(x) / temperature

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0], temperature=0.1)


class Dropping(SmallNet):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.drop.train()
        super().validation_step(batch, batch_idx)
        self.drop.eval()


AVERAGING = [callbacks.WeightAveraging()] if hasattr(callbacks, "WeightAveraging") else []  # lightning >= 2.6


def test_both_kinds_of_images_go_through_the_same_call_of_the_same_weights(tmp_path: Path) -> None:
    """Those of the validation step, which a `WeightAveraging` takes back when a validation ends."""
    compared, model = MemorizationCallback(sample_size=80), SmallNet()
    fit(tmp_path, *AVERAGING, compared, module=model, limit_val_batches=2)
    report, expected = compared.report, two_sample_test(model, images(80), images(60, seed=1))
    torch.testing.assert_close(report.train_errors, expected.train_errors)
    torch.testing.assert_close(report.val_errors, expected.val_errors)


@pytest.mark.parametrize("module", [Averaged, Warm, Dropping])
def test_a_call_that_does_not_give_what_the_loss_is_given_is_not_compared(tmp_path: Path, module: Any) -> None:
    compared, model = MemorizationCallback(), module()
    with pytest.warns(UserWarning, match="The output is not compared") as caught:
        fit(tmp_path, compared, module=model)
    assert len(said(caught)) == 1
    assert not any(entry["metrics"] for entry in compared.history)
    assert hook_count(model) == watch_count() == 0


def test_further_arguments_of_a_call_are_those_of_the_step(tmp_path: Path) -> None:
    class Cold(Warm):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", functional.cross_entropy(self(batch[0], temperature=0.1), batch[1]))

    compared, model = MemorizationCallback(), Cold()
    fit(tmp_path, compared, module=model)
    with torch.no_grad():
        errors = 1 - model.eval()(images(60, seed=1), temperature=0.1).softmax(1).amax(1)
    torch.testing.assert_close(compared.report.val_errors, errors)


def test_training_images_that_the_run_never_sees_are_not_compared(tmp_path: Path) -> None:
    compared = MemorizationCallback()
    trainer = fit(tmp_path, compared, max_epochs=1, limit_train_batches=2)
    expected = two_sample_test(trainer.lightning_module, images(40), images(60, seed=1))
    torch.testing.assert_close(compared.report.train_errors, expected.train_errors)


class Prepares(SmallNet):
    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def loss(self, batch: Any) -> Tensor:
        return super().loss([self.change(batch[0]), batch[1]])


def changed(images: Tensor) -> Tensor:
    return (images - 0.5) * 8


@pytest.mark.parametrize("change", [changed, lambda images: images.sub_(0.5).mul_(8), lambda images: images[:, :, 2:]])
def test_images_that_a_step_prepares_give_one_warning(tmp_path: Path, change: Any) -> None:
    compared, model = MemorizationCallback(), Prepares(change)
    with pytest.warns(UserWarning, match="prepares images.*`train_inputs`") as caught:
        fit(tmp_path, compared, module=model)
    assert len(said(caught)) == 1
    assert hook_count(model) == 0


def test_prepared_images_may_be_given(tmp_path: Path) -> None:
    given = [changed(images(80)), changed(images(60, seed=1))]
    compared = MemorizationCallback(*given)
    model = fit(tmp_path, compared, module=Prepares(changed), max_epochs=1).lightning_module  # warnings are errors
    torch.testing.assert_close(compared.report.val_errors, two_sample_test(model, *given).val_errors)


@pytest.mark.parametrize("logits", ["classify", "head.absent", "training", "head.weight"])
def test_a_name_of_nothing_that_gives_logits_is_an_error(tmp_path: Path, logits: str) -> None:
    with pytest.raises(ValueError, match=f"`logits_from`.*'{logits}'.*'conv1'"):
        fit(tmp_path, MemorizationCallback(logits_from=logits))


def test_incomparable_images_give_one_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="`train_inputs` .* not scaled") as caught:
        fit(tmp_path, MemorizationCallback(images(60) + 0.5, images(60, seed=2)), max_epochs=1)
    assert len(said(caught)) == 1


def test_a_loader_without_positions_gives_one_short_warning(tmp_path: Path) -> None:
    train = DataLoader([loader(20).dataset[:20]] * 4, batch_size=None)
    with pytest.warns(UserWarning, match="Found `batch_size=None`") as caught:
        fit(tmp_path, MemorizationCallback(sample_size=16), train=train)
    (text,) = said(caught)
    assert len(text) < 600


def test_another_data_set_of_the_training_loader_is_sampled_anew(tmp_path: Path) -> None:
    class Shards(SmallNet):
        def train_dataloader(self) -> DataLoader[Any]:
            return loader(40, seed=self.current_epoch)

        def val_dataloader(self) -> DataLoader[Any]:
            return VAL_LOADER

    VAL_LOADER, model, compared = loader(seed=9), Shards(), MemorizationCallback()
    trainer = quiet_trainer(tmp_path, compared, max_epochs=3, reload_dataloaders_every_n_epochs=1)
    trainer.fit(model)
    expected = two_sample_test(model, images(40, seed=2), images(60, seed=9))
    torch.testing.assert_close(compared.report.train_errors, expected.train_errors)
