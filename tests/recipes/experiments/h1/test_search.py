"""Other rules than the default: end to end on a few digits, and their parts."""

from typing import Any

import pytest
import torch
from quick_lines import quick_lines
from trainers import QUIET

from lightning_anomaly import AnalysisSettings, analyze
from recipes.common.networks import build
from recipes.experiments.common.trainings import prepare, quick_matrix
from recipes.experiments.h1 import search
from recipes.experiments.h1.choice import search_table

pytestmark = QUIET
TRAINING = quick_matrix(("overfitting",))[0]


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return quick_lines("search", tmp_path_factory.mktemp("lines"))


def test_a_quick_search_counts_flagged_filters_after_every_epoch(lines: list[dict[str, Any]]) -> None:
    for line in lines:
        assert [epoch["epoch"] for epoch in line["epochs"]] == [1, 2, 3, 4]
        for epoch in line["epochs"]:
            assert list(epoch["layers"]) == list(search.CANDIDATES)
            for layers in epoch["layers"].values():
                assert list(layers) == ["0", "3"]
                assert all(0 <= found["count"] <= found["live"] for found in layers.values())
    assert search_table(lines).startswith("| signal | layers |")


def test_a_candidate_counts_what_an_analysis_with_its_settings_does() -> None:
    images = prepare(TRAINING)
    probes = {"val": images.normalised("val"), "train": images.normalised("train", 128)}
    network = build("simple_cnn", 1, 10)
    found = search.analyse(network, probes)
    for name, probe in (
        ("default", "val"),
        ("paper's reading", "val"),
        ("rare at 5%", "val"),
        ("training probe", "train"),
    ):
        settings = search.CANDIDATES[name].settings
        report = analyze(network, probes[probe], settings=settings)
        assert {layer: counts["count"] for layer, counts in found[name].items()} == {
            layer: len(filters) for layer, filters in report.anomaly_filters.items()
        } | {layer: 0 for layer in report.layers if layer not in report.anomaly_filters}
    assert search.CANDIDATES["default"].settings == AnalysisSettings()


def test_a_gap_is_found_where_images_do_not_belong() -> None:
    images = prepare(TRAINING)
    val = images.normalised("val")
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3))
    clean = search.analyse(network, {"val": val, "train": val})["gap in the tail, not rectified"]["0"]["count"]
    val = val.clone()
    val[:3] *= 100
    found = search.analyse(network, {"val": val, "train": val})["gap in the tail, not rectified"]["0"]
    assert clean < found["count"] == found["live"] == 8
