"""Options that recipes share, and errors that end in one sentence."""

import sys
from pathlib import Path

import pytest
import torch

from recipes import compact, early_stopping, prune, quickstart
from recipes.common.options import one_sentence_errors


@pytest.mark.parametrize("recipe", [prune, early_stopping], ids=["prune", "early_stopping"])
def test_the_options_are_those_of_all_recipes(recipe) -> None:
    options = recipe.parse(["--data", "cifar10", "--data-root", "here", "--download", "--network", "lenet5"])
    assert (options.data, options.data_root, options.download, options.network) == ("cifar10", "here", True, "lenet5")


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        (quickstart, "--epochs 0", "argument --epochs: should be an integer of at least 1. Found 0."),
        (quickstart, "--batch-size many", "argument --batch-size: should be an integer of at least 1. Found many."),
        (quickstart, "--damaged -1", "argument --damaged: should be an integer of at least 0. Found -1."),
        (quickstart, "--damaged 600", "error: Option `--damaged` should be at most 512, the number of validation"),
        (
            quickstart,
            "--damaged 600 --val-size 700",
            "error: Option `--damaged` should be at most 512, the",
        ),
        (quickstart, "--picture no/such/folder.png", "error: Option `--picture` should name a file in an existing"),
        (
            quickstart,
            "--train-size 989",
            "error: Option `--train-size` should be at most 988: `--data digits` has 1500",
        ),
        (quickstart, "--val-size 20", "error: Option `--val-size` should leave at least 50 validation images, the"),
        (prune, "--seeds 0", "argument --seeds: should be an integer of at least 1. Found 0."),
        (prune, "--damaged 600", "error: Option `--damaged` should be at most 512, the number of validation"),
        (prune, "--val-size 20", "error: Option `--val-size` should leave at least 50 validation images, the"),
        (early_stopping, "--healthy-size 1000", "error: Option `--healthy-size` should be at most 988"),
        (early_stopping, "--failing-at -1", "argument --failing-at: should be an integer of at least 0. Found -1."),
        (early_stopping, "--val-size 20", "error: Option `--val-size` should leave at least 50 validation images, the"),
    ],
)
def test_what_cannot_be_is_told_by_the_name_of_the_option_before_anything_is_trained(
    recipe, options, message, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*options.split(), "--log-dir", str(tmp_path / "logs")]
    with pytest.raises(SystemExit) as ended:
        one_sentence_errors(recipe.run, lambda: recipe.parse(arguments))
    assert message in f"{ended.value} {capsys.readouterr().err}"
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_ends_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    threads = torch.get_num_threads()
    try:
        with pytest.raises(
            SystemExit, match=r"^error: `compact` needs Torch-Pruning, so install it: `pip install torch-"
        ):
            one_sentence_errors(compact.run, lambda: compact.parse(["--networks", "lenet5", "--side", "32"]))
    finally:
        torch.set_num_threads(threads)
