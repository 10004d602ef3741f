"""The input of a model is found in a batch of any structure."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from lightning_anomaly.images.batches import first_tensor
from lightning_anomaly.images.image_source import ImageSource, WithWholeImage, image_hashes

IMAGES = torch.rand(3, 1, 4, 4)


@dataclass(frozen=True)
class Batch:
    names: list[str]
    images: Tensor


@pytest.mark.parametrize(
    "batch",
    [Batch(["a"], IMAGES), {"labels": torch.arange(3), "images": IMAGES}, (("a", b"b", None), [IMAGES])],
    ids=["dataclass", "dict", "nested"],
)
def test_the_first_images_are_found(batch: Any) -> None:
    assert first_tensor(batch) is IMAGES


def test_byte_images_are_preferred_to_floating_point_targets() -> None:
    for raw in (IMAGES.byte(), IMAGES[:, 0].byte()):
        assert first_tensor((raw, IMAGES)) is raw


@pytest.mark.parametrize(
    "other",
    [IMAGES.long(), IMAGES.bool(), IMAGES.short(), IMAGES.byte()[:, 0, 0], torch.tensor(1.0)],
    ids=["classes of pixels", "mask", "integers", "bytes without pixels", "number"],
)
def test_other_tensors_are_skipped(other: Tensor) -> None:
    assert first_tensor({"other": other, "image": IMAGES}) is IMAGES
    assert first_tensor(other) is None


def test_numbers_without_axes_of_an_image_are_the_input_only_without_images() -> None:
    for numbers in (torch.rand(3), torch.rand(3, 4)):
        assert first_tensor({"labels": numbers, "image": IMAGES}) is IMAGES
        assert first_tensor((numbers, torch.arange(3), torch.rand(3, 2))) is numbers


def test_hashes_are_the_same_in_every_process() -> None:
    """A detector finds duplicates of its reference also where it was unpickled."""
    assert image_hashes(torch.eye(3)) == [183086002367497032, -3984319658659637962, 1243225475463630026]


class Pictures(Dataset[tuple[Tensor, Tensor]]):
    """Hands an image and a larger whole one, but for the first item, which cannot be read."""

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index == 0:
            raise OSError("broken")
        whole = torch.full((1, 4, 4), 255 - index, dtype=torch.uint8)
        return WithWholeImage(torch.full((1, 2, 2), float(index)), whole)


def test_whole_images_are_read_beside_the_images() -> None:
    source = ImageSource(Subset(Pictures(), [3, 0, 5]), "images", 2)
    read = [*source.with_whole([0, 1, 2])]
    assert torch.cat([images for _, images, _ in read]).mean((1, 2, 3)).tolist() == [3, 0, 5]
    whole = torch.cat([whole for _, _, whole in read])
    assert whole.shape == (3, 1, 4, 4)
    assert whole.dtype == torch.uint8
    assert whole.amax((1, 2, 3)).tolist() == [252, 0, 250]
    assert source.numel == 16  # of a whole image, the larger of both
    for _, images, same in ImageSource(IMAGES, "images").with_whole([0, 2]):
        assert same is images
