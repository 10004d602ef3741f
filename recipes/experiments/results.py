"""Make the tables and pictures of docs/results/ from the lines: `python -m recipes.experiments results`.

The words there are written by hand; what stands between a pair of markers, `<!-- NAME -->` and `<!-- end -->`, is made
here.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from recipes.experiments.common.store import lines_file, read_lines
from recipes.experiments.h1 import choice as h1_choice
from recipes.experiments.h1 import frozen, stopping
from recipes.experiments.h1 import tables as h1_tables
from recipes.experiments.h2 import figure as h2_figure
from recipes.experiments.h2 import tables as h2_tables
from recipes.experiments.h3 import figure as h3_figure
from recipes.experiments.h3 import tables as h3_tables
from recipes.experiments.outliers import figure as outliers_figure
from recipes.experiments.outliers import tables as outliers_tables
from recipes.experiments.output import figure as output_figure
from recipes.experiments.output import tables as output
from recipes.experiments.stability import tables as stability
from recipes.experiments.two_sample import tables as two_sample

__all__ = ["BLOCKS", "PICTURES", "fill", "read_pages"]

DOCS = Path(__file__).parents[2] / "docs"
Lines = list[dict[str, Any]]
# What is made of which files of lines.
BLOCKS: dict[str, tuple[str, Callable[..., str]]] = {
    "h1 runs": ("h1", h1_tables.run_table),
    "h1 signals": ("h1", h1_tables.signal_table),
    "h1 layers": ("h1", h1_tables.layer_table),
    "h1 long": ("h1", h1_tables.long_table),
    "h1 long signals": ("h1", h1_tables.long_signal_table),
    "h1 choice": ("h1", h1_choice.choice_table),
    "h1 search": ("search", h1_choice.search_table),
    "h1 two samples": ("two_sample", two_sample.two_sample_table),
    "two samples": ("two_sample", two_sample.flagged_table),
    "two sample alarms": ("two_sample", two_sample.alarm_table),
    "output rises": ("output", output.rise_rules),
    "output summary": ("output", output.output_summary),
    "output rules": ("output", output.output_rules),
    "output scores": ("output", output.output_scores),
    "output runs": ("output", output.output_runs),
    "stability": ("stability", stability.stability_table),
    "frozen": ("frozen", frozen.frozen_table),
    "stopping": ("h1", stopping.stopping_table),
    "stopping two samples": ("h1 two_sample", stopping.compared_table),
    "h2": ("h2", h2_tables.tables),
    "h3": ("h3", h3_tables.tables),
    "outliers": ("outliers", outliers_tables.all_table),
    "outliers by kind": ("outliers", outliers_tables.kind_table),
    "outliers, what does better": ("outliers", outliers_tables.wins_table),
    "outliers by network": ("outliers", outliers_tables.network_table),
    "outliers trained on": ("outliers", outliers_tables.trained_on_table),
}
PICTURES: dict[str, tuple[str, Callable[[Lines], Figure]]] = {
    "h1.png": ("h1", h1_tables.draw_curves),
    "h1_long.png": ("h1", h1_tables.draw_long),
    "signals.png": ("h1", h1_choice.draw),
    "stability.png": ("stability", stability.draw),
    "two_sample.png": ("two_sample", two_sample.draw),
    "stopping.png": ("h1", stopping.draw),
    "h2.png": ("h2", h2_figure.draw),
    "h3.png": ("h3", h3_figure.draw),
    "stopping_output.png": ("output", output_figure.draw),
    "outliers.png": ("outliers", outliers_figure.draw),
}


def read_pages() -> dict[Path, str]:
    """The pages of results and what they say."""
    return {page: page.read_text() for page in sorted((DOCS / "results").glob("*.md"))}


def fill(pages: Mapping[Path, str]) -> dict[Path, str]:
    """The pages with every block between markers made anew.

    Raises:
        ValueError: If a marker names no block, or a block does not stand in exactly one place.
    """
    marked = re.compile(r"<!-- (.+?) -->\n.*?<!-- end -->", flags=re.DOTALL)
    found = sorted(name for text in pages.values() for name in marked.findall(text))
    if found != sorted(BLOCKS):
        raise ValueError(f"The markers in docs/results should be {sorted(BLOCKS)}. Found {found}.")

    @cache
    def lines(source: str) -> Lines:
        return read_lines(lines_file(source))

    def block(match: re.Match[str]) -> str:
        sources, table = BLOCKS[match[1]]
        results = {source: lines(source) for source in sources.split()}
        for source, found in results.items():
            if not found:
                raise ValueError(f"`{source}.jsonl` should hold at least one result.")
        return f"<!-- {match[1]} -->\n{table(*results.values())}\n<!-- end -->"

    return {page: marked.sub(block, text) for page, text in pages.items()}


def run(options: argparse.Namespace) -> None:
    """Rewrite the tables of the pages, and their pictures."""
    for page, text in fill(read_pages()).items():
        page.write_text(text)
    for name, (source, draw) in PICTURES.items():
        draw(read_lines(lines_file(source))).savefig(DOCS / "pictures" / name, dpi=65)
