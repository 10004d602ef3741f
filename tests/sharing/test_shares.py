"""Who analyses what, and whose samples are where."""

import pytest
import torch

from lightning_anomaly.sharing.shares import filter_ranges, sample_places, scorers


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("filters", [1, 2, 7, 64])
def test_every_filter_is_in_one_share_of_about_the_same_size(filters: int, world: int) -> None:
    ranges = filter_ranges(filters, world)
    assert [index for first, last in ranges for index in range(first, last)] == list(range(filters))
    sizes = [last - first for first, last in ranges]
    assert len(sizes) == world
    assert max(sizes) - min(sizes) <= 1


def test_layers_are_scored_by_all_in_turn() -> None:
    assert scorers({"a": 64, "b": 64, "c": 512, "d": 256, "e": 128}, 2) == {"c": 0, "d": 1, "e": 1, "a": 1, "b": 1}
    assert scorers({"a": 3}, 4) == {"a": 0}


def places(counts: list[int], limit: int) -> list[list[int]]:
    return [own.tolist() for own in sample_places(counts, limit)]


def test_samples_are_dealt_out_one_by_one() -> None:
    assert places([3, 3], 100) == [[0, 2, 4], [1, 3, 5]]
    assert places([3, 3], 5) == [[0, 2, 4], [1, 3]]
    assert places([4, 1, 2], 100) == [[0, 3, 5, 6], [1], [2, 4]]
    assert places([0, 2], 1) == [[], [0]]
    assert places([0, 0], 8) == [[], []]


def test_a_sampler_of_several_processes_deals_as_assumed() -> None:
    from torch.utils.data import DistributedSampler

    data = torch.arange(11)
    dealt = [list(DistributedSampler(data, 3, rank, shuffle=False)) for rank in range(3)]
    together = torch.empty(12, dtype=torch.int64)
    for own, where in zip(dealt, sample_places([4, 4, 4], 12), strict=True):
        together[where] = torch.tensor(own)
    assert together.tolist() == [*range(11), 0]
