"""Serves the CSV files of results, which lie beside their lines, with the pages that link to them."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

FOLDER = "recipes/experiments/results"


def on_files(files: Any, config: Any) -> Any:
    """Add the CSV files to the site."""
    for path in sorted((Path(config.config_file_path).parent / FOLDER).glob("*.csv")):
        files.append(File.generated(config, f"results/tables/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let the links, which are right in the repository, lead to where they are in the site."""
    return markdown.replace(f"](../../{FOLDER}/", "](tables/")
