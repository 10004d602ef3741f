"""The samples with the largest outlier scores are drawn in order; colors are those of the browser."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import pixels

import lightning_anomaly.pages
from lightning_anomaly.filters.filter_figures import VERDICT_COLORS
from lightning_anomaly.pages.figures import layer_text, outlier_figure

N = 60
IMAGES = torch.randint(0, 256, (N, 5, 4, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def draw(scores: dict[int, float], votes: dict[int, int]) -> Any:
    """Draw samples whose other scores and votes are 0."""
    values = [[given.get(sample, 0) for sample in range(N)] for given in (scores, votes)]
    return outlier_figure(IMAGES, torch.tensor(values[0]).double(), [*map(int, values[1])])


def order(figure: Any) -> list[int]:
    return [int(axes.get_title().split()[1]) for axes in figure.axes]


def test_at_most_sixteen_samples_are_drawn_by_score_and_votes() -> None:
    figure = draw({0: 2.0, 1: 4.0, 2: 1.0, 3: 5.0, 4: 3.0}, {40: 1, 2: 1})
    assert order(figure) == [3, 1, 4, 0, 2, 40]  # ordinary samples only if they are outliers of a filter
    assert figure.axes[0].get_title() == "sample 3\nscore 5.0"
    pixels(figure)
    assert figure.axes[0].bbox.height > 1.5 * figure.dpi  # inches
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), IMAGES[3])
    assert figure.axes[0].images[0].get_clim() == (0, 255)
    assert figure.get_suptitle() == "Samples with the largest outlier scores: 6 of 60"
    assert order(draw({}, {7: 1, 30: 3, 9: 2})) == [30, 9, 7]
    assert order(draw({}, {40: 1, 2: 1, 11: 1})) == [2, 11, 40]


def test_there_is_a_figure_only_of_samples_that_stand_out() -> None:
    assert len(draw({}, dict.fromkeys(range(N), 1)).axes) == 16
    assert draw({}, {}) is None


def colors(ground: str) -> dict[str, str]:
    code = (Path(lightning_anomaly.pages.__file__).parent / "colors.js").read_text()
    text = re.search(rf"const VERDICT_{ground} = {{(.*?)}}", code, re.DOTALL)[1]
    return {name.strip(): color for name, color in re.findall(r'"?([\w, ]+?)"?: "(#\w{6})"', text)}


def test_verdict_colors_of_the_browser_are_those_of_figures() -> None:
    assert colors("LIGHT") == VERDICT_COLORS
    assert colors("DARK").keys() == VERDICT_COLORS.keys()
    assert len(set(colors("LIGHT").values())) == len(set(colors("DARK").values())) == len(VERDICT_COLORS)


def test_long_names_of_layers_are_cut_at_the_left() -> None:
    assert [layer_text(name, 8) for name in ("", "features", "features.10")] == [
        "the model",
        "layer features",
        "layer …ures.10",
    ]
