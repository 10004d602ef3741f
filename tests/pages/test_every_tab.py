"""Every tab of every page, and what its first links open, has words for all that it shows."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planted import planted
from test_run_in_browser import run_of

from lightning_anomaly import AnomalyReport

PAGES = Path(__file__).parents[2] / "lightning_anomaly" / "pages"
WORDLESS = re.compile(r"\[object|undefined|NaN|null")
TEXTS = """() => {
    const shown = [...document.querySelectorAll("body *:not(script, noscript)")];
    const texts = shown.flatMap(each => [...each.childNodes].filter(node => node.nodeType === Node.TEXT_NODE));
    const attributes = shown.flatMap(each => ["title", "alt", "aria-label", "href", "src"].map(
        name => each.getAttribute(name)?.slice(0, 999)));
    return [...texts.map(text => text.data), ...attributes.filter(Boolean)];
}"""


@pytest.mark.parametrize("kind", ["search", "filters", pytest.param("run", marks=pytest.mark.slow)])
def test_nothing_is_shown_as_an_object_or_as_missing(
    kind: str, opened: Callable[..., Any], report: AnomalyReport, tmp_path: Path
) -> None:
    report = replace(
        report,
        columns={**report.columns, "class": ["even", "odd"] * 200, "name": [f"{place}.png" for place in range(400)]},
    )
    page = opened({"search": planted, "filters": lambda: report, "run": lambda: run_of(report, tmp_path)}[kind]())
    links = "links => links.map(link => link.getAttribute('href'))"
    tabs = page.page.eval_on_selector_all("nav a", links)
    assert len(tabs) >= 3
    for tab in tabs:
        page.go(tab)
        found = page.page.eval_on_selector_all("main a[href^='#']", links)
        for address in [tab, *{href.split("/")[1]: href for href in reversed(found)}.values()]:
            page.go(address)
            wordless = [text for text in page.page.evaluate(TEXTS) if WORDLESS.search(text)]
            assert wordless == [], address


def test_an_element_refuses_what_is_neither_text_nor_element(chromium: Any) -> None:
    page = chromium.new_page()
    page.evaluate((PAGES / "dom.js").read_text().replace("export ", "") + "window.make = make;")
    assert page.evaluate("make('p', {}, [['a', [null, [['b'], make('i', {}, 'c')]]]]).outerHTML") == "<p>ab<i>c</i></p>"
    for wrong in ("{}", "() => 1", "3", "NaN", "false", "[['a', {}]]"):
        with pytest.raises(Exception, match=r"TypeError: Found .* in <p>"):
            page.evaluate(f"make('p', {{}}, {wrong})")
    page.close()
