"""Runs the tests with the lowest versions that pyproject.toml allows.

`python tests/lowest_versions.py FOLDER [PYTEST OPTIONS]` makes an environment in FOLDER with the Python that runs this
script, which should be 3.10 or 3.11: not all of the lowest versions exist for later ones. torch comes from PyPI with
its CUDA libraries, about 5 GB on disk. Not a part of the test suite.
"""

from __future__ import annotations

import re
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# What the lowest versions need and do not ask for themselves.
NOT_TOO_NEW = [
    "numpy<2",  # scikit-learn 1.4.0 and matplotlib 3.8.0 were built for it
    "setuptools<81",  # tensorboard before 2.21 imports pkg_resources
    "pyparsing<3.2",  # matplotlib 3.8 calls what is deprecated since
]


def lowest(requirements: list[str]) -> list[str]:
    """`name==version` for each `name>=version`."""
    found = []
    for requirement in requirements:
        match = re.match(r"([\w.-]+)(\[[\w,]+\])?>=([\w.]+)", requirement)
        if match:
            found.append(f"{match[1]}{match[2] or ''}=={match[3]}")
    return found


def requirements() -> list[str]:
    """All of pyproject.toml's, those of its `recipes`, `compact` and `test` extras included."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    named = "dependencies|recipes|compact|test"
    lists = re.findall(rf"^(?:{named}) = \[(.*?)\][ ]*(?:#[^\n]*)?$", text, flags=re.MULTILINE | re.DOTALL)
    return [item for part in lists for item in re.findall(r'"([^"]+)"', part)]


def main(folder: Path, options: list[str]) -> int:
    """Install and test; the exit status is pytest's."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    pinned = lowest(requirements())
    print("Python", sys.version.split()[0], *pinned, flush=True)
    # With the package itself, so that pip refuses what pyproject.toml does not allow.
    install = [python, "-m", "pip", "install", "--quiet", *pinned, *NOT_TOO_NEW, "--editable", f"{ROOT}[test]"]
    subprocess.run(install, check=True)
    return subprocess.run(
        [python, "-m", "pytest", "-p", "no:cacheprovider", *options], cwd=ROOT, check=False
    ).returncode


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]).resolve(), sys.argv[2:]))
