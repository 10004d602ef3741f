"""What people read: links and files that are there, code that compiles, commands that exist, a README that is short."""

import ast
import csv
import importlib
import json
import re
import shlex
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def anchors(page: Path) -> set[str]:
    """What a link may have behind its `#`: the page's headings, and the names whose docstrings it shows."""
    text = FENCE.sub("", page.read_text())
    titles = [re.sub(r"[^\w\s-]", "", title).strip().lower() for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
    return {re.sub(r"[\s-]+", "-", title) for title in titles} | set(re.findall(r"^::: (\S+)", text, re.MULTILINE))


@every_page
def test_links_and_pictures_are_there(page: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text()))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith("https://"):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert target.is_file(), link
            assert not anchor or anchor in anchors(target), link


@every_page
def test_files_that_are_named_exist(page: Path) -> None:
    for name in re.findall(r"`((?:docs|recipes|tests|lightning_anomaly|\.ci|\.github)/[\w./*-]*)`", page.read_text()):
        assert list(ROOT.glob(name.rstrip("/"))), name


@every_page
def test_commands_run_modules_that_exist(page: Path) -> None:
    for name in re.findall(r"python -m\s((?:recipes|lightning_anomaly)[\w.]*)", page.read_text()):
        spec = find_spec(name.rstrip("."))
        assert spec is not None, name
        assert spec.submodule_search_locations is None or find_spec(f"{name}.__main__") is not None, name


@every_page
def test_commands_have_the_options_that_they_are_given(page: Path) -> None:
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
def test_code_compiles_and_what_it_imports_exists(page: Path) -> None:
    for language, code in FENCE.findall(page.read_text()):
        for node in ast.walk(ast.parse(code)) if language == "python" else ():
            if isinstance(node, ast.Import):
                for name in node.names:
                    importlib.import_module(name.name)
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "results").glob("*.md")), ids=lambda page: page.stem)
def test_tables_of_results_are_rows_and_columns_of_their_csv_files(page: Path) -> None:
    for name, table in re.findall(r"<!-- (\w+)\.csv -->\n((?:\|.*\n)+)", page.read_text()):
        with (ROOT / "recipes" / "experiments" / "results" / f"{name}.csv").open(newline="") as file:
            header, *rows = csv.reader(file)
        shown, _, *cells = ([cell.strip() for cell in line[1:-1].split(" | ")] for line in table.splitlines())
        columns: list[int] = []
        for title in shown:  # titles may come twice: each is looked for behind the one before it
            columns.append(header.index(title, columns[-1] + 1 if columns else 0))
        known = [[row[column] for column in columns] for row in rows]
        places = [known.index(row) for row in cells]
        assert places == sorted(places)


def test_the_readme_is_short() -> None:
    assert len(README.read_text().split()) <= 900


def test_the_checks_find_the_test_command_in_the_readme() -> None:
    (line,) = (line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("command="))
    shell = ["bash", "-c", f'{line}; echo -n "$command"']
    found = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, timeout=600, check=True).stdout
    assert found.startswith("python3 -m venv .venv && ")
    assert README.read_text().count(f"    {found}\n") == 1


def test_the_tutorial_was_run_and_holds_its_pictures() -> None:
    file = ROOT / "docs" / "tutorial.ipynb"
    cells = [cell for cell in json.loads(file.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not any(output["output_type"] == "error" or output.get("name") == "stderr" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    assert (
        sum('<iframe title="Browser of a report"' in "".join(o.get("data", {}).get("text/html", "")) for o in outputs)
        == 1
    )
    assert "/tmp/" not in file.read_text()
    assert file.stat().st_size < 1_500_000
