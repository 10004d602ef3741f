"""Add the CSV files of the results to the site, and convert formulas to MathML, which needs no script."""

import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File

FOLDER = "recipes/experiments/results"


def on_files(files: Any, config: Any) -> Any:
    """Add the CSV files to the site."""
    for path in sorted((Path(config.config_file_path).parent / FOLDER).glob("*.csv")):
        files.append(File.generated(config, f"results/tables/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Redirect links to CSV files to their place in the site, and convert formulas."""
    markdown = markdown.replace(f"](../../{FOLDER}/", "](tables/")
    if "$$" in markdown:
        markdown = re.sub(r"\$\$(.+?)\$\$", lambda m: convert(m[1].strip(), display="block"), markdown, flags=re.S)
        markdown = re.sub(r"\$([^$\n]+)\$", lambda m: convert(m[1]), markdown)
    return markdown
