"""Other rules than the default, and where a network overfits: end to end on a few digits."""

from pathlib import Path

import pytest
import torch
from trainers import QUIET

from lightning_anomaly import AnalysisSettings, analyze
from recipes.experiments import frozen, search
from recipes.experiments.cells import prepare, quick_matrix
from recipes.experiments.h1_choice import search_table
from recipes.experiments.lines import read_lines
from recipes.experiments.training import evaluate, every_epoch
from recipes.networks import build

pytestmark = QUIET
CELL = quick_matrix(("overfitting",))[0]


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Quick lines of both scripts."""
    folder = tmp_path_factory.mktemp("lines")
    for script in (search, frozen):
        script.run(script.parse(["--quick", "--workers", "1", "--lines", str(folder)]))
    return folder


def test_a_quick_search_counts_flagged_filters_after_every_epoch(lines: Path) -> None:
    for line in read_lines(lines / "search-quick.jsonl"):
        assert [epoch["epoch"] for epoch in line["epochs"]] == [1, 2, 3, 4]
        for epoch in line["epochs"]:
            assert list(epoch["layers"]) == list(search.CANDIDATES)
            for layers in epoch["layers"].values():
                assert list(layers) == ["0", "3"]
                assert all(0 <= found["count"] <= found["live"] for found in layers.values())
    assert search_table(read_lines(lines / "search-quick.jsonl")).startswith("| signal | layers |")


def test_a_candidate_counts_what_an_analysis_with_its_settings_does() -> None:
    images = prepare(CELL)
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
    images = prepare(CELL)
    val = images.normalised("val")
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3))
    clean = search.analyse(network, {"val": val, "train": val})["gap in the tail, not rectified"]["0"]["count"]
    val = val.clone()
    val[:3] *= 100
    found = search.analyse(network, {"val": val, "train": val})["gap in the tail, not rectified"]["0"]
    assert clean < found["count"] == found["live"] == 8


def test_frozen_layers_stay_and_the_others_learn() -> None:
    images = prepare(CELL)
    for name, kinds in frozen.ARMS.items():
        network = build(CELL.network, 1, 10)
        before = {key: value.clone() for key, value in network.state_dict().items()}
        frozen.train_on(CELL, images, network, kinds, 1)
        for place, layer in enumerate(network):
            for key, value in layer.state_dict().items():
                assert torch.equal(value, before[f"{place}.{key}"]) != isinstance(layer, kinds), name


def test_a_quick_run_starts_from_the_best_epoch(lines: Path) -> None:
    (line,) = read_lines(lines / "frozen-quick.jsonl")
    images = prepare(CELL)
    losses = [
        evaluate(network, images.normalised("val"), images.data.val_labels)[0]
        for _, network in every_epoch(CELL, images, None)
    ]
    assert line["best"] == losses.index(min(losses)) + 1
    assert line["start"]["val_loss"] == pytest.approx(min(losses), rel=1e-3)
    assert list(line["arms"]) == list(frozen.ARMS)
    table = frozen.frozen_table([line])
    assert table.count("\n") == 1 + 4
    assert f"| best epoch | 1 | {min(losses):.2f} |" in table
