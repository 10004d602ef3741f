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


def test_where_a_field_is_not_set_there_is_nothing() -> None:
    batch = Batch([], IMAGES)
    del batch.images
    assert first_tensor(batch) is None
