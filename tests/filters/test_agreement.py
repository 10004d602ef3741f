"""Filters that single out the same samples."""

from itertools import combinations

import pytest
import torch
from reports import layer

from lightning_anomaly import AnomalyReport
from lightning_anomaly.filters.agreement import agreements, most_singled_out
from lightning_anomaly.filters.sample_lists import sample_lists


def flagged(*sets: list[int], samples: int = 60) -> AnomalyReport:
    """Make two layers whose filters have these samples in a rare cluster or, the second half of them, isolated."""
    half = len(sets) // 2
    first = layer(*["anomaly"] * half, outliers=enumerate(sets[:half]), samples=samples)
    second = layer(*["normal"] * (len(sets) - half), samples=samples)
    for row, chosen in enumerate(sets[half:]):
        second.isolated[row, chosen] = True
    return AnomalyReport({"first": first, "second": second}, samples)


def test_filters_agree_if_they_share_half_of_their_samples_in_any_layer():
    report = flagged([1, 2], [7], [1, 2, 3], [], [1, 2], [7], [8, 9, 10], [10, 11, 12, 13])
    groups = agreements(report.layers)
    assert groups == [([0, 2, 4], [1, 2]), ([1, 5], [7])]
    assert agreements({}) == []


def test_groups_are_disjoint_and_each_agrees_with_one_of_its_filters():
    random = torch.rand(40, 60, generator=torch.Generator().manual_seed(0)) < 0.03
    random[20:] = random[:20]
    random[torch.arange(20), torch.arange(20)] = True
    sets = [row.nonzero()[:, 0].tolist() for row in random]
    groups = agreements(flagged(*sets).layers)
    numbers = [number for filters, _ in groups for number in filters]
    assert len(numbers) == len({*numbers}) > 20

    def agree(a: int, b: int) -> bool:
        both, either = {*sets[a]} & {*sets[b]}, {*sets[a]} | {*sets[b]}
        return 2 * len(both) >= len(either) > 0

    for filters, samples in groups:
        assert any(all(agree(leader, other) for other in filters) for leader in filters)
        assert all(sum(sample in sets[f] for f in filters) * 2 >= len(filters) for sample in samples)
    assert not any(agree(a, b) for a, b in combinations({*range(40)} - {*numbers}, 2))


@pytest.mark.parametrize(("times", "found"), [(2, {}), (3, {5: 3}), (6, {5: 6})])
def test_samples_that_many_filters_single_out_are_listed_with_their_number(times, found):
    report = flagged(*[[5]] * times, [9], [])
    assert most_singled_out(report.layers) == found
    strangest, singled = sample_lists(report)
    assert strangest.rows == []  # nothing has a score
    assert [(row.sample, row.note) for row in singled.rows] == [
        (sample, f"singled out by {count} filters") for sample, count in found.items()
    ]


def test_samples_are_not_many_if_all_are_singled_out_as_often():
    assert most_singled_out(flagged(*[[*range(60)]] * 8).layers) == {}
