"""Verdicts can be told apart by the colour-blind, on light and on dark ground."""

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

import lightning_anomaly.browser
from lightning_anomaly.plots.style import VERDICT_COLOURS

BROWSER = Path(lightning_anomaly.browser.__file__).parent
# Machado, Oliveira and Fernandes, "A physiologically-based model for simulation of color vision deficiency" (2009),
# for linear red, green and blue.
SIGHTS = {
    "everybody": np.eye(3),
    "without red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "without green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "without blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def seen(colour: str, sight: np.ndarray) -> np.ndarray:
    """As lightness and two hues (CIELAB)."""
    values = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    x, y, z = TO_XYZ @ np.clip(sight @ linear, 0, 1) / [0.9505, 1, 1.089]
    x, y, z = (np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


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
