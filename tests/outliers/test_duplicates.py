"""Copies are found whatever was done to them, and other images are not."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

from lightning_anomaly.outliers import duplicates
from lightning_anomaly.outliers.duplicates import find_duplicates
from lightning_anomaly.outliers.fingerprints import Fingerprints


def photographs(count: int) -> Tensor:
    """Soft patches of color `(count, 3, 64, 64)`."""
    coarse = torch.rand(count, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    return functional.interpolate(coarse, size=64, mode="bicubic").clamp(0, 1)


def near(images: Tensor) -> list[list[int]]:
    groups, problem = find_duplicates(Fingerprints.of(images))
    assert problem == ""
    return [group for group, identical, _ in groups if not identical]


def resized(images: Tensor, size: int) -> Tensor:
    return functional.interpolate(images, size=size, mode="bilinear", antialias=True)


def test_copies_are_found_and_identical_ones_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    images = photographs(40)
    copies = [
        resized(resized(images[3:4], 32), 64),
        resized(images[4:5, :, 3:61, 3:61], 64),
        (1.1 * images[5:6]).clamp(0, 1),
        torch.einsum("nchw,c->nhw", images[6:7], torch.tensor([0.299, 0.587, 0.114]))[:, None].expand(-1, 3, -1, -1),
        images[30:31],
        images[30:31],
    ]
    groups, problem = find_duplicates(Fingerprints.of(torch.cat([images, *copies])))
    assert [group[:2] for group in groups] == [
        ([30, 44, 45], True),
        *(([3, 40], False), ([4, 41], False), ([5, 42], False), ([6, 43], False)),
    ]
    assert problem == ""
    assert groups[0][2] == [1, 1, 1]
    for _, _, (first, copy) in groups[1:]:
        assert first == 1
        assert 0.875 <= copy <= 1
    for name, value in (("_BLOCK", 7), ("_SPACING", 4), ("_EXACT", 20)):
        monkeypatch.setattr(duplicates, name, value)
        again, _ = find_duplicates(Fingerprints.of(torch.cat([images, *copies])))
        assert [group[:2] for group in again] == [group[:2] for group in groups]


@pytest.mark.parametrize("size", [8, 28, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_copies_are_found_turned_and_mirrored(size: int, channels: int) -> None:
    images = resized(photographs(40), size)[:, :channels]
    turned = [way.rot90(turns, (2, 3)) for way in (images, images.flip(3)) for turns in range(4)]
    copies = torch.cat([way[[place]] for place, way in enumerate(turned)])
    fingerprints = Fingerprints.of(torch.cat([images, copies[1:]]))
    groups, _ = find_duplicates(fingerprints)
    assert [group for group, _, _ in groups] == [[place, 39 + place] for place in range(1, 8)]


def test_copies_are_found_among_images_that_are_alike_and_these_are_none() -> None:
    images = photographs(41)
    images = 0.7 * images[40:] + 0.3 * images[:40]
    copies = [
        resized(resized(images[3:4], 32), 64),
        images[4:5].flip(3),
        resized(images[5:6, :, 3:61, 3:61], 64),
        (1.1 * images[6:7]).clamp(0, 1),
    ]
    groups, problem = find_duplicates(Fingerprints.of(torch.cat([images, *copies])))
    assert [group for group, *_ in groups] == [[3, 40], [4, 41], [5, 42], [6, 43]]
    assert "may be missing" in problem


@pytest.mark.parametrize("copies", [15, 16, 40])
def test_any_number_of_copies_of_one_image_is_one_group(copies: int) -> None:
    images = photographs(100)
    noise = torch.rand(copies, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    assert near(torch.cat([images, images[7:8] + 0.02 * noise])) == [[7, *range(100, 100 + copies)]]


@pytest.mark.parametrize("shade", [0.0, 1.0])
def test_a_copy_in_a_frame_is_found(shade: float) -> None:
    images = photographs(40)
    framed = functional.pad(images[:20], (5, 5, 5, 5), value=shade)
    framed[:4] = framed[:4].flip(3)
    assert near(torch.cat([images, resized(framed, 64)])) == [[place, place + 40] for place in range(20)]


def test_images_that_agree_only_where_a_small_part_of_one_is_stretched_are_no_copies() -> None:
    patches = torch.rand(148, 3, 4, 4, generator=torch.Generator().manual_seed(4))
    bands = functional.interpolate(0.3 * patches + 0.7 * patches[:, :, :1], size=64, mode="bicubic").clamp(0, 1)
    assert near(torch.cat([bands[[93, 147]], photographs(40)])) == []


def test_a_group_holds_copies_of_its_first_image_and_no_copies_of_copies() -> None:
    images = photographs(40)
    wide = torch.rand(1, 3, 9, 27, generator=torch.Generator().manual_seed(1))
    wide = functional.interpolate(wide, (64, 192), mode="bicubic").clamp(0, 1)
    views = torch.cat([wide[..., start : start + 64] for start in range(0, 48, 4)])
    mirrored, chain = [], []
    for group in near(torch.cat([views, images, images[:20].flip(3)])):
        (chain if group[0] < len(views) else mirrored).append(group)
    assert mirrored == [[place, place + 40] for place in range(len(views), len(views) + 20)]
    assert len(chain) > 1
    assert all(group[-1] - group[0] < 4 for group in chain)
    assert len({place for group in chain for place in group}) == sum(map(len, chain))  # none is in two groups


def test_identical_copies_are_near_copies_too_and_blank_images_are_none() -> None:
    images = photographs(20)
    blank = torch.tensor([0.2, 0.2, 0.8])[:, None, None, None].expand(3, 3, 64, 64)
    groups, _ = find_duplicates(Fingerprints.of(torch.cat([images, blank, images[6:7].flip(3), images[6:7]])))
    assert [group[:2] for group in groups] == [([6, 24], True), ([20, 21], True), ([6, 23, 24], False)]


def test_near_duplicates_do_not_depend_on_how_often_another_image_is_repeated() -> None:
    images = photographs(60)
    images = torch.cat([images, images[6:7].flip(3)])
    for times in (1, 100):
        assert near(torch.cat([images, torch.ones(1, 3, 64, 64).expand(times, -1, -1, -1)])) == [[6, 60]]


@pytest.mark.parametrize("kind", ["digits", "gratings"])
def test_images_of_one_kind_are_too_alike_to_tell(kind: str) -> None:
    if kind == "digits":
        images = torch.tensor(load_digits().images[:400, None] / 16).float()
        images = functional.interpolate(images, scale_factor=2, mode="bilinear")
    else:
        places, numbers = torch.arange(64) / 8, torch.arange(40)[:, None, None, None]
        images = (places + numbers / 60).sin().expand(-1, 1, 64, -1) / 2 + 0.5
    groups, problem = find_duplicates(Fingerprints.of(images))
    assert not groups
    assert "too alike to tell" in problem


def test_identical_signals_are_found() -> None:
    images = photographs(60)
    images[7] = images[2]
    assert find_duplicates(Fingerprints.of(images.flatten(2))) == ([([2, 7], True, [1, 1])], "")


def test_nothing_is_found_among_one_image_or_none() -> None:
    for count in (0, 1):
        assert find_duplicates(Fingerprints.of(photographs(2)[:count])) == ([], "")
