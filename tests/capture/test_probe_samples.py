"""What is kept of the samples of a probe: pixels that tell them from others, small images, classes and files."""

from typing import Any

import pytest
import torch
from lightning_anomaly.capture.probe_samples import ProbeSamples, label_texts, probe_files, same_pixels, sample_pixels
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from trainers import images

ONES = torch.ones(20)


@pytest.mark.parametrize(
    ("now", "same"),
    [
        (1.009 * ONES, True),
        (1.012 * ONES, False),
        (ONES[:19], False),
        (torch.cat([1.005 * ONES[:19], torch.tensor([0.5])]), False),
        (ONES * torch.nan, False),
    ],
)
def test_pixels_are_the_same_within_one_percent(now: Tensor, same: bool) -> None:
    assert same_pixels(ONES, now) is same
    dark = torch.cat([ONES, torch.zeros(20), torch.tensor([torch.nan])])  # NaN equals NaN, and dark pixels vary
    assert same_pixels(dark, torch.cat([now, torch.full((20,), 4e-4), torch.tensor([torch.nan])])) is same


def test_the_pixels_of_a_sample_show_a_small_change_anywhere() -> None:
    x = images(10)
    before = sample_pixels(x, 7)
    assert len(before) == 7 * 4 * 4
    assert len(sample_pixels(images(10, side=200), 7)) <= 7 * 7 * 7
    for row in range(6):
        for column in range(6):
            changed = x.clone()
            changed[:7, :, row : row + 3, column : column + 3] += 0.1
            assert not same_pixels(before, sample_pixels(changed, 7))
    x[7:] = 0
    assert torch.equal(sample_pixels(x, 7), before)


def collected(*batches: Any, limit: int = 60, keep_images: bool = True) -> ProbeSamples:
    samples = ProbeSamples(keep_images)
    for batch in batches:
        samples.add(batch, limit)
        samples.add_targets(batch)
    return samples


def test_images_are_kept_if_they_can_be_drawn_and_have_one_size() -> None:
    x, targets = images(8), torch.arange(8)
    taken = collected([x, targets], [x, targets], limit=5)
    assert (taken.count, len(taken.pixels)) == (16, 2 * 5 * 16)
    assert taken.images is not None
    torch.testing.assert_close(taken.images, torch.cat([x[:5], x[:5]]))
    for batches in ([x, images(8, side=9)], [x, targets], [x, torch.rand(8)], [x, torch.rand(8, 1, 2, 3, 4, 5)], []):
        assert collected(*batches).images is None
    for shape in ((8, 5), (8, 2, 5), (8, 1, 4, 4, 4)):
        assert collected(torch.rand(shape)).images is not None
    assert collected(x, keep_images=False).images is None


def test_classes_are_known_if_every_batch_has_them_and_the_network_an_output_for_each() -> None:
    x, targets = images(8), torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])
    complete = collected([x, targets], [targets, x])
    for samples, outputs, known in ((16, 4, True), (17, 4, False), (8, 3, False)):
        classes = complete.classes(samples, outputs)
        assert (classes is not None and classes.tolist() == [*targets.tolist()] * 2) is known
    for other in ([x, targets[:7]], [x, targets - 1], [x, targets.float()], [x], targets):
        assert collected([x, targets], other).classes(8, 4) is None
    assert collected().classes(0, 4) is None


def test_a_sample_is_described_by_its_class_and_by_another_one_that_is_predicted() -> None:
    texts = label_texts(torch.tensor([0, 1, 2]), torch.tensor([0, 0, 2]), ["ape", "bee"])
    assert texts == ["ape", "bee, predicted ape", "2"]


def test_the_files_of_a_probe_are_those_that_the_loader_draws_first() -> None:
    dataset: Any = TensorDataset(images(9))
    assert probe_files(DataLoader(dataset, 4), 3) is None
    dataset.root, dataset.samples = "data", [(f"data/{place}.png", 0) for place in range(9)]
    assert probe_files([DataLoader(dataset, 4, sampler=[5, 7, 1, 2])], 3) == ["5.png", "7.png", "1.png"]
    assert probe_files(None, 3) is None
