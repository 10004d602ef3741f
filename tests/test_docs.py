"""The documentation: links and files exist, code compiles, and commands can be parsed."""

import ast
import csv
import importlib
import json
import re
import shlex
import tempfile
from pathlib import Path

import pytest

from lightning_anomaly.scores.sample_table import COLUMNS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")), *(ROOT / "recipes").rglob("*.md")]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


@every_page
def test_links_and_pictures_exist(page: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text()))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith("https://"):
            assert (page.parent / link.partition("#")[0]).exists(), link  # mkdocs finds anchors


@every_page
def test_named_files_exist(page: Path) -> None:
    for name in re.findall(r"`((?:docs|recipes|tests|lightning_anomaly|\.ci|\.github)/[\w./*-]*)`", page.read_text()):
        assert list(ROOT.glob(name.rstrip("/"))), name


@every_page
def test_commands_exist_with_their_options(page: Path) -> None:
    text = re.sub(r"^    lightning-anomaly ", "    python -m lightning_anomaly ", page.read_text(), flags=re.M)
    for name, given in re.findall(r"^    .*python -m ((?:recipes|lightning_anomaly)[\w.]*)(.*)$", text, re.M):
        module = importlib.import_module(name)
        if hasattr(module, "__path__"):
            module = importlib.import_module(f"{name}.__main__")
        parse = getattr(module, "parse", None)
        assert parse or not given
        if parse:
            parse(shlex.split(given))


@every_page
def test_code_compiles_and_its_imports_exist(page: Path) -> None:
    for language, code in FENCE.findall(page.read_text()):
        for node in ast.walk(ast.parse(code)) if language == "python" else ():
            if isinstance(node, ast.Import):
                for name in node.names:
                    importlib.import_module(name.name)
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "results").glob("*.md")), ids=lambda page: page.stem)
def test_tables_of_results_are_parts_of_their_csv_files(page: Path) -> None:
    for name, table in re.findall(r"<!-- (\w+)\.csv -->\n((?:\|.*\n)+)", page.read_text()):
        with (ROOT / "recipes" / "experiments" / "results" / f"{name}.csv").open(newline="") as file:
            header, *rows = csv.reader(file)
        titles, _, *cells = ([cell.strip() for cell in line[1:-1].split(" | ")] for line in table.splitlines())
        columns: list[int] = []
        for title in titles:  # a title may occur twice, so search behind the previous one
            columns.append(header.index(title, columns[-1] + 1 if columns else 0))
        selected = [[row[column] for column in columns] for row in rows]
        places = [selected.index(row) for row in cells]
        assert places == sorted(places)


def test_the_columns_of_samples_are_those_that_are_defined() -> None:
    text = (ROOT / "docs" / "api" / "reports.md").read_text()
    assert re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.M) == [(name, about) for name, (_, about) in COLUMNS.items()]


def test_the_tutorial_was_run_and_has_its_pictures() -> None:
    file = ROOT / "docs" / "tutorial.ipynb"
    cells = [cell for cell in json.loads(file.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not any(output["output_type"] == "error" or output.get("name") == "stderr" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    pages = ["".join(output.get("data", {}).get("text/html", "")) for output in outputs]
    assert sum('<iframe title="Browser of a report"' in page for page in pages) == 1
    assert tempfile.gettempdir() not in file.read_text()
    assert file.stat().st_size < 1_500_000


def test_api_pages_show_all_public_names_by_their_public_paths() -> None:
    rooms = ("lightning_anomaly", "lightning_anomaly.images", "lightning_anomaly.pruning")
    public = [f"{room}.{name}" for room in rooms for name in importlib.import_module(room).__all__]
    shown = re.findall("^::: (.+)$", "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md")), re.M)
    assert sorted(shown) == sorted(public)
