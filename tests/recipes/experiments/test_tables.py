"""The recorded tables are exactly those of the recorded lines, as are figures, and their statistics are right."""

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from lightning_anomaly.filters.fraction_rise import HOLD
from recipes.experiments.figures import FIGURES
from recipes.experiments.store import RESULTS
from recipes.experiments.tables import TABLES, h3, output, stopping
from recipes.experiments.tables.curves import signal
from recipes.experiments.tables.writer import runs


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_recorded_tables_are_reproduced_exactly(name: str) -> None:
    made = list(csv.reader(io.StringIO(TABLES[name]().to_csv(index=False))))
    with (RESULTS / f"{name}.csv").open(newline="") as file:
        assert made == list(csv.reader(file))


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_drawn(name: str) -> None:
    figure = FIGURES[name]()
    assert all(axes.has_data() for axes in figure.axes if axes.axison)


@pytest.mark.slow
def test_curves_are_means_over_the_seeds() -> None:
    lines = runs("h1").query("network == 'alexnet' and data == 'cifar10' and condition == 'noise10' and not long").line
    curves = [signal(line, "val_loss") for line in lines]
    shown = {line.get_label(): line.get_ydata() for line in FIGURES["h1.png"]().axes[0].get_lines()}
    assert shown["noise10"] == pytest.approx([sum(values) / 3 for values in zip(*curves, strict=True)])


def test_a_csv_file_without_a_table_is_named_on_the_page_that_tells_how_to_reproduce_it() -> None:
    page = (Path(__file__).parents[3] / "docs" / "results" / "reproduce.md").read_text()
    files = {path.stem for path in RESULTS.glob("*.csv")}
    assert files - set(TABLES) == set(re.findall(r"`(\w+)\.csv`", page))


def test_rules_stop_and_keep_at_the_documented_epochs() -> None:
    assert stopping.by_patience([3, 2, 1, 2, 2, 2, 0], 3) == stopping.Stop(5, 2)
    assert stopping.by_patience([3, 2, 1, 2, 2, 0, 1], 3) == stopping.Stop(6, 5)
    assert stopping.by_rise([0.1] * 8 + [0.3] * 12, patience=HOLD + 1) == stopping.Stop(13, 7)
    assert stopping.by_rise([0.1] * 12) == stopping.Stop(11, 11)
    assert output.first_above([0.0, 0.1, 0.2], 0.1) == 2
    assert output.first_above([0.0, 0.1], 0.1) is None


def test_exchangeable_masks_have_uniform_p_values_and_the_best_of_each_run_a_small_one() -> None:
    rng = np.random.default_rng(0)
    p_values = [h3.permutation_p(rng.normal(size=(8, 21)).tolist(), "val_loss")[1] for _ in range(40)]
    assert scipy.stats.kstest(p_values, "uniform").pvalue > 0.01
    best = [sorted(run) for run in rng.normal(size=(8, 21)).tolist()]
    assert h3.permutation_p(best, "val_loss") == (1, pytest.approx(1 / 20_001))
    assert h3.permutation_p(best, "val_acc")[0] == 0
    assert h3.standing(1.0, [2.0, 1.0, 0.5, 0.0], "val_acc") == (0.5 + 2) / 4
