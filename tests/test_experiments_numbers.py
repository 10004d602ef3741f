"""The experiments' own arithmetic, against other ways to the same numbers."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from scripted import run, validations
from sklearn.feature_selection import f_classif
from trainers import QUIET

from lightning_anomaly.report import LayerReport
from lightning_anomaly.verdicts import ANOMALY, DEAD, NORMAL
from recipes.experiments import h1_choice, h1_tables, results, rules, series, stopping
from recipes.experiments.statistics import (
    calibration_error,
    class_separation,
    gap,
    gradient_disparity,
    kurtosis,
    layer_statistics,
    silent_share,
    tail_gaps,
)

pytestmark = QUIET
RNG = torch.Generator().manual_seed(0)
POINTS = torch.randn(5, 60, 2, generator=RNG, dtype=torch.float64)


def test_kurtosis_is_scipys() -> None:
    values = POINTS[:, :, 0].exp()
    expected = scipy.stats.kurtosis(values.numpy(), axis=1, fisher=False)
    torch.testing.assert_close(kurtosis(values), torch.from_numpy(expected))


def test_class_separation_is_that_of_an_analysis_of_variance() -> None:
    labels = torch.arange(60) % 4
    flat = torch.stack([POINTS[:, :, 0], torch.zeros(5, 60, dtype=torch.float64)], 2)
    f, _ = f_classif(flat[:, :, 0].T.numpy(), labels.numpy())
    expected = torch.from_numpy(3 * f / (3 * f + 56))  # between over total, from their ratio
    torch.testing.assert_close(class_separation(flat, labels), expected)
    means = torch.stack([POINTS[:, labels == c].mean(1) for c in range(4)], 1)
    torch.testing.assert_close(class_separation(means[:, labels], labels), torch.ones(5, dtype=torch.float64))


def test_a_filter_is_silent_for_the_samples_on_its_median_point() -> None:
    points = POINTS.clone()
    points[1, :57] = torch.tensor([0.25, 0.5], dtype=torch.float64)
    assert silent_share(points)[1] == 57 / 60
    assert (silent_share(points)[[0, 2, 3, 4]] <= 1 / 60).all()


def test_the_gap_is_the_smallest_distance_to_another_sample() -> None:
    points, outliers = POINTS.clone(), torch.zeros(5, 60, dtype=torch.bool)
    points[2, 7], points[2, 8] = torch.tensor([90.0, 0.0]), torch.tensor([100.0, 0.0])
    outliers[2, [7, 8]] = True
    expected = min(math.dist(points[2, 7], points[2, i]) for i in range(60) if i not in (7, 8))
    assert gap(points, outliers)[2].item() == pytest.approx(expected)
    assert gap(points, outliers)[[0, 1, 3, 4]].tolist() == [0, 0, 0, 0]


def around(distances: torch.Tensor) -> torch.Tensor:
    """Points at these distances from 0, in random directions."""
    angle = 2 * math.pi * torch.rand(distances.shape, generator=RNG, dtype=torch.float64)
    return torch.stack([distances * angle.cos(), distances * angle.sin()], 2)


def test_a_tail_of_one_piece_has_a_gap_as_often_as_the_null_says() -> None:
    uniform = torch.rand(2000, 512, generator=RNG, dtype=torch.float64)
    for weight in (0.2, 1.0):  # however heavy the tail
        found = tail_gaps(around(uniform**-weight))
        for chance in (0.01, 0.1, 0.5):
            assert (found <= chance).double().mean().item() == pytest.approx(chance, abs=4 * math.sqrt(chance / 2000))
    gaussian = tail_gaps(torch.randn(2000, 512, 2, generator=RNG))
    assert (gaussian <= 0.01).double().mean() <= 0.01


def test_a_group_apart_leaves_a_gap_in_the_tail_at_any_scale() -> None:
    points = torch.randn(50, 512, 2, generator=RNG, dtype=torch.float64)
    points[:25, :8, 0] += 12
    found = tail_gaps(points)
    assert (found[:25] < 0.01).all()
    assert (found[25:] > 0.001).all()
    torch.testing.assert_close(tail_gaps(1000 * points), found)
    order = torch.randperm(512, generator=RNG)
    torch.testing.assert_close(tail_gaps(points[:, order]), found)


def test_a_filter_that_is_silent_but_for_a_few_samples_has_no_tail_to_judge() -> None:
    points = POINTS.clone()
    points[1, 3:] = 0
    assert tail_gaps(points)[1] == 1
    assert (tail_gaps(points)[[0, 2, 3, 4]] < 1).all()


def test_gradient_disparity_is_the_mean_distance_of_pairs() -> None:
    gradients = [torch.tensor([0.0, 0.0]), torch.tensor([3.0, 4.0]), torch.tensor([0.0, 8.0])]
    assert gradient_disparity(gradients) == pytest.approx((5 + 8 + 5) / 3)


def test_calibration_error_by_hand() -> None:
    sure = torch.tensor([[0.9, 0.1]] * 4 + [[0.4, 0.6]] * 2)
    labels = torch.tensor([0, 0, 0, 1, 1, 0])
    assert calibration_error(sure, labels) == pytest.approx(4 / 6 * abs(0.75 - 0.9) + 2 / 6 * abs(0.5 - 0.6))
    assert calibration_error(torch.eye(2), torch.tensor([0, 1])) == 0


def layer(**changes: Any) -> LayerReport:
    """Five filters, of which the second is silent but for two samples and the fifth is dead."""
    points, outliers = POINTS.float().clone(), torch.zeros(5, 60, dtype=torch.bool)
    points[1] = 0
    points[1, :2] = 5.0
    points[4] = 0
    outliers[1, :2], outliers[2, 3] = True, True
    fields: dict[str, Any] = {
        "verdicts": (NORMAL, ANOMALY, ANOMALY, NORMAL, DEAD),
        "points": points,
        "outliers": outliers,
        "isolated": torch.zeros_like(outliers),
        "sparsity": torch.tensor([0.1, 0.9, 0.2, 0.3, 1.0], dtype=torch.float64),
        "map_size": (4, 4),
        "analysed_size": (4, 4),
    }
    rest = dict.fromkeys(("n_components", "calinski_harabasz", "smallest_share", "labels", "explained"), torch.zeros(5))
    return LayerReport(**{**rest, **fields, **changes})


def test_layer_statistics_count_what_was_planted() -> None:
    explained = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.0], dtype=torch.float64)
    found = layer_statistics(layer(explained=explained), torch.arange(60) % 3)
    counts = {name: found[name] for name in ("count", "live", "dead", "silent", "isolated", "outliers")}
    assert counts == {"count": 2, "live": 4, "dead": 1, "silent": 1, "isolated": 1, "outliers": 3}
    assert found["sparsity"] == pytest.approx(0.5)
    assert found["outside"] == pytest.approx(0.25)
    assert found["second"] == pytest.approx(layer().points[:4, :, 1].double().numpy().var(1).mean())
    nothing = layer_statistics(layer(verdicts=(DEAD,) * 5, outliers=torch.zeros(5, 60).bool()), torch.arange(60) % 3)
    assert (nothing["count"], nothing["kurtosis"], nothing["separation"], nothing["outside"]) == (0, 0.0, 0.0, 0.0)


def line(**curves: list[float]) -> dict[str, Any]:
    """A training with these curves; `fraction` is in hundredths of a layer of 100 filters."""
    length = len(next(iter(curves.values())))
    epochs: list[dict[str, Any]] = []
    for position in range(length):
        values = {name: curve[position] for name, curve in curves.items()}
        of_layer = {"count": 100 * values.pop("fraction", 0.0), "live": 100, "isolated": 0, "silent": 0, "dead": 0,
                    "sparsity": values.pop("sparsity", 0.5), "weight_variance": 2.0, "weight_norm": 2.0,
                    "separation": 0.0, "kurtosis": 3.0, "outside": 0.5, "second": 0.5}  # fmt: skip
        defaults = {
            "val_loss": 1.0,
            "val_acc": 0.5,
            "test_acc": 0.5,
            "test_loss": 1.0,
            "changed": 0.5,
            "disparity": 1.0,
        }
        layers = {reading: {"0": of_layer} for reading in ("val", "val_unrectified", "val_paper", "train")}
        epochs.append({**defaults, **values, "layers": layers})
    return {"cell": {"network": "net", "condition": "overfitting"}, "epochs": epochs}


def test_signals_are_read_from_a_line() -> None:
    some = line(fraction=[0.1, 0.2, 0.4], val_loss=[2.0, 1.0, 3.0])
    assert series.signal(some, "fraction") == pytest.approx([0.1, 0.2, 0.4])
    assert series.signal(some, "fraction", "val_paper", "0") == pytest.approx([0.1, 0.2, 0.4])
    assert series.signal(some, "epoch") == [0, 1, 2]
    assert series.best_epoch(some) == 1
    assert series.after_best(some, [5, 6, 7]) == [6, 7]


def test_partial_correlation_is_that_of_the_matrix_inverse() -> None:
    rng = np.random.default_rng(0)
    given = rng.normal(size=40)
    a, b = given + rng.normal(size=40), given + rng.normal(size=40)
    precision = np.linalg.inv(np.corrcoef([scipy.stats.rankdata(values) for values in (a, b, given)]))
    expected = -precision[0, 1] / math.sqrt(precision[0, 0] * precision[1, 1])
    assert series.partial_correlation(a, b, given) == pytest.approx(expected)
    assert series.partial_correlation(given, b, given) == 0
    assert series.partial_correlation(a, b, np.zeros(40)) == pytest.approx(series.correlation(a, b))


def test_a_constant_curve_follows_nothing_and_a_short_one_says_nothing() -> None:
    assert series.correlation([1, 1, 1, 1, 1], [1, 2, 3, 4, 5]) == 0
    assert series.correlation([1, 2, 3, 4, 5], [1, 2, 3, 4, 5]) == pytest.approx(1)
    assert series.correlation([1, 2, 3, 4], [1, 2, 3, 4]) is None
    assert series.partial_correlation([1, 2, 3, 4], [1, 2, 3, 4], [1, 1, 1, 1]) is None
    assert series.auroc([1.0, 2.0], [True, True]) is None
    assert series.auroc([1.0, 2.0, 2.0], [False, True, False]) == 0.75


def test_the_late_change_compares_quarters() -> None:
    assert series.late_change([9, 9, 1, 3, 0, 0, 5, 7]) == pytest.approx(6 - 2)


@pytest.mark.parametrize(
    "values",
    [[0.1] * 8 + [0.3] * 12, [0.0] * 20, [0.02 * i for i in range(25)], [0.3] * 6 + [0.1] * 6 + [0.2] * 12],
)
def test_the_replayed_rule_stops_where_the_callback_does(tmp_path: Path, values: list[float]) -> None:
    early, trainer = run(tmp_path, values, patience=6)
    replayed = rules.by_rise(values, early.divergence_threshold, 6)
    assert replayed.last + 1 == validations(trainer)


def test_a_step_keeps_the_network_before_it() -> None:
    assert rules.by_rise([0.1] * 8 + [0.3] * 12) == rules.Stop(13, 7)
    assert rules.by_rise([0.1] * 12) == rules.Stop(11, 11)


def test_patience_stops_after_as_many_epochs_without_a_new_minimum() -> None:
    assert rules.by_patience([3, 2, 1, 2, 2, 2, 0], 3) == rules.Stop(5, 2)
    assert rules.by_patience([3, 2, 1, 2, 2, 0, 1], 3) == rules.Stop(6, 5)


def test_a_threshold_stops_at_the_first_value_above_it() -> None:
    assert rules.by_threshold([0.0, 0.05, 0.06, 0.0], 0.05) == rules.Stop(2, 2)
    assert rules.by_threshold([0.0, 0.05, 0.05], 0.05) == rules.Stop(2, 2)


def test_the_rule_of_the_comparison_is_replayed_where_there_was_one() -> None:
    bad, good = runs(RISING, seed=0)
    bad["key"], good["key"] = "bad", "good"
    by_chance = [0.3, 0.02, 0.3, 0.3, 0.01, 0.009, 0.3, 0.001]
    compared = [{"key": "bad", "epochs": [{"layers": {}, "p max fraction": chance} for chance in by_chance]}]
    one, other = series.joined([bad, good], compared)
    assert series.signal(one, "p max fraction") == by_chance
    assert series.signal(one, "fraction") == series.signal(bad, "fraction")
    assert other == good
    assert rules.replay(one, rules.TWO_SAMPLE)["epochs"] == 6
    table = stopping.compared_table([bad, good], compared)
    assert f"| net | some | {rules.TWO_SAMPLE} | 0.0 | 0.00 | 6 | 1 of 1 | - | 0 of 0 |" in table
    assert rules.TWO_SAMPLE not in stopping.stopping_table([bad, good])


def test_a_rule_is_charged_against_the_best_epoch() -> None:
    some = line(val_loss=[3.0, 2.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0], test_acc=[0.1, 0.2, 0.5, 0.6, 0.4, 0.4, 0.4, 0.4],
                test_loss=[3.0, 2.0, 1.5, 1.0, 2.0, 2.0, 2.0, 2.0])  # fmt: skip
    cost = rules.replay(some, "validation loss, patience 3")
    assert cost == pytest.approx({"epochs": 6, "accuracy": 10, "loss": 0.5, "stopped": 1})
    assert rules.replay(some, "none: train to the end") == pytest.approx(
        {"epochs": 8, "accuracy": 20, "loss": 1.0, "stopped": 0}
    )


def runs(fraction: list[float], **cell: Any) -> list[dict[str, Any]]:
    """An overfitting run whose anomaly fraction is this, and a healthy one in which it is flat."""
    loss = [3.0, 2.0, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]
    cell = {"network": "net", "data": "some", "train_size": 4000, **cell}
    bad = line(fraction=fraction, val_loss=loss) | {"cell": {**cell, "condition": "overfitting"}}
    good = line(fraction=[0.2] * 8, val_loss=sorted(loss)[::-1]) | {"cell": {**cell, "condition": "augmented"}}
    return [bad, good]


RISING = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]


def test_a_signal_is_scored_by_what_it_follows_and_tells() -> None:
    found = h1_choice.score(runs(RISING, seed=0), "fraction", "val", last=False)
    assert found == h1_choice.Score(follows=1.0, tells=1.0, runs=2)
    assert h1_choice.score(runs(RISING, seed=0), "fraction", "val", last=True, sign=-1).worth == -1
    constant = h1_choice.score(runs([0.2] * 8, seed=0), "fraction", "val", last=False)
    assert (constant.follows, constant.tells) == (0, 0.5)
    assert h1_choice.score(runs(RISING, seed=0)[:1], "fraction", "val", last=False) is None


def test_smoothing_takes_the_epochs_before() -> None:
    assert series.smoothed([3.0, 0.0, 6.0, 3.0], 1) == [3.0, 0.0, 6.0, 3.0]
    assert series.smoothed([3.0, 0.0, 6.0, 3.0], 3) == [3.0, 1.5, 3.0, 3.0]


def test_smoothing_is_chosen_with_the_signal() -> None:
    restless = [value + 0.06 * (-1) ** epoch for epoch, value in enumerate(RISING)]
    assert h1_choice.score(runs(restless, seed=0), "fraction", "val", last=False, window=3).follows == 1
    rows = h1_choice.choice_table(
        [*runs(restless, seed=0), *runs(RISING, seed=1), *runs(RISING, network="held out", seed=3)]
    )
    assert "| anomaly fraction, mean of 3 epochs | all | +1.00 / 1.00 | +1.00 / 1.00 | +1.00 / 1.00 |" in rows


def test_a_signal_is_chosen_on_one_seed_and_reported_on_the_others() -> None:
    rows = h1_choice.choice_table(
        [*runs(RISING[::-1], seed=0), *runs(RISING, seed=1), *runs(RISING[::-1], seed=3, network="held out")]
    ).splitlines()
    assert "seed 0 (2 runs) | other seeds (2 runs) | another network (2 runs)" in rows[0]
    assert "| - anomaly fraction | all | +1.00 / 1.00 | -1.00 / 0.00 | +1.00 / 1.00 |" in rows
    assert "| epoch number | all | +1.00 / 0.50 | +1.00 / 0.50 | +1.00 / 0.50 |" in rows


def test_runs_on_all_images_have_a_table_of_their_own() -> None:
    (long, healthy), short = runs(RISING, seed=4, train_size=50_000), runs(RISING[::-1], seed=0)
    rows = h1_tables.long_table([*short, healthy, long]).splitlines()[2:]
    follows = "0.200 → 0.700 | +1.00 / +1.00 | +0.400"
    flat = "0.200 → 0.200 | - / - | +0.000"
    assert rows == [
        f"| net | some | overfitting | 4 | 1.00 → 3.50 | 3 of 8 | {follows} | {follows} | +0.00 | +1.00 | +0.000 |",
        f"| net | some | augmented | 4 | 1.00 → 1.00 | 8 of 8 | {flat} | {flat} | - | - | +0.000 |",
    ]
    for table in (h1_tables.run_table, h1_tables.signal_table, h1_tables.layer_table):
        assert table([*short, long]) == table(short)
    assert [axis.get_lines()[0].get_ydata()[-1] for axis in h1_tables.draw_long([*short, long]).axes] == [3.5, 0.7, 0.7]


def test_every_number_in_the_results_comes_from_a_line() -> None:
    text = results.RESULTS.read_text()
    assert results.fill(text) == text


def test_results_without_a_block_are_refused() -> None:
    with pytest.raises(ValueError, match=r"The markers in RESULTS.md should be .*'h1 runs'.*Found \[\]"):
        results.fill("# Nothing\n")
