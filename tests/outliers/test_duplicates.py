"""Copies are found whatever was done to them, and other images are not."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_anomaly.outliers import duplicates
from lightning_anomaly.outliers.duplicates import Fingerprints, find_duplicates


def photographs(count: int) -> Tensor:
    """Soft patches of colour `(count, 3, 64, 64)`."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    return functional.interpolate(coarse, size=64, mode="bicubic").clamp(0, 1)


def described(images: Tensor) -> Fingerprints:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 64, 16, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        return Fingerprints.of(images, network(images - 0.5))


def test_copies_are_found_and_identical_ones_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    images = photographs(40)
    small = functional.interpolate(images[3:4], size=32, mode="bilinear", antialias=True)
    copies = [
        functional.interpolate(small, size=64, mode="bilinear"),
        functional.interpolate(images[4:5, :, 3:61, 3:61], size=64, mode="bilinear"),
        (1.1 * images[5:6]).clamp(0, 1),
        images[6:7].flip(3),
        images[30:31],
        images[30:31],
    ]
    groups, problem = find_duplicates(described(torch.cat([images, *copies])))
    assert groups == [([30, 44, 45], True), ([3, 40], False), ([4, 41], False), ([5, 42], False), ([6, 43], False)]
    assert problem == ""
    monkeypatch.setattr(duplicates, "_BLOCK", 7)
    assert find_duplicates(described(torch.cat([images, *copies])))[0] == groups


def test_a_group_joins_duplicates_of_duplicates_and_blank_images_are_no_near_duplicates() -> None:
    images = photographs(20)
    blank = torch.tensor([0.2, 0.2, 0.8])[:, None, None, None].expand(3, 3, 64, 64)
    groups, _ = find_duplicates(described(torch.cat([images, blank, images[6:7].flip(3), images[6:7]])))
    assert groups == [([6, 24], True), ([20, 21], True), ([6, 23, 24], False)]  # the copies of 6 are identical too


def test_near_duplicates_do_not_depend_on_how_often_another_image_is_repeated() -> None:
    images = photographs(60)
    images = torch.cat([images, images[6:7].flip(3)])
    for times in (1, 100):
        repeated = torch.ones(1, 3, 64, 64).expand(times, -1, -1, -1)
        groups, _ = find_duplicates(described(torch.cat([images, repeated])))
        assert [group for group, identical in groups if not identical] == [[6, 60]]


@pytest.mark.parametrize("kind", ["no features", "many images", "all alike"])
def test_identical_images_are_found_where_near_ones_cannot_be(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = photographs(60)
    images[7] = images[2]
    fingerprints = described(images)
    if kind == "no features":
        fingerprints = fingerprints._replace(features=None)
    elif kind == "many images":
        monkeypatch.setattr(duplicates, "_MOST", 10)
    else:
        halves = torch.eye(2)[torch.arange(60) % 2]
        fingerprints = fingerprints._replace(features=halves, looks=halves.reshape(60, 1, 2) + torch.zeros(60, 8, 2))
    groups, problem = find_duplicates(fingerprints)
    assert groups == [([2, 7], True)]
    assert ("Near duplicates" in problem) == (kind != "no features")


def test_nothing_is_found_among_one_image_or_none() -> None:
    for count in (0, 1):
        assert find_duplicates(described(photographs(2)[:count])) == ([], "")
