"""Which positions a loader draws from, whatever its sampler, which is left as it was."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_anomaly.capture.images import drawn_from, unpadded_length

DATA = TensorDataset(torch.arange(12.0))


class Endless(Sampler[int]):
    """Draws all but the first, in another order each time, without an end; shuffles a list of its own."""

    def __init__(self, data: Any) -> None:
        self.data, self.order, self.generator = data, list(range(1, 12)), torch.Generator().manual_seed(0)

    def __iter__(self) -> Iterator[int]:
        while True:
            order = torch.randperm(11, generator=self.generator).tolist()
            self.order[:] = [self.order[place] for place in order]
            torch.rand(1)
            yield from self.order


class Uncopied(Dataset[Tensor]):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Tensor:
        return torch.zeros(1)

    def __deepcopy__(self, memo: Any) -> Any:
        raise AssertionError("a data set may be large")


class Repeated(Sampler[Tensor]):
    """Draws each position three times in a row, as a tensor, in another order each time."""

    def __init__(self, positions: Any) -> None:
        self.positions, self.generator = torch.tensor(list(positions)), torch.Generator().manual_seed(0)

    def __len__(self) -> int:
        return 3 * len(self.positions)

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.randperm(len(self.positions), generator=self.generator)
        return iter(self.positions[order].repeat_interleave(3))


class Pairs(Sampler[Any]):
    """Positions with something else, as for images of several sizes."""

    def __iter__(self) -> Iterator[Any]:
        return iter([(0, 32), (1, 64)])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, None),
        ({"shuffle": True}, None),
        ({"sampler": RandomSampler(DATA, replacement=True, num_samples=3)}, None),
        ({"sampler": DistributedSampler(DATA, num_replicas=2, rank=1)}, None),
        ({"sampler": SubsetRandomSampler([7, 2])}, [7, 2]),
        ({"batch_sampler": BatchSampler(SubsetRandomSampler([7, 2]), 2, False)}, [7, 2]),
        ({"sampler": [5, 3, 5]}, [5, 3]),
        ({"sampler": range(12)}, None),
        ({"sampler": range(2, 6)}, [2, 3, 4, 5]),
        ({"sampler": WeightedRandomSampler([0.0, 1.0, 2.0] + [0.0] * 9, 4)}, [1, 2]),
        ({"sampler": WeightedRandomSampler([1.0] * 12, 4)}, None),
        ({"sampler": SubsetRandomSampler(range(12))}, None),
        ({"sampler": torch.tensor([5, 3, 5])}, [3, 5]),
        ({"sampler": Repeated(range(12))}, None),
        ({"sampler": Repeated([7, 2])}, [2, 7]),
        ({"batch_sampler": [[4, 1], [9]]}, [1, 4, 9]),
        ({"sampler": Pairs()}, None),
        ({"sampler": list(Pairs())}, None),
        ({"sampler": torch.tensor([[0, 1], [2, 3]]), "batch_size": None}, None),
    ],
)
def test_the_positions_are_those_of_the_sampler(options: Any, expected: list[int] | None) -> None:
    found = drawn_from(DataLoader(DATA, **options))
    assert (None if found is None else list(found)) == expected


def test_a_sampler_that_is_asked_is_as_before_and_takes_no_random_numbers() -> None:
    data = Uncopied()
    sampler = Endless(data)
    state = torch.get_rng_state()
    found = drawn_from(DataLoader(data, sampler=sampler))
    assert found is not None
    assert set(found) == set(range(1, 12))
    assert torch.equal(torch.get_rng_state(), state)
    assert sampler.order == list(range(1, 12))
    assert torch.equal(sampler.generator.get_state(), torch.Generator().manual_seed(0).get_state())
    list(islice(iter(sampler), 11))  # the training's epoch
    assert drawn_from(DataLoader(data, sampler=sampler)) == found


def test_samples_that_processes_get_twice_are_not_counted_also_in_a_batch_sampler() -> None:
    sampler = DistributedSampler(DATA, 5, 0, shuffle=False)
    assert 5 * len(sampler) > len(DATA)
    for loader in (
        DataLoader(DATA, 4, sampler=sampler),
        DataLoader(DATA, batch_sampler=BatchSampler(sampler, 4, False)),
    ):
        assert unpadded_length(loader) == unpadded_length({"first": loader}) == len(DATA)
