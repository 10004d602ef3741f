"""The command line as people use it, and every mistake of a newcomer's in one sentence."""

import csv
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from trainers import QUIET, SmallNet, loader, quiet_trainer

from lightning_anomaly import __main__ as program
from lightning_anomaly.__main__ import main, read_images
from lightning_anomaly.checkpoint import load_model

pytestmark = QUIET

HERE = __name__


class Wide(pl.LightningModule):
    """Stores its arguments, as Lightning's users do."""

    def __init__(self, channels: int, filters: int = 4, *, note: str = "") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Conv2d(channels, filters, 3), nn.ReLU(), nn.Conv2d(filters, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0]).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Dicted(pl.LightningModule):
    """Takes all of its arguments as one dict, under a name of its own."""

    def __init__(self, hparams: dict[str, Any]) -> None:
        super().__init__()
        self.save_hyperparameters(hparams)
        self.net = nn.Conv2d(hparams["channels"], 4, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Late(pl.LightningModule):
    """Makes its layers where Lightning asks for them, and takes any arguments."""

    def __init__(self, **sizes: int) -> None:
        super().__init__()
        self.sizes = sizes

    def configure_model(self) -> None:
        self.net = nn.Conv2d(**self.sizes)


class Unfinished(pl.LightningModule):
    """Fails where Lightning asks for its layers."""

    def configure_model(self) -> None:
        raise KeyError("rank")


class Functional(nn.Sequential):
    """Its convolution is never called itself, or gives two maps for each image."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self[0].weight)


class Halves(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return self[0](torch.cat(x.chunk(2, 2)))


def functional() -> nn.Module:
    return Functional(nn.Conv2d(1, 4, 3, bias=False))


def halves() -> nn.Module:
    return Halves(nn.Conv2d(1, 4, 3, bias=False))


def trained(folder: Path, model: pl.LightningModule) -> Path:
    trainer = quiet_trainer(folder, max_epochs=1, limit_val_batches=0)
    trainer.fit(model, loader(), loader() if isinstance(model, SmallNet) else None)
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


def net(channels: int = 1, classes: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, classes))


def linear() -> nn.Module:
    return nn.Linear(2, 2)


def broken(channels: int) -> nn.Module:
    raise RuntimeError("there is a fault in it")


def number() -> int:
    return 3


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.save(net().state_dict(), tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 100, (120, 8, 8), dtype=np.uint8)
    images[[7, 60]] = np.linspace(100, 255, 64).reshape(8, 8)
    np.savez(tmp_path / "images.npz", val_images=images, train_images=images[:3], val_labels=np.zeros((120, 1)))
    return tmp_path / "images.npz"


def command(*arguments: Any) -> None:
    main([str(argument) for argument in arguments])


class TestItWorks:
    def test_the_table_is_printed_and_the_figures_written(self, weights, data, tmp_path, capsys):
        command(weights, "--model", f"{HERE}:net", "--data", data, "--output", tmp_path / "a" / "b")
        out, err = capsys.readouterr()
        assert err == ""
        lines = out.splitlines()
        assert lines[0].startswith("layer  filters  anomaly")
        assert lines[2].split()[:2] == ["0", "4"]
        drawn = sorted(path.name for path in (tmp_path / "a" / "b").iterdir())
        assert drawn == ["browser.html", "filters.png", "outliers.png", "verdicts.png"]
        assert f"every filter with its images: open {tmp_path / 'a' / 'b' / 'browser.html'}" in lines
        assert lines[-1] == f"figures in {tmp_path / 'a' / 'b'}: verdicts.png, filters.png, outliers.png"
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in (tmp_path / "a" / "b").glob("*.png"))

    def test_maps_that_are_no_images_have_no_pictures(self, data, tmp_path, capsys):
        torch.save(halves().state_dict(), tmp_path / "weights.pt")
        command(tmp_path / "weights.pt", "--model", f"{HERE}:halves", "--data", data, "--output", tmp_path)
        assert "of 240 probe samples" in capsys.readouterr().out
        assert not (tmp_path / "outliers.png").exists()

    def test_notes_are_in_the_table_and_not_warned_of(self, weights, tmp_path, capsys):
        np.savez(tmp_path / "few.npz", np.random.default_rng(0).random((8, 1, 8, 8)))
        command(weights, "--model", f"{HERE}:net", "--data", tmp_path / "few.npz", "--output", tmp_path)
        assert "note: The probe has 8 samples" in capsys.readouterr().out
        assert not (tmp_path / "filters.png").exists()

    def test_as_a_command(self, weights, data, tmp_path):
        (tmp_path / "nets.py").write_text(
            "from torch import nn\n\n\ndef net(channels, classes):\n    return nn.Sequential(\n"
            "        nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, classes)\n    )\n"
        )
        arguments = ["weights.pt", "--model", "nets:net", "--model-args", '{"channels": 1, "classes": 2}']
        done = subprocess.run(
            [sys.executable, "-m", "lightning_anomaly", *arguments, "--data", "images.npz"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
            capture_output=True,
            text=True,
        )
        assert done.stderr == ""
        assert done.returncode == 0
        assert done.stdout.endswith("figures in anomaly_filters: verdicts.png, filters.png, outliers.png\n")
        assert (tmp_path / "anomaly_filters" / "verdicts.png").exists()


class TestOutliers:
    def test_they_are_listed_written_and_drawn(self, weights, data, tmp_path, capsys):
        folder = tmp_path / "found"
        command("outliers", weights, "--model", f"{HERE}:net", "--data", data, "--top", 5, "--output", folder)
        out, err = capsys.readouterr()
        assert err == ""
        lines = out.splitlines()
        assert {lines[2].split()[0], lines[3].split()[0]} == {"7", "60"}  # the two that are ramps
        assert lines[-1] == f"in {folder}: outliers.csv, outliers.png"
        assert lines[-2] == f"to look through them and tick some: open {folder / 'outliers.html'}"
        assert (folder / "outliers.html").read_text().startswith("<!doctype html>")
        with (folder / "outliers.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]) == ["position", "score", "p_value", "found", "layer", "filters"]
        assert len(rows) == 5
        assert {rows[0]["position"], rows[1]["position"]} == {"7", "60"}
        assert (folder / "outliers.png").read_bytes().startswith(b"\x89PNG")

    def test_a_reference_may_have_a_file_of_its_own(self, weights, data, tmp_path, capsys):
        np.savez(tmp_path / "two.npz", np.load(data)["val_images"][[7, 8]])
        two = tmp_path / "two.npz"
        command("outliers", weights, "--model", f"{HERE}:net", "--data", two, "--reference", data, "--output", tmp_path)
        assert capsys.readouterr().out.splitlines()[2].split()[0] == "0"

    def test_a_reference_that_is_not_there_is_named(self, weights, data, tmp_path, capsys):
        gone = tmp_path / "gone.npz"
        text = refused(capsys, "outliers", weights, "--model", f"{HERE}:net", "--data", data, "--reference", gone)
        assert text.endswith(f"There is no file `{gone}`: give the path of an .npz file with images as `--reference`.")

    def test_images_are_converted_one_by_one(self, weights, data, tmp_path, monkeypatch):
        real, sizes = program._as_images, []
        monkeypatch.setattr(program, "_as_images", lambda array: sizes.append(len(array)) or real(array))
        command("outliers", weights, "--model", f"{HERE}:net", "--data", data, "--output", tmp_path)
        assert len(sizes) > len(np.load(data)["val_images"])
        assert sizes[0] == 2  # a try
        assert set(sizes[1:]) == {1}

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (["--top", "0"], "argument --top: it should be a positive integer. Found '0'."),
            (["--top", "-3"], "argument --top: it should be a positive integer. Found '-3'."),
        ],
    )
    def test_a_wrong_number_is_named(self, weights, data, capsys, given, message):
        with pytest.raises(SystemExit):
            command("outliers", weights, "--model", f"{HERE}:net", "--data", data, *given)
        assert capsys.readouterr().err.strip().endswith(message)

    def test_too_few_images_are_one_sentence(self, weights, tmp_path):
        np.savez(tmp_path / "few.npz", np.zeros((8, 8, 8), dtype=np.uint8))
        with pytest.raises(SystemExit, match=r"^error: Parameter `inputs` should hold at least 100 images"):
            command("outliers", weights, "--model", f"{HERE}:net", "--data", tmp_path / "few.npz", "--output", tmp_path)


class Counts(nn.Conv2d):
    """Has a state that is no tensor."""

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.calls = state["calls"]


def same(model: nn.Module, other: nn.Module) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours)


class TestModels:
    def test_a_state_dict(self, weights):
        found = load_model(weights, f"{HERE}:net").state_dict()
        expected = torch.load(weights)
        assert list(found) == list(expected)
        assert all(torch.equal(found[key], expected[key]) for key in found)

    def test_a_lightning_checkpoint_has_its_arguments(self, tmp_path):
        module = Wide(1, 6, note="stored")
        found = load_model(trained(tmp_path, module), f"{HERE}:Wide")
        assert same(found, module)
        assert found.hparams == {"channels": 1, "filters": 6, "note": "stored"}

    def test_given_arguments_come_first(self, tmp_path):
        path = trained(tmp_path, Wide(1, note="stored"))
        assert load_model(path, f"{HERE}:Wide", {"note": "given"}).hparams["note"] == "given"

    def test_arguments_in_one_dict(self, tmp_path):
        module = Dicted({"channels": 1, "lr": 0.1})
        found = load_model(trained(tmp_path, module), f"{HERE}:Dicted")
        assert same(found, module)
        assert found.hparams == {"channels": 1, "lr": 0.1}

    def test_layers_that_are_made_late_and_what_lightning_cli_stores(self, tmp_path):
        module = Late(in_channels=1, out_channels=4, kernel_size=3)
        module.configure_model()
        own = {"_instantiator": "lightning.pytorch.cli.instantiate_module", "_class_path": f"{HERE}.Late"}
        checkpoint = {"state_dict": module.state_dict(), "hyper_parameters": {**module.sizes, **own}}
        torch.save(checkpoint, tmp_path / "last.ckpt")
        assert same(load_model(tmp_path / "last.ckpt", f"{HERE}:Late"), module)

    def test_a_part_of_the_lightning_module(self, tmp_path):
        module = SmallNet()
        module.network, module.other = net(), nn.Linear(2, 2)
        path = trained(tmp_path, module)
        assert same(load_model(path, f"{HERE}:net"), module.network)

    def test_a_part_under_two_names_is_one(self, tmp_path):
        module = SmallNet()
        module.network = module.encoder = net()
        with torch.no_grad():
            module.network[0].weight[0] = torch.nan
        path = trained(tmp_path, module)
        assert load_model(path, f"{HERE}:net")[0].weight[0].isnan().all()

    def test_two_that_differ_are_named(self, tmp_path):
        module = SmallNet()
        module.student, module.teacher = net(), net()
        with torch.no_grad():
            module.teacher[0].weight.zero_()
        with pytest.raises(
            ValueError, match=r"hold the model once\. Found it as `student\.`, `teacher\.`: save the one"
        ):
            load_model(trained(tmp_path, module), f"{HERE}:net")

    def test_a_state_of_another_kind(self, tmp_path):
        torch.save(Counts(1, 2, 3).state_dict(), tmp_path / "counts.pt")
        sizes = {"in_channels": 1, "out_channels": 2, "kernel_size": 3}
        assert load_model(tmp_path / "counts.pt", f"{HERE}:Counts", sizes).calls == 3

    def test_the_callbacks_of_the_package_leave_it_readable(self, tmp_path):
        from lightning_anomaly import AnalysisSettings, AnomalyFilterCallback, AnomalyPruneCallback

        settings = AnalysisSettings(n_init=1, max_components=2, rare_fraction=0.25)
        watcher = AnomalyFilterCallback(probe_size=60, log_figures=False, settings=settings)
        trainer = quiet_trainer(tmp_path, watcher, AnomalyPruneCallback(at_epoch=1, min_votes=1))
        module = SmallNet()
        trainer.fit(module, loader(), loader())
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        assert same(load_model(tmp_path / "last.ckpt", "trainers:SmallNet"), module)


class TestImages:
    def read(self, folder: Path, **arrays: Any) -> Tensor:
        np.savez(folder / "some.npz", **arrays)
        return read_images(folder / "some.npz")

    def test_bytes_are_scaled_and_channels_come_second(self, tmp_path):
        grey = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
        assert torch.equal(self.read(tmp_path, x=grey), torch.from_numpy(grey)[:, None] / 255)
        colour = np.arange(72, dtype=np.uint8).reshape(2, 3, 4, 3)
        assert torch.equal(self.read(tmp_path, x=colour), torch.from_numpy(colour).permute(0, 3, 1, 2) / 255)

    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
    def test_floats_are_taken_as_they_are(self, tmp_path, dtype):
        values = np.linspace(-3, 300, 2 * 5 * 3 * 4).reshape(2, 5, 3, 4).astype(dtype)
        found = self.read(tmp_path, x=values)
        assert found.dtype == torch.float32
        np.testing.assert_array_equal(found.numpy(), values.astype("float32"))

    def test_validation_images_before_test_images_before_a_single_array(self, tmp_path):
        one, two = np.ones((1, 2, 2), np.uint8), np.ones((2, 2, 2), np.uint8)
        assert len(self.read(tmp_path, train_images=one, test_images=one, val_images=two)) == 2
        assert len(self.read(tmp_path, train_images=one, test_images=two)) == 2

    def test_the_first_512(self, tmp_path):
        values = np.random.default_rng(0).random((600, 1, 2, 2), dtype=np.float32)
        np.testing.assert_array_equal(self.read(tmp_path, x=values).numpy(), values[:512])


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any, code: int = 1) -> str:
    """The sentence that a mistake ends in."""
    with pytest.raises(SystemExit) as stopped:
        command(*arguments)
    if code == 2:  # argparse's own
        assert stopped.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]
    assert capsys.readouterr().out == ""
    assert isinstance(stopped.value.code, str)  # which Python prints on stderr, to exit with 1
    assert "\n" not in stopped.value.code
    return stopped.value.code


class TestMistakes:
    @pytest.mark.parametrize(
        ("model", "message"),
        [
            (
                "torchvision",
                r"`--model` should be `module:Class`, such as `torchvision.models:resnet18`\. Found `torchv",
            ),
            (":net", r"`--model` should be `module:Class`"),
            ("./models.py:net", r"`--model` should be `module:Class`"),
            ("no_such_place:Net", r"a module that can be imported\. Found `no_such_place`: start from the folder that"),
            ("torch.no_such:Net", r"a module that can be imported\. Found `torch.no_such`: start from the folder"),
            ("needs_more:Net", r"Importing `needs_more` failed: No module named 'never_heard_of'\. Install what it n"),
            ("is_broken:Net", r"Importing `is_broken` failed with ZeroDivisionError\('division by zero'\): repair it"),
            ("trainers:Net", r"should name a class or function of `trainers`, `SmallNet`\. Found `Net`\."),
            ("json:Net", r"should name a class or function of `json`, `dump`, .* and \d more\. Found `Net`\."),
            ("errno:Net", r"should name a class or function of `errno`, which has no model\. Found `Net`\."),
            (f"{HERE}:number", r"should give a torch.nn.Module\. Found `.*:number`, a int\."),
            (f"{HERE}:broken", r"cannot be built with the arguments {} \(TypeError: .*'channels'\): give those it was"),
            (f"{HERE}:Unfinished", r"cannot be built with the arguments {} \(KeyError: 'rank'\): give those it was"),
            (f"{HERE}:Wide", r"`.*:Wide` cannot be built with the arguments {} .* `--model-args '{\"channels\": 3}'`"),
        ],
    )
    def test_models(self, model, message, weights, data, tmp_path, monkeypatch, capsys):
        (tmp_path / "needs_more.py").write_text("import never_heard_of\n")
        (tmp_path / "is_broken.py").write_text("1 / 0\n")
        monkeypatch.syspath_prepend(tmp_path)
        text = refused(capsys, weights, "--model", model, "--data", data)
        with pytest.raises(ValueError, match=message):
            load_model(weights, model)
        assert text.startswith("error: ")

    def test_a_model_that_fails_with_its_arguments(self, weights, data, capsys):
        text = refused(capsys, weights, "--model", f"{HERE}:broken", "--data", data, "--model-args", '{"channels": 1}')
        assert 'with the arguments {"channels": 1} (RuntimeError: there is a fault in it): give those' in text

    @pytest.mark.parametrize("arguments", ["channels=3", "[3]", "{channels: 3}", ""])
    def test_arguments_that_are_no_json(self, arguments, weights, data, capsys):
        text = refused(capsys, weights, "--model", f"{HERE}:net", "--data", data, "--model-args", arguments, code=2)
        assert text.endswith(f"""it should be a JSON object such as '{{"channels": 3}}'. Found '{arguments}'.""")

    def test_a_checkpoint_of_another_class(self, weights, data, capsys):
        text = refused(capsys, weights, "--model", "trainers:SmallNet", "--data", data)
        assert "`weights.pt` is not a checkpoint of `trainers:SmallNet` as built here (the file lacks `conv1.we" in text
        assert "and 6 more and the model lacks `0.weight`, `0.bias`, `3.weight`, `3.bias`): give the class that" in text

    def test_a_checkpoint_of_other_arguments(self, weights, data, capsys):
        text = refused(capsys, weights, "--model", f"{HERE}:net", "--data", data, "--model-args", '{"classes": 5}')
        assert "size mismatch for 3.weight" in text
        assert "the arguments it was made with as `--model-args`" in text

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, r"There is no checkpoint `.*gone.pt`: give the path of a file that `torch.save` wrote"),
            (b"", r"`gone.pt` cannot be read \(EOFError\): give a file that `torch.save` wrote"),
            (b"hello", r"`gone.pt` cannot be read \(\w+\): give"),
            (
                b"version https://git-lfs.github.com/spec/v1",
                r"`gone.pt` cannot be read \(UnpicklingError\): give a file",
            ),
            (Path, r"`.*gone.pt` should be a file that `torch.save` wrote\. Found a folder: save the weights alone"),
            (b"PK\x03\x04 hello", r"`gone.pt` cannot be read \(\w+\): give"),
            ({"model": {"a": torch.ones(1)}, "step": 3}, r"Found `model`, `step` in it: save the weights alone"),
            ({"state_dict": [1, 2]}, r"should be a state_dict or a Lightning checkpoint\. Found `state_dict`"),
            ([torch.ones(1)], r"Found `\(a list\)` in it: save the weights alone"),
            ({}, r"Found nothing in it: save the weights alone"),
            (nn.Linear(2, 2), r"holds a `torch.nn.modules.linear.Linear`, which is not read because unpickling it cou"),
            ({"state_dict": {}, "hyper_parameters": {"path": Path("x")}}, r"holds a `pathlib.*PosixPath`, which is no"),
        ],
    )
    def test_files(self, content, message, tmp_path, data, capsys):
        path = tmp_path / "gone.pt"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is Path:
            path.mkdir()
        elif content is not None:
            torch.save(content, path)
        text = refused(capsys, path, "--model", f"{HERE}:net", "--data", data)
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load_model(path, f"{HERE}:net")
        assert text.count("error: ") == 1

    def test_torchscript(self, tmp_path, monkeypatch, capsys):
        def load(*arguments: Any, **options: Any) -> None:  # torch.jit itself is deprecated from 2.13 on
            assert options["weights_only"] is True
            raise RuntimeError("Cannot use ``weights_only=True`` with TorchScript archives passed to ``torch.load``.")

        monkeypatch.setattr(torch, "load", load)
        (tmp_path / "scripted.pt").touch()
        text = refused(capsys, tmp_path / "scripted.pt", "--model", f"{HERE}:net", "--data", "images.npz")
        assert "`scripted.pt` is a TorchScript archive, whose layers do not show their maps: save the weights" in text

    def test_nothing_in_a_file_is_run(self, tmp_path, data, capsys):
        class Evil:
            def __reduce__(self) -> Any:
                return Path.touch, (tmp_path / "was_run",)

        torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
        assert "is not read because" in refused(capsys, tmp_path / "evil.pt", "--model", f"{HERE}:net", "--data", data)
        assert not (tmp_path / "was_run").exists()

    def test_a_model_without_convolutions(self, tmp_path, data, capsys):
        torch.save(linear().state_dict(), tmp_path / "linear.pt")
        text = refused(capsys, tmp_path / "linear.pt", "--model", f"{HERE}:linear", "--data", data)
        assert text.endswith(":linear` has no convolution, so it has no filters to analyse: give another model.")

    def test_convolutions_that_are_never_called(self, tmp_path, data, capsys):
        torch.save(functional().state_dict(), tmp_path / "weights.pt")
        options = ("--model", f"{HERE}:functional", "--data", data, "--output", tmp_path / "made")
        text = refused(capsys, tmp_path / "weights.pt", *options)
        assert ":functional` gave maps, so there are no filters to analyse. Layer '0' is left out of the" in text

    def test_images_that_the_model_does_not_take(self, weights, tmp_path, capsys):
        np.savez(tmp_path / "colour.npz", np.zeros((20, 8, 9, 3), np.uint8))
        text = refused(capsys, weights, "--model", f"{HERE}:net", "--data", tmp_path / "colour.npz")
        assert ":net` cannot take the images of `colour.npz`, 3 x 8 x 9 (channels, height, width): give images" in text
        assert "It failed with RuntimeError: Given groups=1" in text

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, r"There is no file `.*some.npz`: give the path of an .npz file with images as `--data`"),
            (b"hello", r"`some.npz` should be an .npz archive .* Reading failed: it is no archive\."),
            (
                {"a": np.zeros(1), "b": np.zeros(1)},
                r"as `val_images`, as `test_images`, or as its only array\. Found the arrays \['a', 'b'\]\.",
            ),
            ({"x": np.array([{}, {}])}, r"Reading failed: Object arrays cannot be loaded"),
            ({"x": np.float32(3)}, r"Found float32 of shape \(\)"),
            (
                {"x": np.zeros((5, 3, 8, 8), np.uint8)},
                r"`x` in `some.npz` should be uint8 .* Found uint8 of shape \(5, 3",
            ),
            (
                {"x": np.zeros((5, 8, 8))},
                r"floating-point of shape \(N, C, H, W\).* Found float64 of shape \(5, 8, 8\)",
            ),
            ({"x": np.zeros((5, 8, 8), int)}, r"Found int64 of shape"),
            (
                {"val_images": np.zeros((0, 8, 8), np.uint8)},
                r"`val_images` in .* and not empty\. Found uint8 of shape \(0",
            ),
        ],
    )
    def test_data(self, content, message, weights, tmp_path, capsys):
        path = tmp_path / "some.npz"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            np.savez(path, **content)
        text = refused(capsys, weights, "--model", f"{HERE}:net", "--data", path)
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            read_images(path)
        assert text.startswith("error: ")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({}, r"as `val_images`, as `test_images`, or as its only array\. Found the arrays \[\]\."),
            ({"read me.txt": b"hello"}, r"or as its only array\. Found the arrays \[\]\."),
            ({"a.png": b"hello", "b.png": b"hello"}, r"or as its only array\. Found the arrays \[\]\."),
            ({"x.npy": b"hello"}, r"`some.npz` should be an .npz archive .* Reading failed: `x` is no array\."),
            (
                {f"{name}.npy": b"" for name in "abcdefg"},
                r"Found the arrays \['a', 'b', 'c', 'd', 'e'\] and 2 more\.",
            ),
        ],
        ids=["nothing", "text", "pictures", "another format", "many"],
    )
    def test_an_archive_without_an_array(self, content, message, weights, tmp_path, capsys):
        path = tmp_path / "some.npz"
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in content.items():
                archive.writestr(name, text)
        assert re.search(message, refused(capsys, weights, "--model", f"{HERE}:net", "--data", path))

    def test_an_archive_with_a_password(self, weights, data, capsys):
        content = bytearray(data.read_bytes())
        for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            content[content.index(signature) + flags] |= 1
        data.write_bytes(content)
        text = refused(capsys, weights, "--model", f"{HERE}:net", "--data", data)
        assert re.search(r"should be an .npz archive .* Reading failed: .* is encrypted, password required", text)

    def test_a_damaged_archive(self, weights, data, capsys):
        content = bytearray(data.read_bytes())
        content[200:260] = b"x" * 60
        data.write_bytes(content)
        text = refused(capsys, weights, "--model", f"{HERE}:net", "--data", data)
        assert "Reading failed: Bad CRC-32" in text

    def test_a_file_that_cannot_be_written(self, weights, data, tmp_path, capsys):
        (tmp_path / "made" / "filters.png").mkdir(parents=True)
        options = ["--data", data, "--output", tmp_path / "made"]
        with pytest.raises(SystemExit, match=r"^error: .*Is a directory: '.*filters.png'$"):
            command(weights, "--model", f"{HERE}:net", *options)

    def test_a_folder_that_cannot_be_made(self, weights, data, tmp_path, capsys):
        text = refused(capsys, weights, "--model", f"{HERE}:net", "--data", data, "--output", weights)
        assert text.endswith("weights.pt`: File exists.")
        assert "`--output` should be a folder that can be made. Found `" in text
