"""The command line as people use it; each mistake ends in one sentence."""

import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from reports import table
from torch import nn

from lightning_anomaly import __version__
from lightning_anomaly.__main__ import main, parse
from lightning_anomaly.network.pretrained import Pretrained


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of two classes, of which one is odd, one in the wrong folder and one broken, and a note."""
    photos, generator = tmp_path_factory.mktemp("given") / "photos", torch.Generator().manual_seed(0)
    for place in range(120):
        shades = torch.linspace(60, 180, 8) if place % 2 else torch.linspace(180, 60, 8)
        pixels = shades + 20 * torch.randn(8, 8, generator=generator)
        name = f"{place:03}.png"
        if place == 7:
            pixels, name = 255 * torch.eye(8), os.fsdecode(b"caf\xe9.png")  # as Latin-1 has it
        path = photos / ("right" if place % 2 or place == 4 else "left") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clamp(0, 255).byte().numpy()).convert("RGB").save(path)
    (photos / "left" / "000.png").write_bytes(b"no image")
    (photos / "left" / "notes.txt").touch()
    return photos


@pytest.fixture
def pretrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small network, which replaces one that cannot be loaded."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 2))
    network[-1].weight.data *= 100  # it is sure of what it sees

    def load() -> Pretrained:
        warnings.warn("Net V8 cannot be loaded: Net V9 is used instead.", stacklevel=2)
        return Pretrained("Net V9", network, ("ape", "bee"))

    monkeypatch.setattr("lightning_anomaly.network.pretrained.load_pretrained", load)


def command(*arguments: Any) -> None:
    main([str(argument) for argument in arguments])


def rows_of(file: Path) -> dict[str, dict[str, str]]:
    return {row["name"]: row for row in table(file)}


@pytest.mark.usefixtures("pretrained")
def test_a_folder_is_enough(folder, tmp_path, capsys):
    output = tmp_path / "a" / "b"
    command("outliers", "--data", folder, "--output", output)
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[:2] == [
        "note: Net V8 cannot be loaded: Net V9 is used instead.",
        "network: Net V9, pretrained on ImageNet",
    ]
    assert "right/004.png (filed under right, clearly looks like left)" in out
    assert "1 of the 120 images in `images` cannot be read, the first at position 0, left/000.png (Unid" in out
    assert f"open {output / 'outliers.html'}" in out
    page = (output / "outliers.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "<title>photos</title>" in page
    rows = rows_of(output / "outliers.csv")
    assert r"right/caf\udce9.png" in rows
    filed = rows["right/004.png"]
    assert (filed["path"], filed["class"], filed["looks_like"]) == (str(folder / "right" / "004.png"), "right", "left")
    assert "label" in filed["list"]
    assert rows["left/000.png"]["list"] == "unreadable"
    assert rows["left/notes.txt"]["list"] == "skipped"
    assert any(re.search("the network sees (ape|bee)", row["reason"]) for row in rows.values())


@pytest.mark.usefixtures("pretrained")
def test_a_reference_and_a_top_are_used_and_a_second_run_overwrites_nothing(folder, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(folder / "left" / "008.png", photos)
    Image.radial_gradient("L").save(photos / "odd.png")
    options = ("--data", photos, "--reference", folder, "--top", 1, "--output", tmp_path / "found")
    command("outliers", *options)
    assert "60 calibration images" in capsys.readouterr().out
    rows = rows_of(tmp_path / "found" / "outliers.csv")
    assert {name: row["list"] for name, row in rows.items()} == {
        "odd.png": "content; look",
        "008.png": "identical; faults",
    }
    (tmp_path / "found" / "outliers.csv").unlink()
    command("outliers", *options)
    assert f"open {tmp_path / 'found' / 'outliers-2.html'}" in capsys.readouterr().out
    written = {path.name for path in (tmp_path / "found").iterdir()}
    assert written == {"outliers.html", "outliers-2.html", "outliers-2.csv"}


@pytest.mark.usefixtures("pretrained")
def test_what_was_found_right_before_is_in_no_list(folder, tmp_path):
    (tmp_path / "verdicts.csv").write_text("name,verdict\nright/004.png,right\nright/005.png,ticked\n")
    command("outliers", "--data", folder, "--reviewed", tmp_path / "verdicts.csv", "--output", tmp_path)
    rows = rows_of(tmp_path / "outliers.csv")
    assert {name: row["verdict"] for name, row in rows.items() if row["list"] == "right"} == {"right/004.png": "right"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"--data": "absent"}, "`--data` should be a folder of images. Found nothing at `absent`"),
        ({"--data": "."}, "`.` should hold images. Found no file"),
        ({"--reference": __file__}, "`--reference` should be a folder of images. Found a file"),
        ({"--reviewed": "absent"}, "`--reviewed` should be a file that the page saved. Found nothing at `absent`"),
        ({"--output": f"{__file__}/below"}, "`--output` should be a folder that can be written to"),
        ({"--top": 0}, "Found '0'"),
        ({"--device": "abacus"}, "Found 'abacus'"),
    ],
)
def test_a_mistake_ends_in_one_sentence_before_a_download(options, message, folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    monkeypatch.setattr("lightning_anomaly.network.pretrained.load_pretrained", lambda: pytest.fail("a download"))
    given = {"--data": folder, "--output": tmp_path, **options}
    with pytest.raises(SystemExit) as stopped:
        command("outliers", *(f"{name}={value}" for name, value in given.items()))
    text = stopped.value.code if isinstance(stopped.value.code, str) else capsys.readouterr().err.strip()
    assert re.search(f"error: .*{re.escape(message)}", text.splitlines()[-1])


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit, match="0"):
        command("--version")
    assert capsys.readouterr().out == f"lightning-anomaly {__version__}\n"


@pytest.mark.parametrize("words", [["--help"], ["outliers", "--help"], ["outliers", "--data", "no_such_folder"]])
def test_help_and_mistakes_do_not_wait_for_torch(words):
    code = f"import sys; from lightning_anomaly.__main__ import main; sys.modules['torch'] = None; main({words})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert "usage:" in done.stdout or "Found nothing at `no_such_folder`" in done.stderr


def test_an_interrupt_ends_in_one_line(folder, tmp_path, monkeypatch, capsys):
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning_anomaly.network.pretrained.load_pretrained", interrupt)
    with pytest.raises(SystemExit, match="130"):
        command("outliers", "--data", folder, "--output", tmp_path)
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_search_at_once_with_all_of_its_processes(number, code, tmp_path):
    for place in range(600):
        Image.new("RGB", (64, 48), (place % 256, place // 3, 90)).save(tmp_path / f"{place}.png")
    words = ["outliers", "--data", str(tmp_path), "--workers", "2", "--output", str(tmp_path / "found")]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    options["preexec_fn"] = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # shells ignore it in the background
    with subprocess.Popen([sys.executable, "-m", "lightning_anomaly", *words], **options) as search:
        for line in search.stdout:
            if line.startswith("network"):  # the search begins
                break
        search.send_signal(number)
        assert search.wait(60) == code
        assert search.stderr.read().strip().endswith("interrupted")
    with pytest.raises(ProcessLookupError):  # of its group, which has no process any longer
        os.killpg(search.pid, 0)


def test_the_module_is_the_command_and_the_help_has_an_example_that_it_can_read(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lightning-anomaly", "outliers", "--help"])
    monkeypatch.delitem(sys.modules, "lightning_anomaly.__main__")
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("lightning_anomaly", run_name="__main__")
    example = capsys.readouterr().out.partition("example: lightning-anomaly ")[2]
    assert parse(shlex.split(example)).data == Path("photos")
