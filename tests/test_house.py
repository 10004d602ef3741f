"""A file imports only from its own folder and from folders of a lower level, late and type imports included."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "lightning_anomaly"
LEVELS = [  # from the ground up
    {"_internal"},
    {"images"},
    {"network"},
    {"scores"},
    {"pages"},
    {"filters"},
    {"outliers", "memorization", "pruning"},
    {"callbacks", "__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
MEETS_MODULES = {"network", "filters", "outliers", "memorization", "pruning", "callbacks", "__main__"}


def name_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): ast.parse(file.read_text()) for file in PACKAGE.rglob("*.py")}


def imported(tree: ast.Module, late: bool = True) -> list[str]:
    """All modules and names that a file imports; unless `late`, only those at its top level."""
    names = []
    for node in ast.walk(tree) if late else tree.body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def needs(module: str) -> set[str]:
    needed = set()
    for name in imported(MODULES[module]):
        while name not in MODULES and "." in name:
            name = name.rpartition(".")[0]
        if name in MODULES and name != PACKAGE.name:
            needed.add(name)
    return needed


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_file_is_in_a_room() -> None:
    assert {room(module) for module in MODULES if module != PACKAGE.name} == set(LEVEL)


def test_imports_go_one_way_from_room_to_room() -> None:
    wrong = [
        (module, needed)
        for module in MODULES
        if module != PACKAGE.name
        for needed in needs(module)
        if room(needed) != room(module) and LEVEL[room(needed)] >= LEVEL[room(module)]
    ]
    assert wrong == []


def test_imports_have_no_cycle() -> None:
    files = {module: needs(module) for module in MODULES if module != PACKAGE.name}
    assert len(list(TopologicalSorter(files).static_order())) >= len(files)


def test_only_callbacks_import_lightning() -> None:
    rooms = {room(m) for m, tree in MODULES.items() for name in imported(tree) if "lightning.pytorch" in name}
    assert rooms == {"callbacks"}


def test_only_callbacks_and_what_they_analyze_communicate() -> None:
    rooms = {room(m) for m, tree in MODULES.items() for name in imported(tree) if "torch.distributed" in name}
    rooms |= {room(m) for m, tree in MODULES.items() for name in imported(tree) if "_internal.processes" in name}
    assert rooms == {"_internal", "filters", "callbacks"}  # a search in one process does not wait for others


def test_mathematics_is_about_tensors_and_not_modules() -> None:
    rooms = {
        room(module)
        for module, tree in MODULES.items()
        for name in imported(tree)
        if module != PACKAGE.name and name in ("torch.nn", "torch.nn.Module")
    }
    assert rooms <= MEETS_MODULES


def test_matplotlib_and_pillow_are_imported_late() -> None:
    early = {
        m for m, tree in MODULES.items() for name in imported(tree, late=False) if re.match("matplotlib|PIL", name)
    }
    assert early == {"lightning_anomaly.pages.notebook_figure"}  # itself imported late
