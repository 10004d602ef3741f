"""The samples of a probe, and the warning if they are sorted by class."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from reports import facts
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from trainers import SmallNet, fit, images, loader, said, watch_count, watcher

from lightning_anomaly import analyze


@pytest.mark.parametrize("kind", ["no usable layer", "images of varying size"])
def test_a_probe_without_maps_ends_at_its_size(tmp_path: Path, kind: str) -> None:
    """Otherwise all validation images would be captured."""

    class Other(SmallNet):
        kept = 0

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            hooked = watch_count() > (4 if batch_idx == 0 else 0)  # a first step is watched
            self.kept += len(batch[0]) * hooked
            x = batch[0][..., : 8 - batch_idx % 2]
            self(x) if kind == "images of varying size" else self.head(x[:, 0, 0, :6])

    ours, module = watcher(probe_size=40), Other()
    with pytest.warns(UserWarning, match="Nothing is measured"):
        fit(tmp_path, ours, module=module, val=loader(200, seed=1), max_epochs=1, num_sanity_val_steps=0)
    assert 40 <= module.kept <= 60


class ChangesItsInput(SmallNet):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        batch[0].zero_()


def test_the_images_of_a_probe_are_those_before_the_step(tmp_path: Path) -> None:
    ours = watcher()
    fit(tmp_path, ours, module=ChangesItsInput(), max_epochs=1)
    assert ours.report.images.any()


def test_a_layer_with_the_same_maps_keeps_its_results_as_if_they_were_computed_again(tmp_path: Path) -> None:
    seen, ours, module = list[Any](), watcher(), SmallNet()

    class Keep(pl.Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            seen.append(ours.report)

    module.conv1.requires_grad_(False)
    fit(tmp_path, ours, Keep(), module=module, max_epochs=3, num_sanity_val_steps=0)
    for before, after in pairwise(report.layers for report in seen):
        assert after["conv1"] is before["conv1"]
        assert after["conv2"] is not before["conv2"]
    assert list(seen[-1].layers) == ["conv1", "conv2"]
    anew = analyze(module, images(seed=1), settings=ours.settings, batch_size=20)
    assert facts(anew.layers) == facts(seen[-1].layers)
    assert anew.metrics().items() <= ours.history[-1]["metrics"].items()


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.arange(140) // 20, "first 60 .* have 3 of 7 classes"),
        (torch.arange(200) * 5 % 7, None),
        (torch.arange(120), None),  # more classes than samples in the probe
    ],
    ids=["few", "in turns", "many"],
)
def test_a_probe_sorted_by_class_gives_one_warning(tmp_path: Path, targets: Tensor, message: Any, recwarn: Any) -> None:
    val = DataLoader(TensorDataset(images(len(targets)), targets % 3), 20)
    val.dataset.targets = targets
    fit(tmp_path, watcher(), val=val)
    assert [re.search(message or "", text) is not None for text in said(recwarn)] == ([True] if message else [])


class Bands(SmallNet):
    """Knows the class of an image by which third of it is the brightest, and learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3, bias=False)
        nn.init.eye_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        self.conv2(self.conv1(x))
        return self.head(torch.stack([band.mean((1, 2, 3)) for band in x.tensor_split(3, 2)], 1))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.filterwarnings("ignore:.*shuffl")
@pytest.mark.parametrize("shuffle", [True, False])
def test_the_report_of_a_fit_names_labels_that_the_network_doubts(tmp_path: Path, shuffle: bool) -> None:
    data, classes = images(60), torch.arange(60) % 3
    for image, target in zip(data, classes.tolist(), strict=True):
        image.tensor_split(3, 1)[target].add_(1)
    labels = classes.clone()
    labels[7], labels[11] = 2, -100  # wrong, and unknown
    val: Any = DataLoader(TensorDataset(data, labels), 20, shuffle=shuffle)
    val.dataset.targets, val.dataset.classes = [0, 0, *classes[2:].tolist()], ["ape", "bee", "cat"]  # older
    ours = watcher()
    fit(tmp_path, ours, module=Bands(), val=val, max_epochs=1)
    report = ours.report
    assert "labeled cat, predicted bee" in str(report)
    unknown = report.samples["class"] == ""
    assert unknown.sum() == 1
    assert (report.samples["label_score"].isna() == unknown).all()
    if not shuffle:
        assert unknown[11]
        assert report.outlier_reasons(7)["label"] == "labeled cat, predicted bee"
        assert torch.equal(report.outlier_scores, torch.maximum(report.look_scores, report.content_scores))
