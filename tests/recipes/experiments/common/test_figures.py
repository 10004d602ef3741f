"""Curves of trainings."""

from itertools import combinations

import numpy as np
import pytest
from h1_lines import RISING, line
from matplotlib.colors import to_hex
from sights import SIGHTS, seen

from recipes.experiments.common.figures import draw_panels
from recipes.experiments.common.trainings import MATRIX


@pytest.mark.parametrize("style", ["-", "--"])
@pytest.mark.parametrize("sight", SIGHTS)
def test_conditions_of_a_kind_have_colours_that_the_colour_blind_tell_apart(sight: str, style: str) -> None:
    cells = [{"network": "net", "data": "some", "condition": condition} for condition in MATRIX]
    lines = [line(fraction=RISING) | {"cell": cell} for cell in cells]
    (axes,) = draw_panels(lines, [("validation loss", "val_loss", "val", False)]).axes
    found = [to_hex(own.get_color()) for own in axes.lines if own.get_linestyle() == style]
    looks = [seen(colour, np.array(SIGHTS[sight])) for colour in found]
    assert len(looks) == 3
    assert min(np.linalg.norm(a - b) for a, b in combinations(looks, 2)) > 16
