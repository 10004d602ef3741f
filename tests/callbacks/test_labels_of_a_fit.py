"""A MemorizationCallback finds wrong labels among the training images of a fit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from trainers import SmallNet, fit, images

from lightning_anomaly import MemorizationCallback, two_sample_test

# The networks soon know these few images.
pytestmark = pytest.mark.filterwarnings("ignore:.*expects fewer than 10 errors")
WRONG = [3, 40, 77, 101]


def lit(count: int, seed: int, wrong: Any = ()) -> TensorDataset:
    """Images whose class is the row that is lit; some have the label of the next class."""
    labels = torch.arange(count) % 3
    pictures = 0.1 * images(count, seed=seed)
    pictures[torch.arange(count), :, 2 * labels] += 1
    labels[[*wrong]] = (labels[[*wrong]] + 1) % 3
    return TensorDataset(pictures, labels)


class Sees(SmallNet):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6 * 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv2(self.norm(self.conv1(x)).relu()).mean(3).flatten(1))


def fit_lit(folder: Path, *callbacks: Any, module: Any = None, train: Any = None, **options: Any) -> Any:
    train, val = (DataLoader(data, 20) for data in (lit(120, 0, WRONG) if train is None else train, lit(60, 1)))
    return fit(folder, *callbacks, module=module or Sees(), train=train, val=val, **options)


def test_wrong_labels_come_first_and_a_resumed_fit_finds_the_same(tmp_path: Path) -> None:
    whole, keep = MemorizationCallback(), ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    trainer = fit_lit(tmp_path, whole, keep, max_epochs=4)
    report = whole.report
    assert sorted([*report.label_doubts][:4]) == sorted(report.doubtful_labels) == WRONG
    assert sorted(report.label_doubts) == list(range(120))
    assert trainer.callback_metrics["memorization/labels_in_doubt"] == pytest.approx(4 / 120)
    assert whole.history[-1]["metrics"]["labels_in_doubt"] == pytest.approx(4 / 120)
    assert "4 of 120 training labels are in doubt" in str(report)
    assert any(f"image 40 labeled 2, looks like 1 (since epoch {epoch})" in str(report) for epoch in range(4))
    resumed = MemorizationCallback()
    fit_lit(tmp_path, resumed, ckpt_path=tmp_path / "epoch=1.ckpt", max_epochs=4)
    assert resumed.report.label_doubts == report.label_doubts
    assert report.pictures.shape == (64, 8, 8, 1)
    assert "labels" not in str(two_sample_test(trainer.lightning_module, images(60), images(60, seed=1)))


class Renamed(TensorDataset):
    """Its classes are others than its `targets`, as with a `target_transform`."""

    def __init__(self, data: TensorDataset) -> None:
        super().__init__(*data.tensors)
        self.targets = (data.tensors[1] + 1) % 3


def test_the_labels_are_those_that_the_run_trains_on(tmp_path: Path) -> None:
    compared = MemorizationCallback()
    train = Renamed(lit(120, 0, WRONG))
    train.tensors[1][7] = -100  # unknown
    fit_lit(tmp_path, compared, train=train, max_epochs=4)
    assert sorted([*compared.report.label_doubts][:4]) == WRONG
    assert sorted(compared.report.label_doubts) == [place for place in range(120) if place != 7]


def test_a_second_fit_begins_anew_and_a_resumed_one_goes_on_with_the_same_images(tmp_path: Path) -> None:
    keep, compared, module = ModelCheckpoint(tmp_path, "first"), MemorizationCallback(), Sees()
    fit_lit(tmp_path, compared, keep, module=module, max_epochs=4)
    others, resumed = [5, 22, 60, 90], MemorizationCallback()
    train = lit(120, 2, others)
    fit_lit(tmp_path, compared, module=module, train=train, max_epochs=4)
    fit_lit(tmp_path, resumed, train=train, ckpt_path=tmp_path / "first.ckpt", max_epochs=8)
    for callback in (compared, resumed):
        assert sorted([*callback.report.label_doubts][:4]) == others


def test_labels_of_a_subset_are_those_of_its_positions(tmp_path: Path) -> None:
    data = torch.utils.data.Subset(lit(120, 0, WRONG), range(30, 120))
    compared = MemorizationCallback(sample_size=80)
    fit_lit(tmp_path, compared, train=data, max_epochs=4)
    found = [*compared.report.label_doubts]
    assert len(found) == 80
    expected = {10, 47, 71} & {*found}
    assert {*found[: len(expected)]} == expected
