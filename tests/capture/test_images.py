"""The input of a model in a batch, whatever it is kept in."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_anomaly.capture.images import first_tensor, magnitudes, plain_tensor

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


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32, torch.complex64], ids=str)
def test_images_of_another_type_come_before_their_floating_point_target(kind: torch.dtype) -> None:
    raw = IMAGES.to(kind)
    assert first_tensor((raw, IMAGES)) is raw


@pytest.mark.parametrize(
    "other",
    [IMAGES.long(), IMAGES.bool(), IMAGES[:, 0].short(), torch.zeros(3, 7, 4).int(), torch.zeros(3).int()],
    ids=["classes of pixels", "mask", "no channels", "sequence", "number"],
)
def test_classes_masks_and_integers_without_channels_are_no_images(other: Tensor) -> None:
    assert first_tensor({"other": other, "image": IMAGES}) is IMAGES


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


@pytest.mark.parametrize("other", [None, torch.tensor(1.0), IMAGES.to_sparse()])
def test_of_tensors_that_do_not_count_samples_there_is_no_plain_one(other: Any) -> None:
    assert plain_tensor([other]) is None
    assert plain_tensor([IMAGES]) is IMAGES


def test_complex_values_are_compared_by_their_magnitudes() -> None:
    assert magnitudes(torch.tensor([3 + 4j])).tolist() == [5]
    assert magnitudes(IMAGES) is IMAGES
