"""H2 end to end on a few digits, and its matrix."""

from pathlib import Path

import pytest
from quick_lines import quick_lines
from trainers import SMALL_RUNS

from recipes.experiments.common.store import read_lines
from recipes.experiments.h2 import figure as figure_of_h2
from recipes.experiments.h2 import measure as h2_measure
from recipes.experiments.h2 import runs as h2
from recipes.experiments.h2 import tables as h2_tables
from recipes.experiments.h2.detection import (
    SCORES,
)

pytestmark = SMALL_RUNS


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("lines")
    return folder, quick_lines("h2", folder)


def test_quick_measures_every_epoch_on_both_probes(lines) -> None:
    measured, left_out = lines[1]
    assert measured["key"] == "measure/lenet5/digits/overfitting/0/256x4"
    assert [epoch["epoch"] for epoch in measured["epochs"]] == [1, 2, 3, 4]
    assert ["damage" in epoch["val"] for epoch in measured["epochs"]] == [False, False, False, True]
    last = measured["epochs"][-1]
    assert "damage" not in last["train"]
    for probe in (last["train"], last["val"]):
        for reading in ("ours", "paper"):
            found = probe[reading]
            assert found["gradients"]["all"]["n"] == found["mislabelled"]["outliers"]
        assert len(probe["paper"]["mislabelled"]["auroc"]) == 1
    kinds = ("noise", "salt_and_pepper", "black", "over_exposed", "blurred", "inverted")
    entries = {*(f"{kind}/{share}" for kind in kinds for share in (0.002, 0.01, 0.05)), "mixed/0.05"}
    for damage in (last["val"]["damage"], left_out["damage"]["train"], left_out["damage"]["val"]):
        assert set(damage) == entries
        assert [damage[f"noise/{share}"]["planted"] for share in (0.002, 0.05)] == [1, 6]
        assert len(damage["noise/0.05"]["auroc"]) == len(SCORES)
    found = dict(zip(measured["scores"], last["train"]["ours"]["mislabelled"]["auroc"], strict=True))
    assert found["loss"] > 0.8
    assert found["aum"] > 0.8
    assert last["val"]["ours"]["mislabelled"]["auroc"][SCORES.index("aum")] is None
    assert 0 < left_out["all"]["last_acc"] <= 1
    assert left_out["ours"]["left_out"] < 20
    assert "outliers" not in left_out["ours"]


def test_an_interrupted_matrix_goes_on_and_gives_the_same(
    lines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (lines[0] / "h2-quick.jsonl").read_text()
    first = text.index("\n") + 1
    (tmp_path / "h2-quick.jsonl").write_text(text[: first + 100])
    monkeypatch.setattr(h2, "measure", None)  # must not be done again
    assert quick_lines("h2", tmp_path) == lines[1]
    assert (tmp_path / "h2-quick.jsonl").read_text() == text


def test_the_tables_are_made_from_the_lines_alone(lines) -> None:
    again = read_lines(lines[0] / "h2-quick.jsonl")
    text = h2_tables.tables(again)
    assert text == h2_tables.tables(lines[1])
    last = again[0]["epochs"][-1]["train"]["ours"]["mislabelled"]
    loss = SCORES.index("loss")
    assert f"{last['auroc'][loss]:.2f} / {last['precision'][loss]:.2f}" in text
    assert f"{again[1]['all']['best_loss']:.3f}" in text
    assert text.count("###") == 7
    assert h2_tables.tables(again[:1]).count("###") == 6
    assert h2_tables.tables(again[1:]).count("###") == 4
    assert h2_tables.tables([]) == ""


def test_the_figure_has_a_bar_for_every_score(lines, tmp_path: Path) -> None:
    figure = figure_of_h2.draw(lines[1])
    assert len(figure.axes[2].containers) == len(SCORES)
    figure.savefig(tmp_path / "h2.png", dpi=90)
    assert 5_000 < (tmp_path / "h2.png").stat().st_size < 100_000


def test_measured_epochs_are_each_about_as_many_times_the_one_before() -> None:
    assert h2_measure.log_spaced(24, 6) == [1, 2, 4, 7, 13, 24]


def test_draws_are_averaged() -> None:
    first = {"hit": 1, "auroc": [0.5, None]}
    assert h2_measure.averaged([first]) is first
    assert h2_measure.averaged([first, {"hit": 0, "auroc": [1.0, None]}]) == {"hit": 0.5, "auroc": [0.75, None]}


def test_the_matrix_is_whole_seed_by_seed() -> None:
    jobs = h2.full_matrix(["lenet5", "alexnet"], [0, 1])
    keys = [job.key for job in jobs]
    assert len(set(keys)) == 2 * 2 * 2 * 2
    assert keys[:2] == ["measure/lenet5/cifar10/overfitting/0", "measure/lenet5/fashion_mnist/overfitting/0"]
    assert [key.split("/")[1] for key in keys] == ["lenet5"] * 8 + ["alexnet"] * 8
    epochs = {(job.kind, job.training.network): job.training.epochs for job in jobs}
    assert epochs == {
        ("measure", "lenet5"): 40,
        ("leave_out", "lenet5"): 40,
        ("measure", "alexnet"): 16,
        ("leave_out", "alexnet"): 16,
    }


def test_the_data_have_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not hold an intact copy of cifar10"):
        h2.run_job(h2.full_matrix(["lenet5"], [0])[0], str(tmp_path))
