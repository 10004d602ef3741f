"""H3 end to end on a few digits, and what it compares."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from quick_lines import quick_lines
from torch import nn
from trainers import QUIET

from recipes.common.networks import build
from recipes.experiments.__main__ import EXPERIMENTS
from recipes.experiments.common.fitting import KeepWeights, fit, further_epochs
from recipes.experiments.common.store import read_lines
from recipes.experiments.common.trainings import Training, prepare, quick_matrix
from recipes.experiments.h3 import figure as figure_of_h3
from recipes.experiments.h3 import masking as h3
from recipes.experiments.h3 import tables as h3_tables
from recipes.experiments.h3.masking import median_distances
from recipes.experiments.h3.measures import MEASURES, Judge

pytestmark = QUIET
TRAINING = quick_matrix(("noise30",))[0]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lines of a quick run that was interrupted after its first training and went on."""
    folder = tmp_path_factory.mktemp("lines")
    whole = h3.experiment

    def interrupted(training: Training, **arguments: Any) -> dict[str, Any]:
        if training.network == "simple_cnn":
            raise KeyboardInterrupt
        return whole(training, **arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(EXPERIMENTS, "h3", replace(EXPERIMENTS["h3"], work=interrupted))
        with pytest.raises(KeyboardInterrupt):
            quick_lines("h3", folder)
    first = (folder / "h3-quick.jsonl").read_text()
    assert first.count("\n") == 1
    assert len(quick_lines("h3", folder)) == 2
    assert (folder / "h3-quick.jsonl").read_text().startswith(first)
    return folder


def test_a_run_has_every_mask_at_every_moment_with_equal_counts(quick: Path) -> None:
    nothing_found, line = read_lines(quick / "h3-quick.jsonl")
    assert all("arms" not in one for states in nothing_found["readings"].values() for one in states.values())
    assert nothing_found["readings"]["default"]["last"]["masked"] == {"0": 0, "3": 0}
    assert {moment: len(rows) for moment, rows in line["nothing"]["last"].items()} == {"0": 1, "1": 1, "3": 1}
    first, second = (line["readings"][name] for name in h3.READINGS)
    assert sum(first["last"]["masked"].values()) > 0
    counts = {name: {moment: len(rows) for moment, rows in arm.items()} for name, arm in first["last"]["arms"].items()}
    once = {"0": 1, "1": 1, "3": 1}
    assert counts == {
        "anomaly": once,
        "random": {"0": 20, "1": 5, "3": 5},
        "l1": once,
        "fpgm": once,
        "sparsest": once,
        "matched": {"0": 2, "1": 2, "3": 2},
    }
    assert all(set(arm) == {"0"} for arm in second["last"]["arms"].values())  # the default flagged something
    for found in (first["last"], second["last"]):
        assert all(found["masked"][layer] < found["filters"][layer] for layer in found["masked"])
        assert found["matching"]["pool"][0] <= found["matching"]["matched"][0] <= found["matching"]["pool"][1]
    assert len((quick / "h3-quick.jsonl").read_text()) < 20_000


def test_tables_and_figure_are_made_of_the_quick_lines(quick: Path) -> None:
    lines = json.loads(json.dumps(read_lines(quick / "h3-quick.jsonl")))
    text = h3_tables.tables(lines)
    assert "| lenet5 | digits | overfitting | 1 |" in text
    assert "### Validation loss, default settings, after 3 further epochs" in text
    place = MEASURES.index("val_loss")
    anomaly = lines[1]["readings"]["default"]["last"]["arms"]["anomaly"]["3"][0][place]
    nothing = lines[1]["nothing"]["last"]["3"][0][place]
    (row,) = [row for row in h3_tables.loss_table(lines, "default", "3").splitlines() if "simple_cnn" in row]
    assert f"| simple_cnn | digits | noise30 | 1 | {nothing:.2f} | {anomaly:.2f} |" in row
    figure = figure_of_h3.draw(lines)
    assert len(figure.axes) == 6


def test_without_flagged_filters_the_tables_say_so_and_no_more(quick: Path) -> None:
    lines = read_lines(quick / "h3-quick.jsonl")[:1]
    assert h3_tables.tables(lines).count("###") == 1
    assert "| 0.0 of 6, 0.0 of 16 (0) |" in h3_tables.tables(lines)
    figure_of_h3.draw(lines)


def test_kept_weights_give_the_line_that_training_gives(tmp_path: Path) -> None:
    training = replace(TRAINING, epochs=2)
    images = prepare(training)
    module = fit(training, images, [KeepWeights(tmp_path / training.key)])
    kept, trained = (h3.states(training, images, folder) for folder in (str(tmp_path), None))
    assert kept["last"][0] == trained["last"][0] == 2
    assert kept["best"][0] == trained["best"][0]
    for state in ("last", "best"):
        a, b = kept[state][1].state_dict(), trained[state][1].state_dict()
        assert all(torch.equal(a[name], b[name]) for name in a)
    last = module.network.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(value, last[name]) for name, value in kept["last"][1].state_dict().items())
    (tmp_path / training.key / "0.pt").unlink()
    assert h3.states(training, images, str(tmp_path))["best"][0] == kept["best"][0]


def test_further_training_goes_the_same_way_each_time_and_its_epochs_are_measured() -> None:
    images = prepare(TRAINING)
    torch.manual_seed(0)
    network = build("lenet5", 1, 10)
    judge = Judge.of(TRAINING, images)
    compared = h3.Comparison(TRAINING, images, judge, network)
    rows = compared.rows({"3": [0, 5]}, train=True)
    assert list(rows) == ["0", "1", "3"]
    again, mask = compared.masked({"3": [0, 5]})
    assert rows["0"] == judge.row(again)
    for _ in further_epochs(TRAINING, images, again, 3, mask):
        pass
    assert rows["3"] == judge.row(again)


def test_other_masks_have_the_layers_and_counts_of_the_flagged_and_leave_dead_filters_out() -> None:
    images = prepare(TRAINING)
    compared = h3.Comparison(TRAINING, images, Judge.of(TRAINING, images), build("lenet5", 1, 10))
    summary = {"0": [1, 0, 0, 0, 0, -1], "3": [0] * 12 + [2, 5, 0, -1]}
    sparsity = {"0": [0.1, 0.2, 0.3, 0.8, 0.4, 0.9], "3": [i / 16 for i in range(16)]}
    masks = compared.masks({"0": [0], "3": [12, 13]}, summary, sparsity)
    assert (len(masks["random"]), len(masks["leaning"])) == (h3.RANDOM, h3.LEANING)
    assert masks["sparsest"] == [{"0": [3], "3": [14, 13]}]
    norms = compared.network[3].weight.detach().abs().sum((1, 2, 3))  # type: ignore[index]
    small = [
        sum(norms[filters["3"]].sum() for filters in masks[name]) / len(masks[name])
        for name in ("l1", "leaning", "random")
    ]
    assert small == sorted(small)
    for filters in (filters for each in masks.values() for filters in each):
        assert {layer: len(chosen) for layer, chosen in filters.items()} == {"0": 1, "3": 2}
        assert 5 not in filters["0"]
        assert 15 not in filters["3"]
    pool = [*masks["random"], *masks["leaning"]]
    matched, matching = compared.matched(masks["anomaly"][0], pool)
    assert len(matched) == 2
    assert matched[0] != matched[1]
    accuracies = [compared.judge.train_accuracy(compared.masked(filters)[0]) for filters in pool]
    nearest = min(abs(accuracy - matching["anomaly"]) for accuracy in accuracies)
    assert abs(matching["matched"][0] - matching["anomaly"]) == pytest.approx(nearest, abs=2e-4)


def test_the_filter_nearest_to_the_geometric_median_has_the_smallest_distances() -> None:
    conv = nn.Conv2d(1, 4, 1, bias=False)
    conv.weight.data[:, 0, 0, 0] = torch.tensor([0.0, 1.0, 2.0, 9.0])
    assert median_distances(conv.weight.detach()).tolist() == [12, 10, 10, 24]
