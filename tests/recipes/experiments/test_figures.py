"""Figures are drawn from the recorded lines."""

import pytest

from recipes.experiments.figures import FIGURES
from recipes.experiments.tables.curves import signal
from recipes.experiments.tables.writer import runs

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_drawn(name: str) -> None:
    figure = FIGURES[name]()
    assert all(axes.has_data() for axes in figure.axes if axes.axison)


def test_curves_are_means_over_the_seeds() -> None:
    lines = runs("h1").query("network == 'alexnet' and data == 'cifar10' and condition == 'noise10' and not long").line
    curves = [signal(line, "val_loss") for line in lines]
    shown = {line.get_label(): line.get_ydata() for line in FIGURES["h1.png"]().axes[0].get_lines()}
    assert shown["noise10"] == pytest.approx([sum(values) / 3 for values in zip(*curves, strict=True)])
