"""The command line as people use it, and the mistakes of a newcomer in one sentence."""

import csv
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from trainers import QUIET, SmallNet, images, loader, quiet_trainer, watcher

from lightning_anomaly import AnomalyEarlyStopping, AnomalyPruneCallback, TwoSampleCallback
from lightning_anomaly.__main__ import main, parse
from lightning_anomaly.checkpoint import load_model
from lightning_anomaly.image_files import open_images

pytestmark = QUIET

HERE = __name__


def net(channels: int = 1, classes: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, classes))


class Wide(pl.LightningModule):
    """Stores its arguments, as Lightning's users do, and has the network as a part, under two names."""

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
    """The weights of `net`, 120 images of which 7 and 60 are odd, and 8 images that are too few to find anything."""
    folder = tmp_path_factory.mktemp("given")
    torch.manual_seed(0)
    torch.save(net().state_dict(), folder / "weights.pt")
    images = np.random.default_rng(0).integers(0, 100, (120, 8, 8), dtype=np.uint8)
    images[[7, 60]] = np.linspace(100, 255, 64).reshape(8, 8)
    np.savez(folder / "images.npz", val_images=images, train_images=images[:3], val_labels=np.zeros((120, 1)))
    np.savez(folder / "few.npz", images[:8, None] / np.float32(255))
    return folder


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> tuple[Path, Wide]:
    """A checkpoint of Lightning's, and what it is one of."""
    module, trainer = Wide(1, 5, note="stored"), quiet_trainer(folder, max_epochs=1)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt", module


def command(*arguments: Any) -> None:
    main([str(argument) for argument in arguments])


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """The one line that a mistake ends in."""
    with pytest.raises(SystemExit) as stopped:
        command(*arguments)
    text = stopped.value.code if isinstance(stopped.value.code, str) else capsys.readouterr().err.strip()
    assert "error: " in text.splitlines()[-1]
    return text


def same(state: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(state) == list(other) and all(torch.equal(state[key], other[key]) for key in state)


class TestAnalyze:
    def test_the_table_is_printed_and_the_figures_written(self, folder, tmp_path, capsys):
        output = tmp_path / "a" / "b"
        options = ("--model", f"{HERE}:net", "--data", folder / "images.npz", "--output", output)
        command(folder / "weights.pt", *options)  # `analyze` is the default
        out, err = capsys.readouterr()
        assert err == ""
        assert out.splitlines()[2].split()[:2] == ["0", "4"]
        files = ["browser.html", "filters.png", "outliers.png", "verdicts.png"]
        assert sorted(p.name for p in output.iterdir()) == files
        assert all(name in out for name in files)
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in output.glob("*.png"))

    def test_models_are_found_in_the_current_folder_and_figures_of_an_earlier_run_do_not_stay(
        self, folder, tmp_path, monkeypatch, capsys
    ):
        (tmp_path / "nets.py").write_text(f"from {HERE} import net")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
        output = tmp_path / "anomaly_filters"
        output.mkdir()
        for name in ("filters.png", "mine.png"):
            (output / name).touch()
        options = ("--model", "nets:net", "--model-args", '{"channels": 1, "classes": 2}')
        command("analyze", folder / "weights.pt", *options, "--data", folder / "few.npz")
        assert "note: The probe has 8 samples" in capsys.readouterr().out
        assert {path.name for path in output.iterdir()} == {"browser.html", "mine.png", "outliers.png", "verdicts.png"}


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


class TestOutliers:
    def test_they_are_listed_written_and_drawn(self, folder, tmp_path, capsys):
        output = tmp_path / "found"
        options = ("--model", f"{HERE}:net", "--data", folder / "images.npz", "--top", 5, "--output", output)
        command("outliers", folder / "weights.pt", *options)
        out, err = capsys.readouterr()
        assert err == ""
        lines = out.splitlines()
        assert {lines[2].split()[0], lines[3].split()[0]} == {"7", "60"}
        assert (output / "outliers.html").read_text().startswith("<!doctype html>")
        with (output / "outliers.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]) == ["position", "score", "p_value", "found", "layer", "filters", "reasons"]
        assert len(rows) == 5
        assert {rows[0]["position"], rows[1]["position"]} == {"7", "60"}
        assert (output / "outliers.png").read_bytes().startswith(b"\x89PNG")

    def test_a_reference_may_have_a_file_of_its_own(self, folder, tmp_path, capsys):
        two = tmp_path / "two.npz"
        np.savez(two, np.load(folder / "images.npz")["val_images"][[7, 8]])
        options = ("--data", two, "--reference", folder / "images.npz", "--output", tmp_path)
        command("outliers", folder / "weights.pt", "--model", f"{HERE}:net", *options)
        assert capsys.readouterr().out.splitlines()[2].split()[0] == "0"


class TestModels:
    def test_a_lightning_checkpoint_has_its_arguments_and_given_ones_come_first(self, checkpoint):
        path, module = checkpoint
        found = load_model(path, f"{HERE}:Wide")
        assert same(found.state_dict(), module.state_dict())
        assert found.hparams == {"channels": 1, "classes": 5, "note": "stored"}
        assert load_model(path, f"{HERE}:Wide", {"note": "given"}).hparams["note"] == "given"
        # A part of the module gets the arguments that it takes.
        assert same(load_model(path, f"{HERE}:net").state_dict(), module.network.state_dict())

    def test_two_that_differ_are_named(self, tmp_path):
        state = {f"{name}.{key}": value for name in ("student", "teacher") for key, value in net().state_dict().items()}
        torch.save({"state_dict": state}, tmp_path / "both.ckpt")
        with pytest.raises(ValueError, match=r"student.*teacher"):
            load_model(tmp_path / "both.ckpt", f"{HERE}:net")


def test_a_checkpoint_of_a_training_with_our_callbacks_is_tensors_and_plain_values(folder, tmp_path, capsys):
    prune, stopping = AnomalyPruneCallback(1, min_votes=1), AnomalyEarlyStopping(log_key_prefix="anomaly_filters")
    callbacks = [watcher(), stopping, prune, TwoSampleCallback(images(60) + 0.1, images(seed=1))]
    module, trainer = SmallNet(), quiet_trainer(tmp_path, *callbacks)
    trainer.fit(module, loader(), loader(seed=1))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    states = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]
    assert {callback.state_key for callback in callbacks} <= set(states)
    assert same(load_model(tmp_path / "last.ckpt", "trainers:SmallNet").state_dict(), module.state_dict())
    options = ("--model", "trainers:SmallNet", "--data", folder / "images.npz", "--output", tmp_path)
    command("analyze", tmp_path / "last.ckpt", *options)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:4]] == ["conv1", "conv2"]


class TestMistakes:
    @pytest.mark.parametrize(
        ("model", "message"),
        [
            ("torchvision", "`--model`"),
            ("no_such_place:Net", "no_such_place"),
            (f"{HERE}:number", "torch.nn.Module"),
            (f"{HERE}:broken", "there is a fault in it"),
            (f"{HERE}:Wide", "`--model-args`"),
            ("trainers:SmallNet", "Missing key"),
        ],
    )
    def test_models(self, model, message, folder, capsys):
        text = refused(capsys, folder / "weights.pt", "--model", model, "--data", folder / "images.npz")
        assert message in text

    @pytest.mark.parametrize(
        ("name", "value"), [("--top", "0"), ("--model-args", "channels=3"), ("--model-args", "[3]")]
    )
    def test_options(self, name, value, folder, capsys):
        options = ("--model", f"{HERE}:net", "--data", folder / "images.npz", f"{name}={value}")
        text = refused(capsys, "outliers", folder / "weights.pt", *options)
        assert name in text
        assert f"Found '{value}'" in text

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "No such file"),
            (b"hello", "`torch.save`"),
            ([torch.ones(1)], "does not fit"),
            ({"state_dict": {}, "hyper_parameters": {"path": Path("x")}}, "`torch.save`"),
        ],
    )
    def test_files(self, content, message, folder, tmp_path, capsys):
        path = tmp_path / "some.pt"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            torch.save(content, path)
        text = refused(capsys, path, "--model", f"{HERE}:net", "--data", folder / "images.npz")
        assert message in text
        assert "some.pt" in text

    def test_nothing_in_a_file_is_run(self, tmp_path, folder, capsys):
        class Evil:
            def __reduce__(self) -> Any:
                return Path.touch, (tmp_path / "was_run",)

        torch.save({"state_dict": Evil(), "pytorch-lightning_version": "2.6.0"}, tmp_path / "evil.pt")
        for name in ("net", "Wide"):
            refused(capsys, tmp_path / "evil.pt", "--model", f"{HERE}:{name}", "--data", folder / "images.npz")
        assert not (tmp_path / "was_run").exists()

    def test_a_model_without_filters_or_for_other_images(self, folder, tmp_path, capsys):
        torch.save({}, tmp_path / "none.pt")
        text = refused(capsys, tmp_path / "none.pt", "--model", "torch.nn:Flatten", "--data", folder / "images.npz")
        assert "no filters" in text
        np.savez(tmp_path / "colour.npz", np.zeros((20, 8, 9, 3), np.uint8))
        text = refused(capsys, folder / "weights.pt", "--model", f"{HERE}:net", "--data", tmp_path / "colour.npz")
        assert "`colour.npz`, (3, 8, 9)" in text

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "No such file"),
            (b"hello", "some.npz"),
            ({"a": np.zeros(1), "b_images": np.zeros(1)}, "['a', 'b_images']"),
            ({"x": np.zeros((5, 3, 8, 8), np.uint8)}, "(5, 3, 8, 8)"),
            ({"x": np.zeros((5, 8, 8))}, "(5, 8, 8)"),
            ({"val_images": np.zeros((0, 8, 8), np.uint8)}, "(0, 8, 8)"),
        ],
    )
    def test_data(self, content, message, folder, tmp_path, capsys):
        path = tmp_path / "some.npz"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            np.savez(path, **content)
        assert message in refused(capsys, folder / "weights.pt", "--model", f"{HERE}:net", "--data", path)


@pytest.mark.parametrize(
    ("array", "shape", "mean"),
    [
        (np.full((5, 8, 8), 51, np.uint8), (1, 8, 8), 0.2),
        (np.full((5, 9, 8, 3), 51, np.uint8), (3, 9, 8), 0.2),
        (np.full((5, 2, 8, 9), -3.0), (2, 8, 9), -3),
    ],
)
def test_bytes_are_scaled_and_floats_taken_as_they_are(array, shape, mean, tmp_path):
    np.savez(tmp_path / "some.npz", test_images=array, train_images=array[:1])
    found = open_images(tmp_path / "some.npz", None, gray=False)
    torch.testing.assert_close(torch.stack([*found]), torch.full((5, *shape), float(mean)))
    assert found.probe(3) == [0, 1, 2]


def picture(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


class TestFolders:
    def test_outliers_have_names_and_files_that_cannot_be_read_are_the_first(self, folder, tmp_path, capsys):
        photos, draw = tmp_path / "photos", np.random.default_rng(0)
        for index in range(120):
            pixels = draw.integers(0, 100, (12, 12)) if index != 7 else np.linspace(100, 255, 144).reshape(12, 12)
            path = photos / ("cats", "dogs")[index % 2] / f"{index:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
        (photos / "cats" / "000.png").write_bytes(b"no image")
        (photos / "cats" / "notes.txt").touch()
        options = ("--model", f"{HERE}:net", "--data", photos, "--size", 8, "--top", 3, "--output", tmp_path)
        command("outliers", folder / "weights.pt", *options)
        assert "1 of the 120 images cannot be read, the first at position 0" in capsys.readouterr().out
        with (tmp_path / "outliers.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [(row["name"], row["position"]) for row in rows][:2] == [("cats/000.png", "0"), ("dogs/007.png", "63")]

    def test_images_cover_a_square_of_the_size(self, tmp_path):
        picture(tmp_path / "B.JPG", (51, 51, 51), (40, 20))
        picture(tmp_path / "a.png", (255, 0, 0))
        for channels in (3, 1):
            first, second = open_images(tmp_path, 10, gray=channels == 1)
            assert first.shape == second.shape == (channels, 10, 10)
            assert torch.allclose(first, torch.tensor(0.2), atol=0.01)
        wide = Image.new("RGB", (30, 10))
        wide.paste((255, 255, 255), (10, 0, 20, 10))
        wide.save(tmp_path / "B.JPG", "png")
        assert open_images(tmp_path, 10, gray=False)[0][:, :, 1:-1].eq(1).all()  # the middle

    def test_a_probe_is_of_all_classes(self, folder, tmp_path, capsys):
        for index in range(9):
            picture(tmp_path / "photos" / f"{index // 3}" / f"{index}.png", (80 * (index // 3), 0, 0))
        found = open_images(tmp_path / "photos", 8, gray=False)
        assert found.labels == [*"000111222"]
        assert found.probe(4) == [0, 3, 6]
        options = ("--model", f"{HERE}:net", "--size", 8, "--output", tmp_path / "found", "--data", tmp_path)
        command(folder / "weights.pt", *options)
        assert "of the class 'photos'" in capsys.readouterr().out

    def test_mistakes(self, folder, tmp_path, capsys):
        options = (folder / "weights.pt", "--model", f"{HERE}:net", "--data", tmp_path)
        assert "`--size`" in refused(capsys, *options)
        assert "should hold images" in refused(capsys, *options, "--size", 8)
