"""Where a network overfits: layers frozen, from the best epoch on."""

from typing import Any

import pytest
import torch
from quick_lines import quick_lines
from trainers import QUIET

from recipes.common.evaluation import evaluate
from recipes.common.networks import build
from recipes.experiments.common.fitting import every_epoch
from recipes.experiments.common.trainings import prepare, quick_matrix
from recipes.experiments.h1 import frozen

pytestmark = QUIET
TRAINING = quick_matrix(("overfitting",))[0]


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return quick_lines("frozen", tmp_path_factory.mktemp("lines"))


def test_frozen_layers_stay_and_the_others_learn() -> None:
    images = prepare(TRAINING)
    for name, kinds in frozen.ARMS.items():
        network = build(TRAINING.network, 1, 10)
        before = {key: value.clone() for key, value in network.state_dict().items()}
        frozen.train_on(TRAINING, images, network, kinds, 1)
        for place, layer in enumerate(network):
            for key, value in layer.state_dict().items():
                assert torch.equal(value, before[f"{place}.{key}"]) != isinstance(layer, kinds), name


def test_a_quick_run_starts_from_the_best_epoch(lines: list[dict[str, Any]]) -> None:
    (line,) = lines
    images = prepare(TRAINING)
    losses = [
        evaluate(network, images.normalised("val"), images.data.val_labels)[0]
        for _, network in every_epoch(TRAINING, images, None)
    ]
    assert line["best"] == losses.index(min(losses)) + 1
    assert line["start"]["val_loss"] == pytest.approx(min(losses), rel=1e-3)
    assert list(line["arms"]) == list(frozen.ARMS)
    table = frozen.frozen_table([line])
    assert table.count("\n") == 1 + 4
    assert f"| best epoch | 1 | {min(losses):.2f} |" in table
