"""What finds images that do not belong: end to end on a few digits, and its parts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from quick_lines import quick_lines
from trainers import QUIET

from lightning_anomaly import AnalysisSettings, analyze
from recipes.experiments.__main__ import parse
from recipes.experiments.common.fitting import trained
from recipes.experiments.common.ranks import auroc
from recipes.experiments.common.trainings import quick_matrix
from recipes.experiments.outliers import detect, figure, tables
from recipes.experiments.outliers.planted import Planted, plant

pytestmark = QUIET
SETTINGS = AnalysisSettings(rule="vote")
HEALTHY, OVERFITTING, DAMAGED = quick_matrix(detect.CONDITIONS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outliers")


@pytest.fixture(scope="module")
def lines(folder: Path) -> list[dict[str, Any]]:
    return quick_lines("outliers", folder, "--weights", str(folder / "weights"))


@pytest.fixture(scope="module")
def planted() -> Planted:
    return plant(DAMAGED)


def test_the_damaged_images_are_trained_on_and_those_of_the_probe_are_not(planted: Planted) -> None:
    plain = plant(OVERFITTING)
    changed = (planted.images.data.train_images != plain.images.data.train_images).flatten(1).any(1)
    assert planted.bad.sum() == 12  # a twentieth of 256, of six kinds
    assert torch.equal(changed, planted.bad)
    assert {len(places) for places in planted.damaged.values()} == {2}
    assert plain.damaged == {}
    assert not plain.bad.any()
    for one in (plain, planted):
        assert torch.equal(one.pixels[:128], one.images.data.val_images[:128])
        assert (one.pixels[128:] != one.images.data.val_images[128:164]).flatten(1).any(1).all()
        assert sorted(place for places in one.probe.damaged.values() for place in places) == [*range(128, 164)]
        assert one.pixels[one.probe.damaged["black"]].max() == 0
        torch.testing.assert_close(
            one.probe.images, (one.pixels / 255 - one.images.mean[:, None, None]) / one.images.std[:, None, None]
        )


def test_another_seed_begins_with_another_kind() -> None:
    first = [next(iter(plant(replace(HEALTHY, seed=seed)).probe.damaged)) for seed in range(3)]
    assert first == ["noise", "over_exposed", "noise"]  # by threes through six kinds


def test_the_score_in_a_line_is_that_of_an_analysis_of_the_probe(
    lines: list[dict[str, Any]], folder: Path, planted: Planted
) -> None:
    network = trained(DAMAGED, planted.images, str(folder / "weights"))
    for kind, share in (("noise", 0.01), ("inverted", 0.05), ("mixed", 0.05)):
        places = planted.probe.with_damage(kind, share)
        report = analyze(network, planted.probe.images[places], settings=SETTINGS)
        found = lines[2]["probe"][f"{kind}/{share}"]
        truth = places >= 128
        assert found["planted"] == truth.sum()
        for place, scores in enumerate((report.outlier_scores, report.outlier_samples)):
            area = auroc(truth, torch.tensor(scores, dtype=torch.float64))
            if truth.sum() > 1:  # else there are two draws
                assert found["auroc"][place] == pytest.approx(area, abs=1e-3)


def test_the_same_cell_without_clustering_has_the_same_score(folder: Path, lines: list[dict[str, Any]]) -> None:
    planted = plant(HEALTHY)
    maps = detect.capture(trained(HEALTHY, planted.images, str(folder / "weights")), planted.probe.images, SETTINGS)
    with_votes, without = (
        next(detect._in_probe(planted, maps, {}, "blurred", 0.05, treated_as)) for treated_as in ("lenet5", "alexnet")
    )
    assert with_votes["auroc"][1] is not None
    assert without["auroc"][1] is None
    assert with_votes["auroc"][0] == without["auroc"][0] == lines[0]["probe"]["blurred/0.05"]["auroc"][0]


def test_measures_of_a_perfect_a_useless_and_a_half_right_score() -> None:
    truth = torch.tensor([True] * 20 + [False] * 80)
    perfect, useless = truth.double(), torch.zeros(100)
    half = torch.cat([torch.full((10,), 3.0), torch.full((10,), 1.0), torch.full((80,), 2.0)])
    found = detect.measured(truth, {"score": perfect, "votes": useless, "loss": half})
    of = {name: dict(zip(detect.SCORES, found[name], strict=True)) for name in detect.MEASURES}
    assert found["planted"] == 20
    assert of["auroc"] == {**dict.fromkeys(detect.SCORES), "score": 1.0, "votes": 0.5, "loss": 0.5}
    assert [of["precision"][name] for name in ("score", "votes", "loss")] == [1.0, 0.2, 0.6]
    assert [of["false_positives"][name] for name in ("score", "votes", "loss")] == [0.0, 1.0, 1.0]
    assert detect.measured(truth, {"score": half})["auroc"][1:] == [None] * (len(detect.SCORES) - 1)


def test_false_positives_are_those_before_nineteen_of_twenty() -> None:
    truth = torch.tensor([True] * 20 + [False] * 10)
    values = torch.cat([torch.arange(20.0), torch.arange(10.0) - 0.5])  # below the second smallest of truth: 0, 1
    assert detect.false_positives(truth, values) == 0.8
    assert detect.false_positives(truth[19:], values[19:]) == 0  # of one image, itself


def test_draws_are_averaged_number_by_number() -> None:
    one, other, both = (
        {"planted": 1, **dict.fromkeys(detect.MEASURES, values)} for values in ([0.5, None], [1.0, 1.0], [0.75, None])
    )
    assert detect.averaged([one, other]) == both


def test_the_matrix_is_whole_seed_by_seed_and_of_the_choosing_seed_only_what_was_chosen_on() -> None:
    matrix = detect.full_matrix()
    keys = [training.key for training in matrix]
    assert len(set(keys)) == len(keys) == 6 + 2 * (5 * 2 - 1) * 3
    assert [training.seed for training in matrix] == [0] * 6 + [1] * 27 + [2] * 27
    assert [training.network for training in matrix[6:33]] == [
        *(network for network in ("lenet5", "simple_cnn", "alexnet") for _ in range(6)),
        *(network for network in ("resnet18", "vgg11_bn", "resnet18") for _ in range(3)),  # data set by data set
    ]
    assert all(detect.was_chosen_on(training.network, training.data) for training in matrix[:6])
    assert {training.condition for training in matrix} == set(detect.CONDITIONS)
    assert [job.key for job in detect.trainings(parse(["outliers", "--seeds", "1"]))] == keys[6:33]


def test_a_quick_run_finds_black_digits_and_its_lines_give_tables_and_a_figure(lines: list[dict[str, Any]]) -> None:
    assert [line["cell"]["condition"] for line in lines] == [*detect.CONDITIONS]
    assert [bool(line["trained_on"]) for line in lines] == [bool(line["gallery"]) for line in lines]
    assert [bool(line["gallery"]) for line in lines] == [False, False, True]
    found = lines[2]["trained_on"]
    assert found["mixed"]["planted"] == 12
    assert 0 <= found["mixed"]["right"] <= found["mixed"]["found"]
    assert found["mixed"]["auroc"][0] > 0.8  # what is trained on is still found
    assert found["mixed"]["auroc"][1] is None  # there are no votes
    numbers = {len(value) for line in lines for result in line["probe"].values() for value in (result["auroc"],)}
    assert numbers == {len(detect.SCORES)}

    row = tables.network_table(lines).splitlines()[4]
    area = tables.values_of(lines[2:], "score")
    assert row.startswith("| lenet5 | digits | damaged | 0 |")
    assert row.split(" | ")[5] == f"{sum(area) / len(area):.2f}"
    kinds = {line.split(" | ")[0].strip("| "): line for line in tables.kind_table(lines).splitlines()[2:]}
    assert kinds["foreign"].count("-") >= len(detect.SCORES)  # digits have no foreign images
    assert "AUROC by training" in tables.all_table(lines)
    wins = tables.wins_table(lines).splitlines()[2:]
    assert len(wins) == 7
    assert tables.trained_on_table(lines).splitlines()[2].startswith("| lenet5 | digits | 12 of 256 |")

    images = figure.unpacked(lines[2])
    assert images.shape == (9, 16, 16, 1)
    assert images[lines[2]["gallery"]["kinds"].index("black")].max() == 0
    drawn = figure.draw(lines)
    texts = [axes.get_title() for part in drawn.subfigs for axes in part.axes]
    assert sum(text.startswith("not damaged") for text in texts) == 3


def test_what_had_a_part_in_the_choice_is_not_reported() -> None:
    def line(network: str, data: str, seed: int) -> dict[str, Any]:
        return {"cell": {"network": network, "data": data, "seed": seed}}

    chosen = [line("lenet5", "cifar10", 0), line("simple_cnn", "cifar10", 1)]
    others = [line("lenet5", "fashion_mnist", 1), line("resnet18", "cifar10", 1)]
    assert tables.reported([*chosen, *others]) == others
