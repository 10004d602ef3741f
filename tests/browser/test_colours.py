"""Verdicts can be told apart by the colour-blind, on light and on dark ground."""

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from sights import SIGHTS, seen

import lightning_anomaly.browser
from lightning_anomaly.plots.style import VERDICT_COLOURS

BROWSER = Path(lightning_anomaly.browser.__file__).parent


def colours(ground: str) -> dict[str, str]:
    """The verdicts' colours, and that of the ground that they stand on."""
    text = re.search(rf"const VERDICT_{ground} = {{(.*?)}}", (BROWSER / "colours.js").read_text(), re.DOTALL)[1]
    found = dict(re.findall(r'"?([\w, ]+?)"?: "(#\w{6})"', text))
    card = re.findall(r"--card: (#\w+);", (BROWSER / "page.css").read_text())[ground == "DARK"]
    found = {name.strip(): colour for name, colour in found.items()}
    return {**found, "ground": card if len(card) == 7 else "#" + "".join(2 * digit for digit in card[1:])}


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize("ground", ["LIGHT", "DARK"])
def test_no_two_look_alike(ground: str, sight: str) -> None:
    found = {name: seen(colour, np.array(SIGHTS[sight])) for name, colour in colours(ground).items()}
    assert len(found) == 7
    differences = {pair: np.linalg.norm(found[pair[0]] - found[pair[1]]) for pair in combinations(found, 2)}
    assert min(differences.values()) > 18, min(differences, key=differences.get)  # 2 can just be seen side by side


def test_verdicts_have_the_same_colours_in_figures() -> None:
    light = colours("LIGHT")
    del light["ground"]
    assert light == VERDICT_COLOURS
