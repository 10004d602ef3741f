"""What the output says after every epoch, and when rules stop by it."""

import math
from typing import Any

import pytest
import torch
from quick_lines import quick_lines
from sklearn.metrics import accuracy_score, roc_auc_score
from torch.nn import functional

from recipes.experiments.__main__ import EXPERIMENTS, parse
from recipes.experiments.output import figure, tables
from recipes.experiments.output import follow as output


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return quick_lines("output", tmp_path_factory.mktemp("lines"))


def test_areas_are_scikit_learn_s() -> None:
    generator = torch.Generator().manual_seed(0)
    train, val = (scale * torch.randn(n, 5, generator=generator).double() for scale, n in ((2, 300), (1, 200)))
    labels = [torch.randint(5, (n,), generator=generator) for n in (300, 200)]
    found = output.compare_outputs(train, val, *labels)
    truth, both = [True] * 300 + [False] * 200, torch.cat([train, val])
    assert found["confidence_auc"] == pytest.approx(roc_auc_score(truth, both.softmax(1).amax(1)))
    entropy = torch.distributions.Categorical(logits=both).entropy()
    assert found["entropy_auc"] == pytest.approx(roc_auc_score(truth, -entropy))
    losses = functional.cross_entropy(both, torch.cat(labels), reduction="none")
    assert found["loss_auc"] == pytest.approx(roc_auc_score(truth, -losses))
    errors = [1 - own.softmax(1).amax(1).mean().item() for own in (train, val)]
    assert found["confidence_error_ratio"] == pytest.approx(errors[1] / errors[0])
    made = 1 - accuracy_score(labels[1], val.argmax(1))
    assert math.exp(found["log_overconfidence"]) == pytest.approx(made / errors[1])


def test_the_rise_of_fewer_images_is_theirs() -> None:
    generator = torch.Generator().manual_seed(0)
    all_of_them, few = output.Rises(), output.Rises()
    for scale in (1, 1, 1, 3):
        train = scale * torch.randn(300, 5, generator=generator).double()
        val = torch.randn(200, 5, generator=generator).double()
        found, of_few = all_of_them.add(train, val), few.add(train[:128], val[:128])
    assert found["confidence_rise"] > 0.1
    assert found["confidence_rise 128"] == of_few["confidence_rise"] != found["confidence_rise"]


def test_seeds_come_one_after_the_other_and_cifar10_first() -> None:
    keys = [
        job.key for job in EXPERIMENTS["output"].jobs(parse(["output", "--networks", "lenet5", "--seeds", "0", "1"]))
    ]
    assert [key.split("/")[1::2] for key in keys[::6]] == [
        ["cifar10", "0"], ["fashion_mnist", "0"], ["cifar10", "1"], ["fashion_mnist", "1"]
    ]  # fmt: skip
    assert len(keys) == 24


def line(
    condition: str, areas: list[float], losses: list[float], seed: int = 3, train_size: int = 4000
) -> dict[str, Any]:
    cell = {"network": "lenet5", "data": "cifar10", "condition": condition, "seed": seed, "train_size": train_size}
    epochs = [
        {"confidence_auc": area, "confidence_gap": area - 0.5, "confidence_error_ratio": 2 * area,
         "confidence_rise": 1.1 * (area - 0.5), "log_odds_gap": 8 * (area - 0.5), "confidence_p_value": 0.5,
         "log_overconfidence": 9 * (area - 0.5),
         "loss_auc": 0.5, "val_loss": loss, "test_acc": 1 / (1 + loss), "changed": loss,
         "disparity": -loss, "weight_variance": area} for area, loss in zip(areas, losses, strict=True)
    ]  # fmt: skip
    return {"key": f"lenet5/cifar10/{condition}/{seed}", "cell": cell, "epochs": epochs}


def test_rules_stop_where_they_say_and_count_what_they_stop() -> None:
    bad = line("overfitting", [0.5, 0.5, 0.5, 0.56, 0.58, 0.6], [2.0, 1.0, 1.1, 1.2, 1.3, 2.0])
    good = line("augmented", [0.56] * 6, [2.0, 1.9, 1.8, 1.7, 1.6, 1.5])
    stops = {name: (rule(bad), rule(good)) for name, rule in tables.RULES.items()}
    assert stops["ratio of expected errors, rise of 10% (`AnomalyEarlyStopping`)"] == (5, None)
    assert stops["the same ratio without standard errors, rise of 10%"] == (5, None)
    assert stops["the same, rise of 15%"] == (5, None)
    assert stops["log-odds gap, rise of 0.25"] == (4, None)
    assert stops["gap, rise of 0.025"] == (4, None)
    assert stops["errors made over those expected, with labels, rise of 30%"] == (4, None)
    assert stops["area, rise of 0.03"] == (4, None)
    assert stops["area, above 0.55"] == (3, 0)
    assert stops["validation loss, patience 3"] == (4, None)
    assert stops["validation loss, patience 10"] == (None, None)
    rows = {row.split(" | ")[1]: row for row in tables.output_rules([bad, good]).splitlines()[2:]}
    rise = rows["ratio of expected errors, rise of 10% (`AnomalyEarlyStopping`)"]
    assert rise.startswith("| chosen on: cifar10 | ")
    assert rise.endswith(" | 0 of 1 | 0 of 1 | 2.00 | 2.00 | 100% | 16.7 |")  # at the last epoch nothing is stopped
    assert rows["gap, rise of 0.025"].endswith(" | 1 of 1 | 0 of 1 | 1.30 | 1.30 | 83% | 6.5 |")
    assert rows["none: train to the end"].endswith(" | 0 of 1 | 0 of 1 | 2.00 | 2.00 | 100% | 16.7 |")
    (row,) = [row for row in tables.output_runs([bad, good]).splitlines() if "overfitting" in row]
    assert row.endswith("| 1.00 → 2.00 | 2 | 1.00 → 1.00 → 1.20 | 0.500 → 0.500 → 0.600 | 11% | - | - |")
    for part, own in {"others": {"seed": 2}, "all images": {"train_size": 48_976, "seed": 5}}.items():
        (first, *_) = tables.output_rules([line("overfitting", [0.5] * 5, [1.0] * 5, **own)]).splitlines()[2:]
        assert first.startswith(f"| {part}: cifar10 | ")


def test_the_summary_is_of_what_had_no_part_in_the_choice() -> None:
    losses = [2.0, 1.0, 1.1, 1.2, 1.3, 2.0]
    others = [line("overfitting", [0.5] * 3 + [0.6] * 3, losses, seed=2), line("augmented", [0.5] * 6, losses, seed=2)]
    long = line("overfitting", [0.5] * 6, losses, seed=5, train_size=48_976)
    header, _, first, *_ = tables.output_summary([*others, long, line("noise10", [0.5] * 6, losses)]).splitlines()
    assert header.startswith("| rule | cifar10: overfitting | cifar10: healthy | cifar10: loss | all images: cifar10: ")
    assert first.endswith("| 1 of 1 | 0 of 1 | 1.20 | 0 of 1 | - | 2.00 |")


def test_scores_tell_overfitting_from_healthy_trainings_that_had_no_part_in_the_choice() -> None:
    bad = [line("overfitting", [0.5] * 3 + [end] * 3, [1.0] * 6, seed=2) for end in (0.54, 0.6)]
    good = [line("augmented", [0.5] * 3 + [end] * 3, [1.0] * 6, seed=2) for end in (0.52, 0.56)]
    chosen = line("augmented", [0.5] * 3 + [0.9] * 3, [1.0] * 6)
    for own in (*bad, *good, chosen):
        names = {f"confidence_rise {size}": 0.5 for size in output.SIZES}
        own["epochs"] = [
            epoch | names | {"entropy_auc": 0.5, "margin_auc": 0.5, "energy_auc": 0.5} for epoch in own["epochs"]
        ]
    header, _, *rows = tables.output_scores([*bad, *good, chosen]).splitlines()
    assert "least of 2 overfitting | most of 2 healthy" in header
    assert rows[0] == "| ratio of expected errors | 0.75 | 0.044 | 0.066 | - | - | - | 0.75 | 0.044 | 0.066 |"
    single, means, of_five = (row for row in rows if "without standard errors" in row)
    assert single.endswith("of single validations | 0.75 | 0.080 | 0.120 | - | - | - | 0.75 | 0.080 | 0.120 |")
    assert means.startswith("| the same without standard errors | 0.75 | 0.080 | 0.120 | - | - | - |")
    del bad[0]["epochs"][0]["confidence_rise 2048"]
    few = next(row for row in tables.output_scores([*bad, *good]).splitlines() if "2048" in row)
    assert few.startswith("| the same, 2048 images | 0.50 (3) | 0.500 | 0.500 | - ")
    last = 1.08 ** (3 / 5) / 1.08 ** (2 / 5)
    assert of_five.startswith(f"| the same without standard errors, means of five | 0.75 | {last - 1:.3f} |")


def test_other_rises_stop_elsewhere() -> None:
    bad = line("overfitting", [0.5] * 3 + [0.6] * 3, [2.0, 1.0, 1.1, 1.2, 1.3, 2.0])
    good = line("augmented", [0.5] * 6, [2.0, 1.9, 1.8, 1.7, 1.6, 1.5])
    rows = {row.split(" | ")[1]: row for row in tables.rise_rules([bad, good]).splitlines()[2:]}
    assert rows["5%"] == "| chosen on: cifar10 | 5% | 1 of 1 | 0 of 1 | 1.20 | 1.20 | 67% |"
    assert rows["10%"] == "| chosen on: cifar10 | 10% | 1 of 1 | 0 of 1 | 1.20 | 1.20 | 67% |"
    assert rows["15%"] == "| chosen on: cifar10 | 15% | 0 of 1 | 0 of 1 | 2.00 | 2.00 | 100% |"


def test_a_quick_run_gives_lines_and_tables(lines: list[dict[str, Any]]) -> None:
    assert [len(line["epochs"]) for line in lines] == [4, 4]
    assert tables.output_runs(lines).splitlines()[2].startswith("| lenet5/digits/overfitting/0/256x4 |")
    assert len(tables.output_rules(lines).splitlines()) == 2 + len(tables.RULES)


def test_the_figure_has_each_training_where_its_gap_and_its_loss_rise() -> None:
    bad = line("noise10", [0.5] * 3 + [0.6] * 3, [2.0, 1.0, 1.1, 1.2, 1.3, 3.0], seed=2)
    good = line("augmented", [0.5] * 6, [2.0, 1.9, 1.8, 1.7, 1.6, 1.5])
    left, right = figure.draw([bad, good]).axes
    points = [[tuple(place) for place in own.get_offsets().round(3).tolist()] for own in left.collections]
    assert sorted(points) == [[], [(0.01, 1.0)], [(0.11, 3.0)]]
    ends = sorted(tuple(place) for own in right.collections for place in own.get_offsets().round(3).tolist())
    assert ends == [(0.0, 1.2), (1.0, 3.0), (2.0, 3.0)]
