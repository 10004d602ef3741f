"""Positions are those of the user's data set, whatever it gives; where they cannot be, it is refused."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from lightning_anomaly import find_outliers

IMAGES = torch.randn(200, 1, 6, 6, generator=torch.Generator().manual_seed(1))
DATA = TensorDataset(torch.randn(120, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(120))


@pytest.fixture
def net() -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(1, 3, 3)


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Any:
        return iter(DATA.tensors[0])


class Made(Dataset[Tensor]):
    """Gives what a function makes of a position."""

    def __init__(self, length: int, make: Callable[[int], Tensor]) -> None:
        self.length, self.make = length, make

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        return self.make(index)


def broken(images: Tensor, *places: int) -> Made:
    """Images of which some cannot be read."""

    def read(index: int) -> Tensor:
        if index in places:
            raise OSError(f"image {index} is broken")
        return images[index]

    return Made(len(images), read)


def without_seven(items: list[tuple[Tensor, Tensor]]) -> Any:
    return torch.utils.data.default_collate([item for item in items if item[1] != 7])


def test_a_batch_with_other_images_than_its_items_is_refused(net):
    """Else scores would stand at the positions of other images."""
    with pytest.raises(ValueError, match=r"`inputs` should give one image for each item .* Found 119 for 120"):
        find_outliers(net, DataLoader(DATA, 120, collate_fn=without_seven))


@pytest.mark.parametrize(
    ("loader", "found"),
    [
        (DataLoader(Stream(), 30), "Found Stream"),
        (DataLoader(DATA, batch_size=None), "Found `batch_size=None`: give"),
        (DataLoader(DATA, 30, sampler=range(100)), "Found a sampler that leaves some out"),
    ],
    ids=["stream", "no batches", "range"],
)
def test_a_loader_whose_images_have_no_positions_is_refused(net, loader, found):
    with pytest.raises(ValueError, match=f"`reference` should be .*{found}"):
        find_outliers(net, DATA.tensors[0], loader)


def files(*classes: int) -> Made:
    """Images with files and classes, as torchvision's `ImageFolder`."""
    data: Any = Made(120, lambda index: DATA[index][0])
    data.root = "photos"
    data.samples = [(f"photos/{place % len(classes)}/{place}.png", place % len(classes)) for place in range(120)]
    data.targets = [classes[place % len(classes)] for place in range(120)]
    return data


def test_the_names_of_files_are_in_the_report_also_those_of_a_subset(net):
    for data, first in ((files(0, 1), 0), (Subset(files(0, 1), range(3, 120)), 3)):
        report = find_outliers(net, DataLoader(data, 32))
        names = [f"{place % 2}/{place}.png" for place in range(first, 120)]
        assert report.names == names
        frame = report.to_frame()
        assert frame["name"].tolist() == [names[position] for position in report.top(200)]
        assert f"  {names[report.top(1)[0]]}  " in str(report)
    assert find_outliers(net, IMAGES).names is None


def test_a_reference_of_a_single_class_is_noted_where_the_images_have_several(net):
    loaders = [DataLoader(files(*classes), 32) for classes in ((0, 1, 2), (1,), (1, 2))]
    with pytest.warns(UserWarning, match="of one class, and the others of 3"):
        find_outliers(net, loaders[0], loaders[1])
    for inputs, reference in ((loaders[0], loaders[2]), (loaders[1], loaders[1]), (loaders[1], loaders[0])):
        assert "one class" not in find_outliers(net, inputs, reference).notes
    numbers = TensorDataset(*DATA.tensors)
    numbers.targets = torch.ones(120, dtype=torch.int64)
    with pytest.warns(UserWarning, match="of one class"):
        find_outliers(net, loaders[0], DataLoader(numbers, 32))


def test_random_numbers_that_a_data_set_draws_are_taken_from_nobody_and_are_the_same_again(net):
    data = Made(120, lambda index: DATA[index][0] + torch.rand(()) + random.random() + np.random.rand())
    loader = DataLoader(data, 32)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)
    first = find_outliers(net, loader)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    np.testing.assert_equal(np.random.get_state(legacy=False), states[2])
    torch.rand(3), random.random(), np.random.rand()
    assert torch.equal(find_outliers(net, loader).scores, first.scores)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_image_that_cannot_be_read_has_an_infinite_score_and_the_others_are_scored(net, workers):
    loader = DataLoader(broken(IMAGES, 0, 5), 32, num_workers=workers)
    with pytest.warns(UserWarning, match=r"^2 of the 200 images cannot be read, the first at position 0 \(OSError: im"):
        report = find_outliers(net, loader, DATA.tensors[0])
    assert report.unusable == [0, 5]
    rest = [place for place in range(200) if place not in (0, 5)]
    expected = find_outliers(net, IMAGES[rest], DATA.tensors[0])
    torch.testing.assert_close(report.scores[rest], expected.scores)
    assert torch.equal(report.p_values[rest], expected.p_values)
    assert torch.equal(report.images, expected.images)


def test_reference_images_that_cannot_be_read_are_left_out(net):
    with pytest.warns(UserWarning, match=r"^1 of the 120 reference images cannot be read, .* position 5 .*: they have"):
        report = find_outliers(net, IMAGES, DataLoader(broken(DATA.tensors[0], 5), 32))
    assert report.n_reference == 119
    assert report.scores.isfinite().all()
    with pytest.warns(UserWarning, match=r"^1 of the 200 images cannot be read, .* position 5 "):
        own = find_outliers(net, DataLoader(broken(IMAGES, 5), 32))
    assert (own.n_reference, own.unusable) == (199, [5])
    with pytest.raises(ValueError, match=r"`inputs` should hold images that can be read\..* image 0 is broken"):
        find_outliers(net, DataLoader(broken(IMAGES, *range(200)), 32))
