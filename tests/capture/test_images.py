"""The input of a model in a batch, whatever it is kept in."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_anomaly.capture.images import first_tensor

IMAGES = torch.rand(3, 1, 4, 4)


@dataclass
class Batch:
    names: list[str]
    images: Tensor
    later: Tensor = field(init=False)


@pytest.mark.parametrize(
    "batch",
    [Batch([], IMAGES), [Batch, IMAGES], {"labels": torch.arange(3), "images": IMAGES}, (("a", b"b"), [IMAGES])],
    ids=["dataclass", "class", "dict", "nested"],
)
def test_the_first_images_are_found(batch: Any) -> None:
    assert first_tensor(batch) is IMAGES


def test_images_in_bytes_come_before_their_floating_point_target() -> None:
    for raw in (IMAGES.byte(), IMAGES[:, 0].byte()):
        assert first_tensor((raw, IMAGES)) is raw


@pytest.mark.parametrize(
    "other",
    [IMAGES.long(), IMAGES.bool(), IMAGES.short(), IMAGES.byte()[:, 0, 0], torch.tensor(1.0)],
    ids=["classes of pixels", "mask", "integers", "bytes without pixels", "number"],
)
def test_what_is_no_image_is_passed_over(other: Tensor) -> None:
    assert first_tensor({"other": other, "image": IMAGES}) is IMAGES
    assert first_tensor(other) is None


def test_of_a_list_of_signals_the_first_is_taken() -> None:
    waves = [torch.rand(100), torch.rand(90)]
    assert first_tensor((waves, torch.rand(2, 5))) is waves[0]


def test_a_number_for_each_sample_is_the_input_only_where_there_is_no_other() -> None:
    ages = torch.rand(3)
    assert first_tensor({"age": ages, "image": IMAGES}) is IMAGES
    assert first_tensor((ages, torch.arange(3))) is ages


def test_where_a_field_is_not_set_there_is_nothing() -> None:
    batch = Batch([], IMAGES)
    del batch.images
    assert first_tensor(batch) is None
