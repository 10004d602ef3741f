"""The positions that a loader draws, for any sampler, which is unchanged, and a fixed sample of them."""

from typing import Any

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_anomaly import find_outliers
from lightning_anomaly.images.loaders import (
    batch_size_of,
    epoch_positions,
    load_like,
    shuffled,
    shuffles,
    unpadded_length,
)

DATA = TensorDataset(torch.arange(12.0))
ALL = set(range(12))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ALL),
        ({"shuffle": True}, ALL),
        ({"sampler": DistributedSampler(DATA, num_replicas=5, rank=1)}, ALL),
        ({"sampler": SubsetRandomSampler([7, 2])}, {7, 2}),
        ({"batch_sampler": BatchSampler(SubsetRandomSampler([7, 2]), 2, False)}, {7, 2}),
        ({"sampler": WeightedRandomSampler([0.0, 1.0, 2.0] + [0.0] * 9, 40)}, {1, 2}),
        ({"batch_sampler": [[4, 1], [9]]}, {1, 4, 9}),
        ({"sampler": [(0, 32), (1, 64)]}, None),  # positions with other values, as for images of several sizes
    ],
)
def test_the_positions_are_those_of_one_epoch(options: Any, expected: set[int] | None) -> None:
    positions = epoch_positions(DataLoader(DATA, **options))
    assert (None if positions is None else set(positions)) == expected


def test_drawing_positions_is_reproducible_and_changes_no_state() -> None:
    sampler = RandomSampler(DATA, generator=torch.Generator().manual_seed(7))
    weighted = WeightedRandomSampler([1.0] * 12, 5, generator=torch.Generator())
    state, loaders = torch.get_rng_state(), [DataLoader(DATA, 3, sampler=each) for each in (sampler, weighted)]
    before = [shuffled(epoch_positions(loader) or []) for loader in loaders]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(sampler.generator.get_state(), torch.Generator().manual_seed(7).get_state())
    list(sampler), list(weighted)  # an epoch of training
    assert [shuffled(epoch_positions(loader) or []) for loader in loaders] == before


def test_the_batch_size_is_the_loader_s_or_64_or_none() -> None:
    loaders = DataLoader(DATA, batch_sampler=BatchSampler([1], 7, False)), DataLoader(DATA, batch_sampler=[[1]])
    sizes = [batch_size_of(loader) for loader in (*loaders, DataLoader(DATA, batch_size=None))]
    assert sizes == [7, 64, None]


def test_a_reread_loader_starts_its_workers_like_the_original() -> None:
    loader = DataLoader(DATA, num_workers=2, multiprocessing_context="spawn", worker_init_fn=print, collate_fn=list)
    again = load_like(loader, batch_sampler=[[1]])
    context: Any = again.multiprocessing_context
    assert (again.num_workers, context.get_start_method()) == (2, "spawn")
    assert (again.dataset, again.worker_init_fn, again.collate_fn) == (DATA, print, list)


def test_repeated_samples_of_a_distributed_sampler_are_not_counted() -> None:
    sampler = DistributedSampler(DATA, 5, 0, shuffle=False)
    assert 5 * len(sampler) > len(DATA)
    for loader in (
        DataLoader(DATA, 4, sampler=sampler),
        DataLoader(DATA, batch_sampler=BatchSampler(sampler, 4, False)),
    ):
        assert unpadded_length(loader) == unpadded_length({"first": loader}) == len(DATA)
    assert unpadded_length(None) == unpadded_length([]) > 10**9


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"shuffle": True}, True),
        ({"sampler": DistributedSampler(DATA, 2, 0)}, True),
        ({"sampler": DistributedSampler(DATA, 2, 0, shuffle=False)}, False),
        ({"batch_sampler": BatchSampler(SubsetRandomSampler([1]), 2, False)}, True),
        ({}, False),
    ],
)
def test_shuffling_loaders_are_recognised(options: Any, expected: bool) -> None:
    loader = DataLoader(DATA, **options)
    assert shuffles(loader) is shuffles([loader, DataLoader(DATA)]) is expected


def test_images_of_a_sampler_with_replacement_are_all_scored() -> None:
    images = torch.rand(110, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(images), 50, sampler=RandomSampler(images, replacement=True))
    layer = torch.nn.Conv2d(1, 2, 3)
    torch.testing.assert_close(find_outliers(loader, layer).scores, find_outliers(images, layer).scores)
