"""Rules that stop a training, replayed on its curves."""

from pathlib import Path

import pytest
from h1_lines import RISING, line, runs
from scripted import run, validations
from trainers import QUIET

from recipes.experiments.common import curves
from recipes.experiments.h1 import stopping, stopping_rules

pytestmark = QUIET


@pytest.mark.parametrize(
    "values",
    [[0.1] * 8 + [0.3] * 12, [0.0] * 20, [0.02 * i for i in range(25)], [0.3] * 6 + [0.1] * 6 + [0.2] * 12],
)
def test_the_replayed_rule_stops_where_the_callback_does(tmp_path: Path, values: list[float]) -> None:
    early, trainer = run(tmp_path, values, patience=6)
    replayed = stopping_rules.by_rise(values, early.divergence_threshold, 6)
    assert replayed.last + 1 == validations(trainer)


def test_a_step_keeps_the_network_before_it() -> None:
    assert stopping_rules.by_rise([0.1] * 8 + [0.3] * 12) == stopping_rules.Stop(13, 7)
    assert stopping_rules.by_rise([0.1] * 12) == stopping_rules.Stop(11, 11)


def test_patience_stops_after_as_many_epochs_without_a_new_minimum() -> None:
    assert stopping_rules.by_patience([3, 2, 1, 2, 2, 2, 0], 3) == stopping_rules.Stop(5, 2)
    assert stopping_rules.by_patience([3, 2, 1, 2, 2, 0, 1], 3) == stopping_rules.Stop(6, 5)


def test_a_threshold_stops_at_the_first_value_above_it() -> None:
    assert stopping_rules.by_threshold([0.0, 0.05, 0.06, 0.0], 0.05) == stopping_rules.Stop(2, 2)
    assert stopping_rules.by_threshold([0.0, 0.05, 0.05], 0.05) == stopping_rules.Stop(2, 2)


def test_the_rule_of_the_comparison_is_replayed_where_there_was_one() -> None:
    bad, good = runs(RISING, seed=0)
    bad["key"], good["key"] = "bad", "good"
    by_chance = [0.3, 0.02, 0.3, 0.3, 0.01, 0.009, 0.3, 0.001]
    losses = curves.signal(bad, "val_loss")
    epochs = [{"layers": {}, "val_loss": loss, "p max fraction": p} for loss, p in zip(losses, by_chance, strict=True)]
    elsewhere = [
        {**epoch, "val_loss": 2 * epoch["val_loss"]} for epoch in epochs
    ]  # the same training took another course
    compared = [{"key": "bad", "epochs": epochs}, {"key": "good", "epochs": elsewhere}]
    (one,) = curves.joined([bad, good], compared)
    assert curves.signal(one, "p max fraction") == by_chance
    assert curves.signal(one, "fraction") == curves.signal(bad, "fraction")
    assert stopping_rules.replay(one, stopping_rules.TWO_SAMPLE)["epochs"] == 6
    table = stopping.compared_table([bad, good], compared)
    assert f"| net | some | {stopping_rules.TWO_SAMPLE} | 0.0 | 0.00 | 6 | 1 of 1 | - | 0 of 0 |" in table
    assert stopping_rules.TWO_SAMPLE not in stopping.stopping_table([bad, good])


def test_a_rule_is_charged_against_the_best_epoch() -> None:
    some = line(val_loss=[3.0, 2.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0], test_acc=[0.1, 0.2, 0.5, 0.6, 0.4, 0.4, 0.4, 0.4],
                test_loss=[3.0, 2.0, 1.5, 1.0, 2.0, 2.0, 2.0, 2.0])  # fmt: skip
    cost = stopping_rules.replay(some, "validation loss, patience 3")
    assert cost == pytest.approx({"epochs": 6, "accuracy": 10, "loss": 0.5, "stopped": 1})
    assert stopping_rules.replay(some, "none: train to the end") == pytest.approx(
        {"epochs": 8, "accuracy": 20, "loss": 1.0, "stopped": 0}
    )


def test_the_figure_shows_what_each_rule_costs() -> None:
    bad, good = runs(RISING, seed=0)
    (axis,) = stopping.draw([bad, good]).axes
    rules = [label.get_text() for label in axis.get_yticklabels()]
    for training, points in zip((bad, good), axis.get_lines(), strict=True):
        costs = [stopping_rules.replay(training, rule)["accuracy"] for rule in rules]
        assert points.get_xdata().tolist() == pytest.approx(costs)
