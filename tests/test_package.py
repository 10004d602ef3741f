"""The distribution: its version, its files, and what importing the package imports."""

import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import metadata
from pathlib import Path

import pytest

import lightning_anomaly

ROOT = Path(__file__).parent.parent
IMPORT = """
import gc, json, sys, tempfile, warnings
import lightning
for thing in gc.get_objects():
    if type(thing) is tempfile.TemporaryDirectory:
        thing.cleanup()  # torch 2.6 makes one on import and leaves it to Python's end, with a warning
before = {name.partition(".")[0] for name in sys.modules}
warnings.simplefilter("error")
from lightning_anomaly import *
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules} - before - sys.stdlib_module_names)))
"""


def test_an_import_adds_no_dependency_beyond_lightning_and_no_warning() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, timeout=300, check=True)
    assert done.stderr == ""
    # Callbacks also work with Lightning's other package tree, which consists of the other two.
    assert set(json.loads(done.stdout)) <= {"lightning_anomaly", "pytorch_lightning", "lightning_fabric"}


def test_the_version_agrees_with_the_distribution_and_the_changelog() -> None:
    assert metadata("lightning-anomaly")["Version"] == lightning_anomaly.__version__
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## (\d\S+)", changes, re.MULTILINE)[0] == lightning_anomaly.__version__
    for name, field in (("CITATION.cff", r"^version: (\S+)"), ("docs/method.md", r"version = \{(\S+)\}")):
        assert re.findall(field, (ROOT / name).read_text(), re.MULTILINE)[-1] == lightning_anomaly.__version__


def test_wheel_and_sdist_have_the_right_files(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", "77", reason="setuptools 77 or later builds the package")
    tree = tmp_path / "tree"  # setuptools writes beside what it packs
    tree.mkdir()
    for name in ("lightning_anomaly", "recipes", "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.npz"))
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    build = "from setuptools import build_meta as b; print(b.build_sdist('dist')); print(b.build_wheel('dist'))"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=tree, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    sources = {path.relative_to(tree).as_posix() for path in (tree / "lightning_anomaly").rglob("*") if path.is_file()}
    with zipfile.ZipFile(*(tree / "dist").glob("*.whl")) as wheel:
        code = {name for name in wheel.namelist() if ".dist-info/" not in name}
        (scripts,) = (wheel.read(name).decode() for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    assert "lightning-anomaly = lightning_anomaly.__main__:main" in scripts
    assert code == sources
    assert "lightning_anomaly/py.typed" in code
    with tarfile.open(*(tree / "dist").glob("*.tar.gz")) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert sources | {"README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml"} <= names
    assert not any(name.startswith(("tests", "recipes")) for name in names)
