"""Options that recipes share, and errors that end in one sentence."""

import sys

import pytest
import torch

from recipes import compact, early_stopping, prune
from recipes.common.options import one_sentence_errors


@pytest.mark.parametrize("recipe", [prune, early_stopping], ids=["prune", "early_stopping"])
def test_the_options_are_those_of_all_recipes(recipe) -> None:
    options = recipe.parse(["--data", "cifar10", "--data-root", "here", "--download", "--network", "lenet5"])
    assert (options.data, options.data_root, options.download, options.network) == ("cifar10", "here", True, "lenet5")


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
