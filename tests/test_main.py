"""The command line as people use it; each mistake ends in one sentence."""

import csv
import os
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from functional import same
from PIL import Image
from torch import Tensor, nn
from trainers import QUIET, SmallNet, images, loader, quiet_trainer, watcher

from lightning_anomaly import AnomalyEarlyStopping, AnomalyPruneCallback, TwoSampleCallback, __version__
from lightning_anomaly.__main__ import main, parse
from lightning_anomaly.network.checkpoint import load_model
from lightning_anomaly.network.pretrained import Pretrained

pytestmark = QUIET

HERE = __name__
NET = ("--model", f"{HERE}:net", "--size", 8)


def net(channels: int = 1, classes: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, classes))


class Wide(pl.LightningModule):
    """Saves its hyperparameters and has the network under two names."""

    def __init__(self, channels: int, classes: int = 2, *, note: str = "") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = self.encoder = net(channels, classes)
        self.head = nn.Linear(classes, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def broken() -> nn.Module:
    raise RuntimeError("there is a fault in it")


def number() -> int:
    return 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the weights of `net` and folders of 120 images, of which 7 and 60 are odd, of 8 and of two."""
    folder = tmp_path_factory.mktemp("given")
    torch.manual_seed(0)
    torch.save(net().state_dict(), folder / "weights.pt")
    images = np.random.default_rng(0).integers(0, 100, (120, 8, 8), dtype=np.uint8)
    images[[7, 60]] = np.linspace(100, 255, 64).reshape(8, 8)
    for name, chosen in (("images", range(120)), ("few", range(8)), ("two", (8, 7))):
        (folder / name).mkdir()
        for place, index in enumerate(chosen):
            Image.fromarray(images[index]).save(folder / name / f"{place:03}.png")
    return folder


def table_of(printed: str) -> list[str]:
    """The lines below the heading of the printed table."""
    return printed.partition("\n---")[2].splitlines()[1:]


def command(*arguments: Any) -> None:
    main([str(argument) for argument in arguments])


def test_the_table_is_printed_and_the_page_written(folder, tmp_path, capsys):
    output = tmp_path / "a" / "b"
    command("analyze", folder / "weights.pt", *NET, "--data", folder / "images", "--output", output)
    out, err = capsys.readouterr()
    assert err == ""
    assert table_of(out)[0].split()[:2] == ["0", "4"]
    assert [path.name for path in output.iterdir()] == ["browser.html"]
    assert "browser.html" in out
    assert out.splitlines()[1] == "strangest samples:"
    assert {line.split(",")[0].strip() for line in out.splitlines()[2:4]} == {"007.png", "060.png"}


def test_models_are_found_in_the_current_folder(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "nets.py").write_text(f"from {HERE} import net")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    options = ("--size", 8, "--model", "nets:net", "--model-args", '{"channels": 1, "classes": 2}')
    command("analyze", folder / "weights.pt", *options, "--data", folder / "few")
    assert "note: The probe has 8 samples" in capsys.readouterr().out
    assert (tmp_path / "anomaly_filters" / "browser.html").exists()


@pytest.mark.parametrize("words", [["outlier", "--data", "x"], ["last.ckpt", "--model", "x:y"], ["--data", "x"], []])
def test_without_a_command_the_error_names_both(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(words)
    error = capsys.readouterr().err.splitlines()[-1]
    assert "COMMAND" in error
    assert "--model" not in error
    if words and not words[0].startswith("-"):
        assert words[0] in error
        assert "analyze" in error
        assert "outliers" in error


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
    def interrupt(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning_anomaly.outliers.find_outliers", interrupt)
    with pytest.raises(SystemExit, match="130"):
        command("outliers", folder / "weights.pt", *NET, "--data", folder / "few", "--output", tmp_path)
    assert capsys.readouterr().err == "interrupted\n"


def test_the_module_is_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lightning-anomaly", "--help"])
    monkeypatch.delitem(sys.modules, "lightning_anomaly.__main__")
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("lightning_anomaly", run_name="__main__")
    assert "outliers" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["analyze", "outliers"])
def test_the_help_of_each_command_has_examples_that_it_can_read(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        command(name, "--help")
    examples = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  lightning-anomaly ")]
    assert len(examples) == 2
    for example in examples:
        assert parse(shlex.split(example)[1:]).run.__name__.startswith("run_")


def test_outliers_are_listed_and_written(folder, tmp_path, capsys):
    options = ("--data", folder / "two", "--reference", folder / "images", "--top", 1, "--output", tmp_path)
    command("outliers", folder / "weights.pt", *NET, *options)
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[4].split()[0] == "1"
    assert (tmp_path / "outliers.html").read_text().startswith("<!doctype html>")
    with (tmp_path / "outliers.csv").open() as file:
        row, other = csv.DictReader(file)
    assert (row["path"], row["list"]) == (str(folder / "two" / "001.png"), "look; content; identical")
    assert (other["name"], other["list"]) == ("000.png", "identical")  # with an image of the reference
    # A second run overwrites nothing.
    (tmp_path / "outliers.csv").unlink()
    command("outliers", folder / "weights.pt", *NET, *options)
    assert f"open {tmp_path / 'outliers-2.html'}" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"outliers.html", "outliers-2.html", "outliers-2.csv"}


def test_a_folder_is_enough_and_the_network_and_its_classes_are_named(tmp_path, monkeypatch, capsys):
    draw = np.random.default_rng(0)
    for number in range(101):
        place = tmp_path / "photos" / f"{number}.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(draw.integers(0, 99 if number else 255, (9, 9, 3), dtype=np.uint8)).save(place)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 9, 32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    names = ("cat", "dog")

    def load() -> Pretrained:
        warnings.warn("Net V8 cannot be loaded: Net V9 is used instead.", stacklevel=2)
        return Pretrained("Net V9", network, names)

    monkeypatch.setattr("lightning_anomaly.network.pretrained.load_pretrained", load)
    command("outliers", "--data", tmp_path / "photos", "--output", tmp_path)
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "note: Net V8 cannot be loaded: Net V9 is used instead."
    assert out.splitlines()[1] == "network: Net V9, pretrained on ImageNet"
    assert "224x224" in out
    assert "not normalized" not in out
    assert any(name in (tmp_path / "outliers.csv").read_text() for name in names)
    (tmp_path / "names.txt").write_text("Katze\nHund\n")
    command("outliers", "--data", tmp_path / "photos", "--output", tmp_path, "--classes", tmp_path / "names.txt")
    assert any(name in (tmp_path / "outliers-2.csv").read_text() for name in ("Katze", "Hund"))


def test_class_folders_need_no_option(tmp_path, monkeypatch, capsys):
    generator = torch.Generator().manual_seed(0)
    for place in range(120):
        shades = torch.linspace(60, 180, 8) if place % 2 else torch.linspace(180, 60, 8)
        pixels = (shades + 20 * torch.randn(8, 8, generator=generator)).clamp(0, 255).byte().numpy()
        folder = tmp_path / "photos" / ("right" if place % 2 or place == 4 else "left")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).convert("RGB").save(folder / f"{place}.png")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 2))
    monkeypatch.setattr(
        "lightning_anomaly.network.pretrained.load_pretrained", lambda: Pretrained("small", network, ())
    )
    command("outliers", "--data", tmp_path / "photos", "--output", tmp_path, "--size", 8)
    assert "right/4.png (filed under right, looks like left)" in capsys.readouterr().out
    with (tmp_path / "outliers.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert (rows["right/4.png"]["class"], rows["right/4.png"]["looks_like"]) == ("right", "left")
    assert "label" in rows["right/4.png"]["list"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"--model": "x:y"}, "Found only `--model x:y`"),
        ({"--data": "absent"}, "`--data` should be a folder of images. Found nothing at `absent`"),
        ({"--reference": __file__}, "`--reference` should be a folder of images. Found a file"),
        ({"--output": f"{__file__}/below"}, "`--output` should be a folder that can be written to"),
        ({"--classes": "absent"}, "absent"),
    ],
)
def test_some_mistakes_are_found_before_a_download(options, message, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lightning_anomaly.network.pretrained.load_pretrained", lambda: pytest.fail("a download"))
    given = {"--data": folder / "few", **options}
    with pytest.raises(SystemExit, match=f"^error: .*{re.escape(message)}"):
        command("outliers", *(f"{name}={value}" for name, value in given.items()))


def test_a_checkpoint_has_its_arguments_and_explicit_ones_override_them(folder):
    module, trainer = Wide(1, 5, note="stored"), quiet_trainer(folder, max_epochs=1)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(folder / "last.ckpt")
    model = load_model(folder / "last.ckpt", f"{HERE}:Wide")
    assert same(model.state_dict(), module.state_dict())
    assert model.hparams == {"channels": 1, "classes": 5, "note": "stored"}
    assert load_model(folder / "last.ckpt", f"{HERE}:Wide", {"note": "given"}).hparams["note"] == "given"
    # A part of the module gets the arguments that it takes.
    assert same(load_model(folder / "last.ckpt", f"{HERE}:net").state_dict(), module.network.state_dict())


def test_two_different_models_in_a_checkpoint_are_named(tmp_path):
    state = {f"{name}.{key}": value for name in ("student", "teacher") for key, value in net().state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "both.ckpt")
    with pytest.raises(ValueError, match=r"student.*teacher"):
        load_model(tmp_path / "both.ckpt", f"{HERE}:net")


def test_a_checkpoint_with_our_callbacks_has_only_tensors_and_plain_values(folder, tmp_path, capsys):
    prune, stopping = AnomalyPruneCallback(1, min_votes=1), AnomalyEarlyStopping()
    callbacks = [watcher(), stopping, prune, TwoSampleCallback(images(60) + 0.1, images(seed=1))]
    module, trainer = SmallNet(), quiet_trainer(tmp_path, *callbacks)
    trainer.fit(module, loader(), loader(seed=1))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    states = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]
    assert {callback.state_key for callback in callbacks} <= set(states)
    assert same(load_model(tmp_path / "last.ckpt", "trainers:SmallNet").state_dict(), module.state_dict())
    options = ("--model", "trainers:SmallNet", "--size", 8, "--data", folder / "images", "--output", tmp_path)
    command("analyze", tmp_path / "last.ckpt", *options)
    assert [line.split()[0] for line in table_of(capsys.readouterr().out)[:2]] == ["conv1", "conv2"]


class Evil:
    """Runs code if it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("was_run"),)


EVIL = {"state_dict": Evil(), "pytorch-lightning_version": "2.6.0"}
MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no class": ({"--model": "torchvision"}, "`--model`"),
    "no such module": ({"--model": "no_such_place:Net"}, "no_such_place"),
    "no model": ({"--model": f"{HERE}:number"}, "has no attribute 'load_state_dict'"),
    "a model with a fault": ({"--model": f"{HERE}:broken"}, "there is a fault in it"),
    "no arguments": ({"--model": f"{HERE}:Wide"}, "`--model-args`"),
    "another model": ({"--model": "trainers:SmallNet"}, "Missing key"),
    "a top of 0": ({"--top": "0"}, "Found '0'"),
    "a deviation of 0": ({"--std": "0"}, "a number above 0. Found '0'"),
    "no such device": ({"--device": "abacus"}, "Found 'abacus'"),
    "arguments that are no JSON": ({"--model-args": "channels=3"}, "Found 'channels=3'"),
    "arguments that are a list": ({"--model-args": "[3]"}, "Found '[3]'"),
    "no file": ({"weights": None}, "No such file"),
    "no file of torch": ({"weights": b"hello"}, "`torch.save`"),
    "no state": ({"weights": [torch.ones(1)]}, "does not fit"),
    "code in a file": ({"--model": f"{HERE}:Wide", "weights": EVIL}, "`torch.save`"),
    "no filters": ({"--model": "torch.nn:Flatten", "weights": {}}, "no filters"),
    "too many means": ({"--mean": "0.5 0.0"}, "`--mean` should have one number, or one for each of the 1 channels"),
    "no size": ({"--size": None, "--top": 3}, "`--size` should be given with a checkpoint"),
    "other images": ({"--size": "9"}, "`images`, (1, 9, 9)"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_ends_in_one_sentence(kind, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    changed, message = MISTAKES[kind]
    weights = folder / "weights.pt"
    if "weights" in changed:
        weights = tmp_path / "some.pt"
        if isinstance(content := changed["weights"], bytes):
            weights.write_bytes(content)
        elif content is not None:
            torch.save(content, weights)
    options = {"--model": f"{HERE}:net", "--data": folder / "images", "--size": 8, **changed}
    given = {name: value for name, value in options.items() if name.startswith("--") and value is not None}
    flags = [word for name, value in given.items() for word in (name, *str(value).split(" "))]
    with pytest.raises(SystemExit) as stopped:
        command("outliers" if "--top" in changed else "analyze", weights, *flags)
    text = stopped.value.code if isinstance(stopped.value.code, str) else capsys.readouterr().err.strip()
    assert "error: " in text.splitlines()[-1]
    assert message in text
    assert not Path("was_run").exists()


class TestFolders:
    def test_unreadable_files_and_names_that_are_not_utf_8_do_not_end_a_command(self, folder, tmp_path, capsys):
        photos, draw = tmp_path / "photos", np.random.default_rng(0)
        for index in range(120):
            pixels = draw.integers(0, 100, (12, 12)) if index != 7 else np.linspace(100, 255, 144).reshape(12, 12)
            name = f"{index:03}.png" if index != 7 else os.fsdecode(b"caf\xe9.png")  # as Latin-1 has it
            path = photos / ("cats", "dogs")[index % 2] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
        (photos / "cats" / "000.png").write_bytes(b"no image")
        (photos / "cats" / "notes.txt").touch()
        options = ("--data", photos, "--output", tmp_path, "--top", 3)
        command("outliers", folder / "weights.pt", *NET, *options)
        assert "1 of the 120 images in `images` cannot be read, the first at position 0" in capsys.readouterr().out
        with (tmp_path / "outliers.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert (rows[0]["name"], rows[0]["position"]) == (r"dogs/caf\udce9.png", "119")
        assert (tmp_path / "outliers.html").stat().st_size > 0
        command("analyze", folder / "weights.pt", *NET, *options[:4])
        out = capsys.readouterr().out
        assert "1 of the 120 images in `--data` cannot be read, the first at position 0, cats/000.png (Unid" in out
        assert (tmp_path / "browser.html").stat().st_size > 0

    def test_the_output_says_how_images_are_normalized(self, folder, tmp_path, capsys):
        for numbers, line in (
            ((), "0..1, not normalized (see `--mean`)"),
            (("--std", "0.25", "--mean", "0.5"), "mean 0.5"),
        ):
            options = ("--data", folder / "images", "--output", tmp_path, "--device", "cpu", *numbers)
            command("analyze", folder / "weights.pt", *NET, *options)
            assert line in capsys.readouterr().out.splitlines()[0]

    def test_the_class_of_an_image_is_its_folder(self, folder, tmp_path, capsys):
        (tmp_path / "photos").mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a.png")
        options = ("--output", tmp_path / "found", "--data", tmp_path)
        command("analyze", folder / "weights.pt", *NET, *options)
        assert "of the class 'photos'" in capsys.readouterr().out
