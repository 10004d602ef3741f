"""Where a TwoSampleCallback takes its images from: the Trainer's own data without augmentation, or what it is given."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchvision import transforms
from torchvision.datasets import FakeData
from trainers import QUIET, SmallNet, fit, images, loader, quiet_trainer, said

from lightning_anomaly import TwoSampleCallback, two_sample_test

pytestmark = QUIET
PLAIN = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.25,) * 3)])
AUGMENTED = transforms.Compose([transforms.RandomCrop(8, 2), transforms.RandomHorizontalFlip(), PLAIN])


def pictures(train: bool, transform: Any = None) -> FakeData:
    """Like torchvision's CIFAR-10, but smaller and of noise."""
    return FakeData(200 if train else 150, (3, 8, 8), 3, transform, random_offset=1000 * train)


class Module(SmallNet):
    """A user's module; remembers the images that are not of its loaders' batches of 25."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if len(x) != 25:
            self.seen.append(x)
        return super().forward(x)


class Data(pl.LightningDataModule):
    """Augmented training images and plain validation images, as two data sets or as parts of such."""

    def __init__(self, subsets: bool = False) -> None:
        super().__init__()
        self.train, self.val = pictures(True, AUGMENTED), pictures(False, PLAIN)
        self.parts = (Subset(self.train, range(175)), Subset(self.val, range(125))) if subsets else None

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.parts[0] if self.parts else self.train, 25, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.parts[1] if self.parts else self.val, 25)


def fit_own(folder: Path, *callbacks: Any, subsets: bool = False, ckpt_path: Any = None, **options: Any) -> Module:
    torch.manual_seed(0)
    model = Module()
    quiet_trainer(folder, *callbacks, **options).fit(model, datamodule=Data(subsets), ckpt_path=ckpt_path)
    return model


class Fitted(NamedTuple):
    """Four epochs with a checkpoint of each."""

    model: Module
    compared: TwoSampleCallback
    folder: Path


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    folder = tmp_path_factory.mktemp("own")
    compared, keep = TwoSampleCallback(n=128), ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
    model = fit_own(folder, compared, keep, max_epochs=4)
    return Fitted(model, compared, folder)


def sources(seen: Tensor, train: bool) -> list[int]:
    """Which plain images of a data set these are; -1 for none of them."""
    known = {PLAIN(image).numpy().tobytes(): place for place, (image, _) in enumerate(pictures(train))}
    return [known.get(image.numpy().tobytes(), -1) for image in seen]


def test_two_lines_compare_a_plain_random_sample_of_the_trainers_own_data(fitted: Fitted, tmp_path: Path) -> None:
    model, compared = fitted.model, fitted.compared
    report = compared.report
    assert report is not None
    assert (report.n_train, report.n_val) == (128, 128)
    seen = torch.cat(model.seen).split(128)
    assert len(seen) == 8  # of both kinds, at four validations
    for first, again in (seen[:2], seen[-2:]), (seen[:2], seen[4:6]):
        assert all(map(torch.equal, first, again))
    for own, train in zip(seen, (True, False), strict=False):
        places = sources(own, train)
        assert len(set(places)) == 128
        assert min(places) >= 0
        assert places != sorted(places)
        assert max(places) >= 128
    again = two_sample_test(model, seen[0], seen[1])
    assert again.confidence_error_ratio == pytest.approx(report.confidence_error_ratio)
    second = TwoSampleCallback(n=128)
    resumed = fit_own(tmp_path, second, ckpt_path=fitted.folder / "epoch=1.ckpt", max_epochs=4)
    assert torch.equal(torch.cat(resumed.seen), torch.cat(seen[4:]))
    assert len(second.history) == 4
    assert second.history[:2] == compared.history[:2]


def test_the_training_is_the_same_without_it(fitted: Fitted, tmp_path: Path) -> None:
    alone = fit_own(tmp_path, max_epochs=4).state_dict()
    assert all(torch.equal(value, alone[name]) for name, value in fitted.model.state_dict().items())


def test_of_parts_of_data_sets_only_those_parts_are_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        model = fit_own(tmp_path, TwoSampleCallback(n=1000), subsets=True, max_epochs=1)
    assert len([message for message in caplog.messages if "with the transform of the validation" in message]) == 1
    train, val = torch.cat(model.seen).split([175, 125])
    assert sorted(sources(train, True)) == list(range(175))
    assert sorted(sources(val, False)) == list(range(125))


def test_without_a_transform_images_are_as_the_loader_yields_them_and_it_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def brighter(samples: list[tuple[Tensor, Tensor]]) -> Any:
        x, y = torch.utils.data.default_collate(samples)
        return x + 0.05, y

    train = DataLoader(loader(80).dataset, batch_size=20, shuffle=True, collate_fn=brighter)
    compared, model = TwoSampleCallback(n=64), SmallNet()
    with caplog.at_level(logging.INFO):
        fit(tmp_path, compared, module=model, train=train, max_epochs=1)
    assert len([message for message in caplog.messages if "`train_inputs`" in message]) == 1
    assert compared.report is not None
    assert (compared.report.n_train, compared.report.n_val) == (64, 60)
    # All validation images, and a random sample of the training images.
    expected = two_sample_test(model, images(80) + 0.05, images(60, seed=1))
    torch.testing.assert_close(compared.report.val_errors.sort().values, expected.val_errors.sort().values)
    among = (compared.report.train_errors[:, None] - expected.train_errors).abs().amin(1)
    assert among.max() < 1e-5


def test_data_sets_loaders_and_tensors_are_accepted_for_either_side(tmp_path: Path) -> None:
    train, val = images(80), images(60, seed=1)
    found = []
    for one, other in [
        (train, TensorDataset(val)),
        (DataLoader(TensorDataset(train), batch_size=7), val),
        (TensorDataset(train, torch.zeros(80)), None),
    ]:
        fit(tmp_path, compared := TwoSampleCallback(one, other), train=loader(20), max_epochs=1)
        assert compared.report is not None
        found.append({k: v for k, v in compared.history[0]["metrics"].items() if k != "seconds"})
    assert all(own == pytest.approx(found[0]) for own in found)


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        ((images(60) - 0.5) * 2 + 0.5, images(60, seed=2), "`train_inputs` .* not scaled"),
        (images(60), (images(60, seed=2) - 0.5) / 2 + 0.5, "`val_inputs` .* not scaled"),
        (images(60) + 0.5, images(60, seed=2), "`train_inputs` .* not scaled .* mean 1 "),
        (images(60), torch.cat([images(59, seed=2), images(1)]), "1 of 60 validation images .* are training images"),
    ],
)
def test_images_that_hide_the_signal_are_one_warning(tmp_path: Path, train: Tensor, val: Tensor, message: str) -> None:
    with pytest.warns(UserWarning, match=message) as caught:
        fit(tmp_path, TwoSampleCallback(train, val), max_epochs=1)
    assert len(said(caught)) == 1


def test_images_like_those_of_the_validation_and_one_in_a_hundred_that_is_equal_are_no_warning(tmp_path: Path) -> None:
    train = images(60) * 1.3
    val = torch.cat([images(119, seed=2) / 1.3, train[:1]])
    fit(tmp_path, TwoSampleCallback(train, val), max_epochs=1)
