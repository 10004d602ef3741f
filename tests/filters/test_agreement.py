"""Filters that single out the same samples."""

from dataclasses import replace

import pytest
import torch
from reports import layer

from lightning_anomaly import AnomalyReport
from lightning_anomaly.filters.agreement import agreements, most_singled_out
from lightning_anomaly.filters.filter_page import sample_lists


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
    report = flagged([1, 2], [1, 2], [1, 2, 3, 4], [3, 4], [3, 4, 5], [3, 4, 5])  # the third agrees with three others
    assert agreements(report.layers) == [([0, 1, 2, 3], [1, 2, 3, 4]), ([4, 5], [3, 4, 5])]
    alone = flagged([1, 2], [1, 2, 3, 4], [3, 4], [3, 4, 5])  # the last, which agrees with one of a larger group
    assert agreements(alone.layers) == [([0, 1, 2], [1, 2, 3, 4])]


@pytest.mark.parametrize(("times", "found"), [(2, {}), (3, {5: 3}), (6, {5: 6})])
def test_samples_that_many_filters_single_out_are_listed_with_their_number(times, found):
    report = flagged(*[[5]] * times, [9], [])
    assert most_singled_out(report.layers) == found
    strangest, singled = sample_lists(report)
    assert strangest.entries == []  # nothing has a score
    assert [(entry.position, entry.note) for entry in singled.entries] == [
        (sample, f"singled out by {count} filters") for sample, count in found.items()
    ]


def test_filters_that_choose_at_random_hardly_ever_single_out_a_sample_together():
    generator, listed = torch.Generator().manual_seed(0), 0
    for filters, chosen in 100 * [(20, 1), (200, 3), (2000, 5)]:
        sets = torch.rand(filters, 200, generator=generator).topk(chosen).indices.tolist()
        listed += bool(most_singled_out(flagged(*sets, samples=200).layers))
    assert listed <= 6  # 3 expected at most


def test_samples_are_not_many_if_all_are_singled_out_as_often():
    assert most_singled_out(flagged(*[[*range(60)]] * 8).layers) == {}


def test_listed_samples_have_the_paths_of_their_files(tmp_path):
    report = replace(
        flagged(*[[5]] * 6), columns={"name": [f"a/{place}.png" for place in range(60)]}, folder=str(tmp_path)
    )
    ((key, row),) = sample_lists(report)[1].rows
    assert (row["name"], row["path"], key) == ("a/5.png", str(tmp_path / "a" / "5.png"), "sample 5")
