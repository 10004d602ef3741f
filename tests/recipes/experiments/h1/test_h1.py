"""H1 end to end on a few digits: what is measured after every epoch, and what is made of it."""

from pathlib import Path

import pytest
import torch
from quick_lines import quick_lines
from trainers import QUIET

from recipes.common.evaluation import evaluate
from recipes.common.networks import build
from recipes.experiments.__main__ import parse, run
from recipes.experiments.common.store import read_lines, rounded
from recipes.experiments.common.trainings import (
    prepare,
    quick_matrix,
)
from recipes.experiments.h1 import stopping, tables
from recipes.experiments.h1.watch import READINGS, watch

pytestmark = QUIET


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lines")
    quick_lines("h1", folder, "--weights", str(folder / "weights"))
    return folder


def test_quick_h1_measures_every_epoch_of_every_reading(quick: Path) -> None:
    lines = read_lines(quick / "h1-quick.jsonl")
    assert [line["key"] for line in lines] == [training.key for training in quick_matrix()]
    for line in lines:
        assert len(line["epochs"]) == 4
        assert line["epochs"][-1]["train_loss"] < line["epochs"][0]["train_loss"]
        for epoch in line["epochs"]:
            assert set(epoch["layers"]) == set(READINGS)
            assert all(list(layers) == ["0", "3"] for layers in epoch["layers"].values())
            last = {reading: layers["3"] for reading, layers in epoch["layers"].items()}
            assert last["val"]["live"] + last["val"]["dead"] == 16
            assert all(0 <= found["count"] <= found["live"] <= 16 for found in last.values())


def test_what_is_written_is_what_the_kept_weights_give(quick: Path) -> None:
    (line, _) = read_lines(quick / "h1-quick.jsonl")
    training = quick_matrix()[0]
    images = prepare(training)
    for number, epoch in enumerate(line["epochs"]):
        network = build(training.network, images.data.channels, images.data.n_classes)
        network.load_state_dict(torch.load(quick / "weights" / training.key / f"{number}.pt", weights_only=True))
        for part in ("val", "test"):
            loss, accuracy = evaluate(network, images.normalised(part), getattr(images.data, f"{part}_labels"))
            assert epoch[f"{part}_loss"] == pytest.approx(loss, rel=1e-3)
            assert epoch[f"{part}_acc"] == pytest.approx(accuracy, rel=1e-3)
        weight = network[3].weight
        assert epoch["layers"]["val"]["3"]["weight_norm"] == pytest.approx(weight.norm().item(), rel=1e-3)


def test_a_cell_gives_the_same_line_again(quick: Path) -> None:
    again = rounded(watch(quick_matrix()[1]))
    (_, line) = read_lines(quick / "h1-quick.jsonl")
    assert again["epochs"] == line["epochs"]


def test_finished_runs_are_skipped(quick: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (quick / "h1-quick.jsonl").read_bytes()
    assert len(quick_lines("h1", quick)) == 2
    assert (quick / "h1-quick.jsonl").read_bytes() == before


def test_quick_stopping_replays_the_trainings_of_h1(quick: Path, tmp_path: Path) -> None:
    table = run(parse(["stopping", "--quick", "--lines", str(quick)]))
    assert "| lenet5 | validation loss, patience 3 |" in table
    assert table == stopping.stopping_table(read_lines(quick / "h1-quick.jsonl"))
    with pytest.raises(FileNotFoundError, match=r"run `python -m recipes.experiments h1 --quick` first"):
        run(parse(["stopping", "--quick", "--lines", str(tmp_path)]))


def test_tables_and_curves_are_made_of_the_quick_lines(quick: Path) -> None:
    lines = read_lines(quick / "h1-quick.jsonl")
    assert "| lenet5 | digits | overfitting | 1 |" in tables.run_table(lines)
    assert tables.signal_table(lines).count("\n") == 1 + len(tables.SOURCES)
    assert tables.layer_table(lines).count("\n") == 1 + 2
    figure = tables.draw_curves(lines)
    assert [len(axis.get_lines()) for axis in figure.axes] == [2, 2, 2]
