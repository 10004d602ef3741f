"""Which rules are stable: their flags are the package's, their overlaps are summed over trainings."""

from typing import Any

import torch

from lightning_anomaly import AnalysisSettings
from lightning_anomaly.analysis import analyze_maps
from recipes.common.maps import capture
from recipes.common.networks import build
from recipes.experiments.stability import measure, tables
from recipes.stability import flagged


def test_the_rules_flag_what_the_package_flags() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(200, 1, 16, 16, generator=generator) + 3 * (
        torch.rand(200, 1, 1, 1, generator=generator) < 0.02
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build("simple_cnn", 1, 10).eval()
    maps = capture(network, images, AnalysisSettings())
    found = measure.flagged_by_rule(maps, seed=3)
    counts = {}
    for rule, name in (("vote", "vote"), ("best", "best"), ("index", "index^1 > 0.667")):
        report = analyze_maps(maps, AnalysisSettings(rule=rule, seed=3))
        names = [(layer, i) for layer, own in report.layers.items() for i in range(len(own.verdicts))]
        assert {names[i] for i in found[name].nonzero()[:, 0].tolist()} == flagged(report)
        counts[rule] = report.count
    assert 0 < counts["vote"] <= counts["index"] < counts["best"]


def test_overlaps_are_summed_over_pairs() -> None:
    some, more = torch.tensor([True, True, False, False]), torch.tensor([False, True, True, True])
    assert measure.overlap([(some, some), (some, more)]) == [2 + 1, 2 + 4]


def line(condition: str, network: str, seeds: list[int], left_out: list[int]) -> dict[str, Any]:
    own = {"flagged": 3.0, "seeds": seeds, "left out": left_out, "other probe": [0, 0], "selected": [1, 2]}
    return {
        "cell": {"network": network, "condition": condition},
        "damaged": {str(count): dict.fromkeys(measure.RULES, own) for count in measure.DAMAGED},
    }


def test_the_table_sums_trainings_and_says_what_is_stable() -> None:
    lines = [
        line("overfitting", "lenet5", [10, 10], [8, 10]),
        line("augmented", "simple_cnn", [90, 95], [90, 100]),
        line("noise30", "alexnet", [90, 100], [90, 100]),
    ]
    rows = [row for row in tables.stability_table(lines).splitlines() if row.startswith("| vote |")]
    assert rows == [
        "| vote | chosen on: small networks (2) | 6 / 6 | 0.952 / 0.952 | 0.891 / 0.891 | 0.500 / 0.500 | - / - "
        "| yes |",
        "| vote | others: AlexNet (1) | 3 / 3 | 0.900 / 0.900 | 0.900 / 0.900 | 0.500 / 0.500 | - / - | no |",
    ]
    assert tables.reaches(lines[:1], "vote") is False


def test_the_figure_has_each_rule_where_its_filters_are_shared_and_left() -> None:
    for left_in_lenet5, stable in ((8, False), (9, True)):
        small = line("overfitting", "lenet5", [10, 10], [left_in_lenet5, 10])
        both = tables.draw([small, line("noise30", "alexnet", [10, 10], [9, 10])]).axes
        for axes, left in zip(both, (0.9, left_in_lenet5 / 10), strict=True):
            assert [tuple(dots.get_offsets()[0]) for dots in axes.collections] == [(0.5, left)] * len(measure.RULES)
            assert all(bool(len(dots.get_facecolors())) == stable for dots in axes.collections)
