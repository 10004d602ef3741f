"""Verdicts have the same colors in figures and in the browser, with different ones on dark ground."""

import re
from pathlib import Path

import lightning_anomaly.pages
from lightning_anomaly.filters.filter_figures import VERDICT_COLORS


def colors(ground: str) -> dict[str, str]:
    code = (Path(lightning_anomaly.pages.__file__).parent / "colors.js").read_text()
    text = re.search(rf"const VERDICT_{ground} = {{(.*?)}}", code, re.DOTALL)[1]
    return {name.strip(): color for name, color in re.findall(r'"?([\w, ]+?)"?: "(#\w{6})"', text)}


def test_verdict_colors_of_the_browser_are_those_of_figures() -> None:
    assert colors("LIGHT") == VERDICT_COLORS
    assert colors("DARK").keys() == VERDICT_COLORS.keys()
    assert len(set(colors("LIGHT").values())) == len(set(colors("DARK").values())) == len(VERDICT_COLORS)
