"""The recipes that a user copies: each is one short file that needs only the package."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lightning_anomaly import OutlierDetector
from recipes import clean_labels, prune, quickstart

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = ["quickstart", "clean_labels", "fine_tune", "prune", "compact", "cli", "predict", "ray_data"]


def scalars(log_dir: Path) -> dict[str, list[float]]:
    events = EventAccumulator(str(log_dir)).Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_one_short_file_that_imports_public_names_only(name: str) -> None:
    text = (RECIPES / f"{name}.py").read_text()
    # The quickstart shows four things, each other recipe one.
    assert len(text.splitlines()) <= {"quickstart": 88, "predict": 50, "ray_data": 100}.get(name, 70)
    public = {"lightning_anomaly", "lightning_anomaly.images", "lightning_anomaly.pruning"}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            assert node.module in public or not str(node.module).startswith(("lightning_anomaly", "recipes"))


@pytest.mark.slow
def test_the_most_doubtful_labels_are_wrong_and_training_goes_on_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    doubted, before, after = clean_labels.main(epochs=8)
    wrong = sum(place % 5 == 0 for place in doubted)
    assert wrong > 0.9 * 160  # of those that are wrong
    assert wrong > 0.7 * len(doubted)  # their number is an estimate, here a quarter too high
    assert 80 <= len(doubted) <= 320
    assert (tmp_path / "labels.html").is_file()
    assert min(before, after) > 0.5


@pytest.mark.slow
def test_the_quickstart_finds_the_damaged_digits_and_stops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watcher = quickstart.main(log_dir=str(tmp_path))
    planted = {image for images in quickstart.DAMAGED.values() for image in images}
    assert planted <= {*watcher.report.by_outlier_score[:10]}
    printed = capsys.readouterr().out
    rows = printed.partition("\nposition ")[2].splitlines()[2:12]
    assert planted <= {int(row.split()[0]) for row in rows}
    pages = [Path(line.partition("open ")[2]) for line in printed.splitlines() if "open " in line]
    assert [page.name for page in pages if page.is_file()] == ["run.html", "outliers.html"]
    assert f"tensorboard --logdir {tmp_path}" in printed

    logged = scalars(tmp_path / "quickstart/version_0")
    losses, gap = logged["val_loss"], logged["memorization/rise"]
    assert len(losses) == len(gap) == len(logged["train_loss"]) < 30
    assert all(len({*logged[f"anomaly_filters/{name}"]}) > 2 for name in ("count", "isolated"))
    assert re.search(r"^[4-9] images of 200 are significant", printed, re.MULTILINE)
    assert gap[0] == 0 < 0.05 < gap[-1]
    lowest = min(losses)
    assert losses.index(lowest) < len(losses) - 3
    assert 1.1 * lowest < losses[-1]
    *_, loss, count, reason = printed.strip().splitlines()
    assert loss.endswith(f" {lowest:.2f}, in epoch {losses.index(lowest)}; the last is {losses[-1]:.2f}.")
    assert ", ".join(f"{value:.0f}" for value in logged["anomaly_filters/count"]) in count
    assert f"memorization/rise = {gap[-1]:.3f} is above 0.05" in reason


@pytest.mark.slow
def test_flagged_filters_are_masked_and_stay_masked_and_go_without_a_change_of_the_outputs() -> None:
    callback, model = prune.main(epochs=5, at_epoch=3)
    assert callback.masked
    for name, filters in callback.masked.items():
        assert not model.get_submodule(name).get_parameter("weight")[filters].any()
    pytest.importorskip("torch_pruning")
    from recipes import compact

    images = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    smaller = compact.without_masked(model, images[:2])
    for name, filters in callback.masked.items():
        before, after = (net.get_submodule(name).get_parameter("weight") for net in (model, smaller))
        assert len(after) == len(before) - len(filters)
    torch.testing.assert_close(smaller(images), model.eval()(images))


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:.*The probe has 120 samples, fewer than", "ignore:.*the network expects fewer than 10 errors"
)
def test_photographs_fine_tune_a_head_and_leave_a_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    from recipes import fine_tune

    for name in ("AUGMENT", "PLAIN"):  # smaller than in the recipe, to be quick
        monkeypatch.setattr(fine_tune, name, fine_tune.T.Compose([fine_tune.T.Resize(96), *fine_tune.SCALE]))
    generator = torch.Generator().manual_seed(0)
    for name, photograph in zip(("china", "flower"), load_sample_images().images, strict=True):
        for part, count in (("train", 20), ("val", 60)):
            (tmp_path / part / name).mkdir(parents=True)
            for place in range(count):
                top, left = (int(torch.randint(side - 128, (), generator=generator)) for side in photograph.shape[:2])
                crop = Image.fromarray(photograph[top : top + 128, left : left + 128])
                crop.save(tmp_path / part / name / f"{place}.jpg")
    watcher, path = fine_tune.main(str(tmp_path / "train"), str(tmp_path / "val"), 2, str(tmp_path / "logs"))
    assert watcher.report.n_samples == 120
    assert path.is_file()
    assert path.with_suffix(".html").is_file()
    (checkpoint,) = path.parent.glob("*.ckpt")
    model = fine_tune.FineTuned.load_from_checkpoint(checkpoint, classes=2)
    noise = torch.rand(20, 3, 96, 96, generator=generator) * 2 - 1
    assert OutlierDetector.load(path, model).p_values(OutlierDetector.load(path, model).score(noise)).max() < 0.05


@pytest.mark.slow
def test_the_configuration_file_trains_with_all_callbacks_in_an_empty_folder(tmp_path: Path) -> None:
    for name in ("cli.py", "config.yaml"):
        shutil.copy(RECIPES / name, tmp_path)
    command = [sys.executable, "cli.py", "fit", "--config", "config.yaml", "--trainer.max_epochs=6"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    logged = scalars(tmp_path / "logs/cli/version_0")
    assert len(logged["anomaly_filters/count"]) == len(logged["val_loss"]) == 6
    assert logged["anomaly_filters/outlier_samples"][4] == 2  # the two images that are over-exposed
    assert logged["anomaly_prune/masked"][4] == 0 < logged["anomaly_prune/masked"][5]
    assert len(set(logged["memorization/error_ratio"])) == 6


@pytest.mark.slow
def test_two_processes_of_a_trainer_score_as_one_does(tmp_path: Path) -> None:
    """They have eight and seven batches; `score` once waited for the other process."""
    shutil.copy(RECIPES / "predict.py", tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(RECIPES.parent)}
    command = [sys.executable, "predict.py"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 10))
    images = torch.tensor(load_digits().images[900:, None] / 16).float()
    expected = OutlierDetector.load(tmp_path / "detector.pt", network).score(images)
    shares = [torch.load(tmp_path / f"share_{rank}.pt", weights_only=False) for rank in range(2)]
    assert sorted(sum(len(part["position"]) for part in parts) for parts in shares) == [448, 449]
    found = torch.full_like(expected, torch.nan)
    for part in (part for parts in shares for part in parts):
        found[part["position"]] = torch.from_numpy(part["score"])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert (tmp_path / "outliers.html").is_file()
