"""Scores belong to the positions of the user's data set, and unreadable images do not change those of others."""

from typing import Any

import pytest
import torch
from datasets import Broken
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_anomaly import find_outliers

IMAGES = torch.randn(200, 1, 6, 6, generator=torch.Generator().manual_seed(1))
DATA = TensorDataset(torch.randn(120, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(120))


@pytest.fixture
def net() -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(1, 3, 3)


def without_seven(items: list[tuple[Tensor, Tensor]]) -> Any:
    return torch.utils.data.default_collate([item for item in items if item[1] != 7])


ONE_IS_NARROW: Any = [(torch.zeros(1, 6, 6 - (index == 7)), 0) for index in range(120)]
BOXES: Any = [(torch.zeros(3, 6, 6), {"boxes": torch.zeros(index % 3, 4)}) for index in range(120)]


@pytest.mark.parametrize(
    ("loader", "found"),
    [
        (DataLoader(DATA, 120, collate_fn=without_seven), r"\(119, 1, 6, 6\) for n = 120"),
        (DataLoader(ONE_IS_NARROW, 1), r"\(1, 6, 6\) and \(1, 6, 5\).* position 7"),
        (DataLoader(ONE_IS_NARROW, 50), r"\(1, 6, 6\) and \(1, 6, 5\).* position 7"),
        (DataLoader(BOXES, 3, collate_fn=lambda items: tuple(zip(*items, strict=True))), "`collate_fn`"),
    ],
)
def test_batches_that_are_not_one_image_for_each_item_are_refused(net, loader, found):
    """Otherwise scores would belong to other images."""
    with pytest.raises(ValueError, match=f"Found .*{found}"):
        find_outliers(loader, net)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_unreadable_images_do_not_change_the_scores_of_others(net, workers):
    loader = DataLoader(Broken(IMAGES, 0, 5), 32, num_workers=workers)
    with pytest.warns(UserWarning, match="^2 of .*`images`.* position 0"):
        report = find_outliers(loader, net, DATA.tensors[0])
    assert report.unusable == [0, 5]
    rest = [index for index in range(200) if index not in (0, 5)]
    expected = find_outliers(IMAGES[rest], net, DATA.tensors[0])
    torch.testing.assert_close(report.scores[rest], expected.scores)
    assert torch.equal(report.p_values[rest], expected.p_values)
    for place, picture in expected.pictures.items():
        assert torch.equal(report.pictures[rest[place]], picture)


def test_unreadable_reference_images_are_left_out(net):
    with pytest.warns(UserWarning, match="^1 of .*`reference`.* position 5"):
        report = find_outliers(IMAGES, net, DataLoader(Broken(DATA.tensors[0], 5), 32))
    assert report.n_reference == 119
    assert report.scores.isfinite().all()
    with pytest.warns(UserWarning, match="^1 of .*`images`.* position 5"):
        report = find_outliers(DataLoader(Broken(IMAGES, 5), 32), net)
    assert (report.n_reference, report.unusable) == (199, [5])
    with pytest.raises(ValueError, match=r"`images`.*image 0"):
        find_outliers(DataLoader(Broken(IMAGES, *range(200)), 32), net)
