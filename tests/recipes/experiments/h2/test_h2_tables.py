"""Tables of lines whose numbers are known."""

from pathlib import Path
from statistics import mean, stdev

from recipes.experiments.h2 import figure as figure_of_h2
from recipes.experiments.h2 import tables as h2_tables
from recipes.experiments.h2.detection import (
    SCORES,
)


def some_run(seed: int, ratio: float, outliers: float) -> list[dict]:
    """Lines of a network whose outlier samples are known."""
    group = {"n": 4, "mean": [ratio, ratio - 0.2, ratio + 0.2], "median": [2.0, 0.5, None], "loss": [3.0, 2.0, 4.0]}
    shifted = [value + 0.2 for value in group["mean"]]
    found = {"outliers": 4, "planted": 5, "hit": 2, "auroc": [0.7] * 8, "precision": [0.4] * 8}
    gradients = {"spearman": 0.25, "all": group, "0": {**group, "own": [0.5, 0.4, 0.6]}}
    none = {"count": 0, "gradients": {"spearman": None, "all": {"n": 0}, "0": {"n": 0}}, "mislabelled": found}
    probe = {
        "ours": {"count": 3, "gradients": gradients, "mislabelled": found},
        "paper": none,
        "damage": {"noise/0.01": found, "noise/0.05": found},
    }
    seen = {"noise/0.01": {**found, "auroc": [0.9] * 8}}
    training = {"network": "some", "data": "images", "seed": seed}
    better = {**probe, "ours": {**probe["ours"], "gradients": {**gradients, "all": {**group, "mean": shifted}}}}
    epochs = [{"epoch": epoch, "train": better if epoch == 2 else probe, "val": probe} for epoch in (1, 2, 3)]
    trained = {"best_loss": 1.0, "last_loss": 2.0, "best_acc": 0.5, "last_acc": 0.4}
    random = [{**trained, "best_loss": value} for value in (0.9, 1.0, 1.2)]
    ours = {"left_out": 30, "wrong": 2, "damaged": 7, "outliers": {**trained, "best_loss": outliers}, "random": random}
    arms = {"all": trained, "ours": ours, "paper": {"left_out": 5, "wrong": 0, "damaged": 1}}
    return [
        {"kind": "measure", "cell": training, "scores": list(SCORES), "epochs": epochs, "val_losses": [3, 1, 2]},
        {"kind": "leave_out", "cell": training, "damage": {"train": seen, "val": seen}, **arms},
    ]


def test_tables_of_known_lines(tmp_path: Path) -> None:
    lines = [*some_run(0, 1.5, 0.8), *some_run(1, 0.7, 1.2), *some_run(2, 1.1, 1.0)]
    gradients = h2_tables.gradient_table(lines).splitlines()
    assert len(gradients) == 2 + 2 * 2
    assert "| training | ours | 3 | 3.0 ± 0.0 | 4.0 ± 0.0 | 1.20 ± 0.37 (3 above, 1 below, of 6) |" in gradients[2]
    near, last = "1.30 ± 0.40 (2 above, 0 below, of 3)", "1.10 ± 0.40 (1 above, 1 below, of 3)"
    assert f"of 6) | {last} | {near} | {last} |" in gradients[2]
    assert "| validation | paper | 3 | 0.0 ± 0.0 | 0.0 ± 0.0 | - | - | - | - | - | - | - |" in gradients[5]
    assert "| 2.00 ± 0.00 (0 above, 0 below, of 3) | 3.00 ± 0.00 | 0.25 ± 0.00 |" in gradients[4]
    assert "| some | validation | ours | 0 | 4.0 ± 0.0 |" in h2_tables.layer_table(lines)
    assert "0.50 ± 0.00 (0 above, 3 below, of 3) |" in h2_tables.layer_table(lines)
    assert "| some | images | training | last | 2.0 of 5 | 0.70 ± 0.00 / 0.40 | 0.70" in h2_tables.mislabelled_table(
        lines
    )
    assert "| some | images | validation, none in training | 3 | 0.70 ± 0.00 |" in h2_tables.damage_table(lines)
    assert "| some | images | training | 3 | 0.90 ± 0.00 |" in h2_tables.damage_table(lines)
    assert "| training | noise | 1% | 2.0 of 5 | 0.90 ± 0.00 / 0.40 |" in h2_tables.scores_table(lines)
    assert "| validation, none in training | noise | 5% | 2.0 of 5 | 0.70 ± 0.00 / 0.40 |" in h2_tables.scores_table(
        lines
    )
    assert "| training | some | images | noise | 2.0 of 5 | 0.90 ± 0.00 / 0.40 |" in h2_tables.network_table(lines)
    random = [0.9, 1.0, 1.2]
    error = stdev(random) * (4 / 3 / 3) ** 0.5  # of a run less the mean of three draws, over three seeds
    gain = f"{1 - mean(random):.3f} ± 0.200 (draws {error:.3f})"
    expected = f"| 1.000 ± 0.000 | {gain} | 2.000 ± 0.000 | 0.000 ± 0.000 (draws 0.000) |"
    left_out = h2_tables.leave_out_table(lines).splitlines()
    assert "| some | images | ours | 3 of 3 | 30.0 ± 0.0 | 2.0 ± 0.0 | 7.0 ± 0.0 |" in left_out[2]
    assert expected in left_out[2]
    assert "| paper | 0 of 3 | 5.0 ± 0.0 | 0.0 ± 0.0 | 1.0 ± 0.0 | 1.000 ± 0.000 | - |" in left_out[3]
    figure_of_h2.draw(lines).savefig(tmp_path / "h2.png")
