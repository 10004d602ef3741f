"""What a user notices of the package before using it: its version, its types, and what an import costs."""

import json
import re
import subprocess
import sys
from importlib.metadata import metadata
from importlib.resources import files
from pathlib import Path

import lightning_anomaly

IMPORT = """
import gc, json, sys, tempfile, warnings
import lightning
for thing in gc.get_objects():
    if type(thing) is tempfile.TemporaryDirectory:
        thing.cleanup()  # torch 2.6 makes one on import and leaves it to Python's end, with a warning
before = set(sys.modules)
warnings.simplefilter("error")
import lightning_anomaly
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names)))
"""


def test_an_import_brings_nothing_that_lightning_does_not_bring_and_no_warning() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, timeout=300, check=True)
    assert done.stderr == ""
    # The second is Lightning's other package tree, with which our callbacks work too, and the third is a part of it.
    assert set(json.loads(done.stdout)) <= {"lightning_anomaly", "pytorch_lightning", "lightning_fabric"}


def test_the_version_is_that_of_the_distribution_and_of_the_newest_changes() -> None:
    assert metadata("lightning-anomaly")["Version"] == lightning_anomaly.__version__
    changes = (Path(__file__).parent.parent / "CHANGELOG.md").read_text()
    assert re.findall(r"^## (\S+)", changes, re.MULTILINE)[0] == lightning_anomaly.__version__


def test_the_package_says_that_it_is_typed() -> None:
    assert (files(lightning_anomaly) / "py.typed").is_file()


def test_all_names_are_there() -> None:
    assert all(hasattr(lightning_anomaly, name) for name in lightning_anomaly.__all__)
