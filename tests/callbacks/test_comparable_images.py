"""Images of both kinds are read alike, and differences that would mislead a comparison are named."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from trainers import images

from lightning_anomaly.callbacks._compared_images import (
    comparable_transforms,
    describe_differences,
    images_trained_on,
    is_augmented,
    read_once,
)
from lightning_anomaly.images.image_source import ImageSource


class Shown(Dataset[Tensor]):
    """Images of the numbers 0 to 19, changed by its transforms, if it has any; counts readings."""

    read = 0

    def __init__(self, change: Callable[[Tensor], Tensor] | None = None) -> None:
        if change is not None:
            self.transform, self.transforms = change, lambda image: 10 * change(image)

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Tensor:
        self.read += 1
        image = torch.full((1, 2, 2), float(index))
        return self.transform(image) + self.transforms(image) if hasattr(self, "transform") else image


OTHERS = type("Others", (Shown,), {})(torch.neg)


def noisy(image: Tensor) -> Tensor:
    return image + (torch.rand(()) < 0.5)


def shown(loader: Any) -> list[float]:
    return sorted(torch.cat([*loader]).mean((1, 2, 3)).tolist())


@pytest.mark.parametrize("val", [Shown(torch.neg), Subset(Shown(torch.neg), [0])], ids=["whole", "subset"])
def test_a_training_set_takes_over_the_transforms_of_a_validation_set_of_its_class(val: Any) -> None:
    data = Shown(noisy)
    for train in (data, Subset(Subset(data, range(1, 9)), [0, 5])):
        found = comparable_transforms(val, train)
        assert set(found) == {"transform", "transforms"}
        assert found["transform"] is torch.neg
    assert data.transform is noisy
    fixed = type("Fixed", (Shown,), {"transform": property(lambda _: torch.neg)})()
    assert comparable_transforms(fixed, fixed) == {}


@pytest.mark.parametrize("train", [Shown(), OTHERS, Subset(OTHERS, [0])])
@pytest.mark.parametrize("val", [Shown(torch.neg), Shown(), None])
def test_a_set_of_another_class_or_without_a_transform_takes_over_none(train: Any, val: Any) -> None:
    assert comparable_transforms(val, train) == {}


def test_images_that_a_run_never_sees_are_left_out() -> None:
    data = Shown()
    each = [DistributedSampler(data, 2, rank, shuffle=False) for rank in (0, 1)]
    for loader, batches, expected in (
        (DataLoader(data, 7), 2, range(14)),
        (DataLoader(data, 7), 3, range(20)),
        (DataLoader(data, 7, sampler=range(19, 0, -2)), 1, range(7, 20, 2)),
        (DataLoader(data, 7, shuffle=True), 1, range(20)),
        (DataLoader(data, 7, sampler=RandomSampler(data, num_samples=5)), 1, range(20)),
        (DataLoader(data, 7, sampler=WeightedRandomSampler([0.0, 1.0] * 10, 5)), 1, range(1, 20, 2)),
        (DataLoader(data, 7, sampler=SubsetRandomSampler(range(3, 9))), 1, range(3, 9)),
        *((DataLoader(data, 3, sampler=sampler), 2, range(12)) for sampler in each),
    ):
        assert shown(images_trained_on(loader, batches)) == [*expected]


def test_only_images_that_change_with_the_order_of_reading_are_augmented() -> None:
    for change in (None, torch.neg, noisy, lambda image: image / image):  # NaN, which is not equal to itself
        assert is_augmented(ImageSource(Shown(change), "images", 8)) == (change is noisy)


VAL = images(100, seed=2)


@pytest.mark.parametrize(
    ("train", "val", "batch", "messages"),
    [
        ((images(60) - 0.5) * 2 + 0.5, VAL, VAL[:8], ["`train_inputs` .* not scaled"]),
        (images(60), (VAL - 0.5) / 2 + 0.5, VAL, ["`val_inputs` .* not scaled"]),
        (images(60) + 0.5, VAL - 0.5, VAL, ["`train_inputs` .* mean 1 ", "`val_inputs` .* not scaled"]),
        (images(60) + 0.5, VAL, VAL[:7], []),  # too few to say
        (images(60) + 0.5, VAL, (VAL * 255).byte(), []),
        (images(60) + 0.5, VAL, None, []),
        (images(60) * 1.3, VAL / 1.3, VAL, []),
        (VAL[:1], VAL, VAL, []),  # one in a hundred
        (VAL[:2], VAL, VAL, ["2 of 100 validation images are training images"]),
    ],
)
def test_images_are_doubted_if_they_are_scaled_otherwise_or_equal(
    train: Tensor, val: Tensor, batch: Any, messages: list[str]
) -> None:
    sources = {"train_inputs": ImageSource(train, "train_inputs"), "val_inputs": ImageSource(val, "val_inputs")}
    _, seen = read_once(sources, 0)
    found = describe_differences(sources, seen, batch)
    assert len(found) == len(messages)
    for text, message in zip(found.values(), messages, strict=True):
        assert re.search(message, text)
    assert "equal" in found or describe_differences([], seen, batch) == {}
