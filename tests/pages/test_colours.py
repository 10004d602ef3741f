"""Verdicts have the same colours in figures and in the browser, with different ones on dark ground."""

import re
from pathlib import Path

import lightning_anomaly.pages
from lightning_anomaly.filters.figures import VERDICT_COLORS


def colours(ground: str) -> dict[str, str]:
    code = (Path(lightning_anomaly.pages.__file__).parent / "colours.js").read_text()
    text = re.search(rf"const VERDICT_{ground} = {{(.*?)}}", code, re.DOTALL)[1]
    return {name.strip(): colour for name, colour in re.findall(r'"?([\w, ]+?)"?: "(#\w{6})"', text)}


def test_verdict_colours_of_the_browser_are_those_of_figures() -> None:
    assert colours("LIGHT") == VERDICT_COLORS
    assert colours("DARK").keys() == VERDICT_COLORS.keys()
    assert len(set(colours("LIGHT").values())) == len(set(colours("DARK").values())) == len(VERDICT_COLORS)
