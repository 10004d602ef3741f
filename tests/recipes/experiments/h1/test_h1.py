"""What the experiments stand on: their trainings, their lines of JSON, and the training that measures every epoch."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from trainers import QUIET

from recipes.common.evaluation import evaluate
from recipes.common.networks import build
from recipes.experiments.__main__ import parse, run
from recipes.experiments.common.fitting import watched_layers
from recipes.experiments.common.store import read_lines, rounded, run_missing
from recipes.experiments.common.trainings import (
    CONDITIONS,
    DATA,
    MATRIX,
    OVERFITTING,
    full_matrix,
    held_out_matrix,
    long_matrix,
    prepare,
    quick_matrix,
)
from recipes.experiments.h1 import stopping, tables
from recipes.experiments.h1.watch import READINGS, watch

pytestmark = QUIET
NETWORKS = ("lenet5", "simple_cnn", "alexnet")


def test_the_full_matrix_has_every_combination_once_and_whole_seeds_first() -> None:
    trainings = full_matrix()
    assert len(trainings) == len({training.key for training in trainings}) == 3 * len(DATA) * len(MATRIX) * 3
    assert [training.seed for training in trainings] == sorted(training.seed for training in trainings)
    assert {training.network for training in trainings} == set(NETWORKS)
    assert set(OVERFITTING) | set(MATRIX) == set(CONDITIONS)


def test_what_is_held_out_is_in_no_other_matrix() -> None:
    seen = {(training.network, training.seed) for training in full_matrix()}
    assert seen.isdisjoint((training.network, training.seed) for training in held_out_matrix())
    assert {training.condition for training in held_out_matrix()} & set(OVERFITTING) == {"overfitting", "noise20"}
    assert len({training.key for training in [*full_matrix(), *held_out_matrix(), *long_matrix()]}) == 108 + 4 + 24


def test_layers_are_watched_behind_their_batchnorm() -> None:
    layers = watched_layers(build("vgg11_bn", 1, 10), prefix="")
    network = build("vgg11_bn", 1, 10)
    assert len(layers) == 8
    assert all(network[int(norm)].num_features == network[int(conv)].out_channels for norm, conv in layers.items())
    assert watched_layers(build("lenet5", 1, 10)) == {"network.0": "network.0", "network.3": "network.3"}


def test_conditions_share_their_validation_and_test_images_and_differ_as_they_say() -> None:
    small = replace(quick_matrix()[0], train_size=100)
    plain, noisy, more = (
        prepare(replace(small, condition=name)).data for name in ("overfitting", "noise30", "more_data")
    )
    for part in ("val_images", "test_images", "val_labels", "test_labels"):
        assert torch.equal(getattr(plain, part), getattr(noisy, part))
        assert torch.equal(getattr(plain, part), getattr(more, part))
    assert torch.equal(plain.train_images, noisy.train_images)
    assert (plain.train_labels != noisy.train_labels).sum() == 30
    assert torch.equal(prepare(replace(small, condition="noise30")).wrong, plain.train_labels != noisy.train_labels)
    assert torch.equal(more.train_images[:100], plain.train_images)
    assert len(more.train_images) == 1000
    assert not torch.equal(prepare(replace(small, seed=1)).data.val_images, plain.val_images)


def test_missing_data_are_an_error_that_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"does not hold an intact copy of cifar10 .* `--data-root`"):
        prepare(full_matrix()[0], str(tmp_path))


def test_floats_are_rounded_and_what_is_not_finite_becomes_null() -> None:
    found = rounded({"a": [1.23456789, float("nan"), (3, "x", float("inf"))], "b": 123456.789}, digits=4)
    assert found == {"a": [1.235, None, [3, "x", None]], "b": 123500.0}
    json.dumps(found, allow_nan=False)


def test_an_interrupted_matrix_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path, ran = tmp_path / "lines.jsonl", []

    def square(number: int) -> dict[str, Any]:
        if number == 3 and len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(number)
        return {"square": float(number**2)}

    with pytest.raises(KeyboardInterrupt):
        run_missing([1, 2, 3, 4], str, square, path, workers=1)
    with path.open("a") as file:
        file.write('{"key": "3", "squa')  # as a process that was killed leaves it
    assert [line["key"] for line in read_lines(path)] == ["1", "2"]
    lines = run_missing([4, 3, 2, 1], str, square, path, workers=1)
    assert ran == [1, 2, 4, 3]
    assert [(line["key"], line["square"]) for line in lines] == [("4", 16.0), ("3", 9.0), ("2", 4.0), ("1", 1.0)]
    assert set(lines[0]["versions"]) == {"python", "torch", "lightning", "scikit-learn", "lightning-anomaly"}
    assert len(path.read_text().splitlines()) == 4


def test_a_damaged_file_of_lines_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "h1.jsonl"
    path.write_text('{"key": "a"}\n{"key": \n{"key": "b"}\n')
    with pytest.raises(ValueError, match=r"Line 2 of `h1.jsonl` should be JSON"):
        read_lines(path)
    assert read_lines(tmp_path / "none.jsonl") == []


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lines")
    run(parse(["h1", "--quick", "--workers", "1", "--lines", str(folder), "--weights", str(folder / "weights")]))
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
    assert len(run(parse(["h1", "--quick", "--workers", "1", "--lines", str(quick)]))) == 2
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


def test_lines_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [
        {"loss": 1.5, "layers": {"0": {"count": 1}, "3": {"count": n}}, "found": [[{"a": n}, {}]]} for n in range(9)
    ]
    results = {
        "rows_alike": {"epochs": rows, "none": [], "empty": [{}, {}], "mixed": [{"a": 1}, {"b": 2}], "plain": [1, [2]]},
        "nothing": {"epochs": None},
    }
    path = tmp_path / "lines.jsonl"
    lines = run_missing(list(results), str, results.__getitem__, path, workers=1)
    for line in lines:
        expected = results[line["key"]]
        assert {name: line[name] for name in expected} == expected
    assert path.read_text().count('"loss"') == 1
