"""H2's runs on digits, end to end, and its parts against slower, plainer code."""

from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn
from trainers import QUIET

from lightning_anomaly.report import AnomalyReport, LayerReport
from lightning_anomaly.verdicts import ANOMALY, NORMAL
from recipes.experiments import h2, h2_leave_out, h2_measure, h2_tables
from recipes.experiments.cells import prepare, quick_matrix
from recipes.experiments.detection import (
    SCORES,
    auroc,
    average_precision,
    detection,
    feature_scores,
    margins,
    output_scores,
)
from recipes.experiments.lines import read_lines
from recipes.experiments.planted import MISLABELLED, Planted, plant
from recipes.experiments.statistics import means, medians, rank_correlation, ratio_with_interval

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the logging"),
]
(CELL,) = quick_matrix(["overfitting"])


def quick(folder: Path) -> list[dict]:
    return h2.run(h2.parse(["--quick", "--lines", str(folder), "--workers", "1"]))


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("lines")
    return folder, quick(folder)


@pytest.fixture(scope="module")
def planted() -> Planted:
    return plant(CELL, damage=True)


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
    assert quick(tmp_path) == lines[1]
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
    figure = h2_tables.draw(lines[1])
    assert len(figure.axes[2].containers) == len(SCORES)
    figure.savefig(tmp_path / "h2.png", dpi=90)
    assert 5_000 < (tmp_path / "h2.png").stat().st_size < 100_000


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
    cell = {"network": "some", "data": "images", "seed": seed}
    better = {**probe, "ours": {**probe["ours"], "gradients": {**gradients, "all": {**group, "mean": shifted}}}}
    epochs = [{"epoch": epoch, "train": better if epoch == 2 else probe, "val": probe} for epoch in (1, 2, 3)]
    trained = {"best_loss": 1.0, "last_loss": 2.0, "best_acc": 0.5, "last_acc": 0.4}
    random = [{**trained, "best_loss": value} for value in (0.9, 1.0, 1.2)]
    ours = {"left_out": 30, "wrong": 2, "damaged": 7, "outliers": {**trained, "best_loss": outliers}, "random": random}
    arms = {"all": trained, "ours": ours, "paper": {"left_out": 5, "wrong": 0, "damaged": 1}}
    return [
        {"kind": "measure", "cell": cell, "scores": list(SCORES), "epochs": epochs, "val_losses": [3, 1, 2]},
        {"kind": "leave_out", "cell": cell, "damage": {"train": seen, "val": seen}, **arms},
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
    h2_tables.draw(lines).savefig(tmp_path / "h2.png")


def test_planted_images_are_trained_on_and_known(planted: Planted) -> None:
    images, train, val = planted.images, planted.train, planted.val
    assert torch.equal(train.images, images.normalised("train")[: len(train.images)])
    assert torch.equal(train.labels, images.data.train_labels[: len(train.labels)])
    assert images.data.train_labels.shape == images.wrong.shape == (256,)
    plain = prepare(CELL).data
    assert torch.equal(images.data.train_labels != plain.train_labels, images.wrong)
    assert 0 < images.wrong.sum() <= round(MISLABELLED * 256)
    assert not train.wrong[128:].any()
    assert not val.wrong[128:].any()
    for probe in (train, val):
        assert sorted(place for places in probe.damaged.values() for place in places) == [*range(128, 128 + 36)]
    # The damaged validation images are in the probe alone; what is validated on has none.
    assert torch.equal(images.data.val_images, plain.val_images)
    assert torch.equal(val.images[:128], images.normalised("val")[:128])
    assert not torch.equal(val.images[128:], images.normalised("val")[128:164])
    (black,) = train.images[train.damaged["black"]].unique()
    torch.testing.assert_close(black, -images.mean[0] / images.std[0])


def test_training_images_without_damage(planted: Planted) -> None:
    plain = plant(CELL, damage=False)
    assert torch.equal(plain.images.data.train_images, prepare(CELL).data.train_images)
    assert plain.train.damaged == {}
    assert len(plain.train.images) == 128
    assert torch.equal(plain.images.wrong, planted.images.wrong)
    assert plain.val.damaged == planted.val.damaged
    assert not plain.val.wrong[128:].any()


def test_probes_with_damage_replace_the_last_images(planted: Planted) -> None:
    probe = planted.val
    assert probe.with_damage("noise", 0.05).tolist() == [*range(122), *probe.damaged["noise"]]
    assert probe.with_damage("noise", 0.01, draw=2).tolist() == [*range(127), probe.damaged["noise"][2]]
    mixed = probe.with_damage("mixed", 0.05).tolist()
    assert mixed[122:] == [places[0] for places in probe.damaged.values()]


def test_scores_from_outputs() -> None:
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], dtype=torch.float64)
    labels = torch.tensor([0, 1])
    found = output_scores(probabilities.log() + 3, labels)
    torch.testing.assert_close(found["confidence"], torch.tensor([0.3, 0.2], dtype=torch.float64))
    torch.testing.assert_close(found["loss"], -torch.tensor([0.7, 0.1], dtype=torch.float64).log())
    expected = torch.tensor([0.09 + 0.04 + 0.01, 0.01 + 0.81 + 0.64], dtype=torch.float64).sqrt()
    torch.testing.assert_close(found["el2n"], expected)
    torch.testing.assert_close(
        margins(torch.tensor([[1.0, 4, 2], [3, 1, 2]]), torch.tensor([1, 2])), torch.tensor([2.0, -1])
    )


def test_scores_from_features() -> None:
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(60, 4, generator=generator) + torch.arange(60)[:, None] % 3
    labels, features = torch.arange(60) % 3, torch.randn(7, 4, generator=generator)
    found = feature_scores(features, reference, labels)
    unit = reference.double() / reference.double().norm(dim=1, keepdim=True)
    nearest = NearestNeighbors(n_neighbors=5).fit(unit.numpy())
    distances, _ = nearest.kneighbors((features.double() / features.double().norm(dim=1, keepdim=True)).numpy())
    np.testing.assert_allclose(found["neighbour"], distances[:, 4], rtol=1e-6)
    class_means = torch.stack([reference[labels == c].double().mean(0) for c in range(3)])
    centred = (reference.double() - class_means[labels]).numpy()
    covariance = np.cov(centred.T, bias=True)
    inverse = np.linalg.inv(covariance + 1e-3 * covariance.trace() / 4 * np.eye(4))
    away = (features.double()[:, None] - class_means).numpy()
    np.testing.assert_allclose(found["mahalanobis"], np.einsum("nci,ij,ncj->nc", away, inverse, away).min(1), rtol=1e-8)


def test_features_that_are_always_zero_do_not_break_the_distance() -> None:
    reference = torch.rand(40, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 1, 0])
    far = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 5.0]])
    found = feature_scores(far, reference, torch.zeros(40, dtype=torch.int64))["mahalanobis"]
    assert found[1] > 100 * found[0]


@pytest.mark.parametrize("levels", [4, 1000], ids=["ties", "no ties"])
def test_rates_are_those_of_scikit_learn(levels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(200, generator=generator) < 0.1
    values = torch.randint(0, levels, (200,), generator=generator) + truth * levels / 4
    assert auroc(truth, values) == pytest.approx(roc_auc_score(truth, values), abs=1e-12)
    assert average_precision(truth, values) == pytest.approx(average_precision_score(truth, values), abs=1e-12)


def test_detection_is_in_the_order_of_the_scores() -> None:
    truth = torch.tensor([False, False, True, True])
    scores: dict[str, Tensor | None] = dict.fromkeys(SCORES, torch.zeros(4))
    scores |= {"loss": torch.tensor([0.0, 1, 2, 3]), "gradient": torch.tensor([3.0, 2, 1, 0]), "aum": None}
    found = detection(truth, scores)
    assert found["auroc"] == [0.5, 0.5, 1.0, 0.0, 0.5, None, 0.5, 0.5]
    assert found["precision"][:4] == [0.5, 0.5, 1.0, round((1 / 3 + 2 / 4) / 2, 3)]


def test_ratios_and_their_intervals() -> None:
    generator = torch.Generator().manual_seed(0)
    group, rest = (torch.rand(200, generator=generator) + shift for shift in (1.0, 0.5))
    ratio, low, high = ratio_with_interval(group, rest, means)
    assert ratio == pytest.approx((group.double().mean() / rest.double().mean()).item())
    error = ratio * ((group.std() / group.mean()) ** 2 / 200 + (rest.std() / rest.mean()) ** 2 / 200).sqrt().item()
    assert (high - low) == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert low < ratio < high
    assert ratio_with_interval(group, rest, means) == [ratio, low, high]
    assert ratio_with_interval(group, rest, medians)[0] == pytest.approx((group.median() / rest.median()).item())
    assert ratio_with_interval(torch.ones(3), torch.zeros(3))[0] == float("inf")
    assert rank_correlation(torch.tensor([0.0, 1, 5]), torch.tensor([2.0, 3, 4])) == pytest.approx(1)
    assert rank_correlation(torch.zeros(3), torch.rand(3)) is None
    assert rank_correlation(torch.tensor([0.0, 1, torch.nan]), torch.rand(3)) is None


def report_with(outliers: Tensor) -> AnomalyReport:
    """One layer "0" of which each filter `(F, N)` has the given outliers."""
    filters = len(outliers)
    layer = LayerReport(
        verdicts=tuple(ANOMALY if one.any() else NORMAL for one in outliers),
        n_components=torch.full((filters,), 2),
        calinski_harabasz=torch.ones(filters),
        smallest_share=torch.ones(filters),
        labels=outliers.long(),
        points=torch.zeros(*outliers.shape, 2),
        outliers=outliers,
        isolated=torch.zeros_like(outliers),
        explained=torch.ones(filters),
        sparsity=torch.zeros(filters),
        map_size=(1, 1),
        analysed_size=(1, 1),
    )
    return AnomalyReport({"0": layer}, outliers.shape[1])


def test_gradients_of_outliers_against_the_rest() -> None:
    outliers = torch.zeros(2, 40, dtype=torch.bool)
    outliers[0, :4] = outliers[1, 2:4] = True
    norms = {"0": torch.full((40,), 3.0), "9": torch.full((40,), 4.0)}
    norms["0"][:4], norms["9"][:4] = 6.0, 8.0
    found = h2_measure.gradient_ratios(report_with(outliers), norms, torch.ones(40))
    assert found["all"]["n"] == found["0"]["n"] == 4
    assert found["all"]["mean"] == found["all"]["median"] == found["0"]["own"] == [2.0, 2.0, 2.0]
    assert found["all"]["loss"] == [1.0, 1.0, 1.0]
    assert found["spearman"] > 0.9
    few = h2_measure.gradient_ratios(report_with(outliers[1:]), norms, torch.ones(40))
    assert few["all"] == {"n": 2}


def test_draws_are_averaged() -> None:
    first = {"hit": 1, "auroc": [0.5, None]}
    assert h2_measure.averaged([first]) is first
    assert h2_measure.averaged([first, {"hit": 0, "auroc": [1.0, None]}]) == {"hit": 0.5, "auroc": [0.75, None]}


def test_outlier_samples_are_left_out_and_as_many_random_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    trained_on, steps = [], []
    fit = h2_leave_out.fit

    def counting(cell, images, callbacks):
        trained_on.append(images.data.train_labels)
        module = fit(cell, images, callbacks)
        steps.append(module.trainer.global_step)
        return module

    def first_thirty(network: nn.Module, images, probe_size: int) -> dict[str, Tensor]:
        return {"ours": torch.arange(256) < 30, "paper": torch.arange(256) < 19}

    monkeypatch.setattr(h2_leave_out, "fit", counting)
    monkeypatch.setattr(h2_leave_out, "training_outliers", first_thirty)
    monkeypatch.setattr(h2_leave_out, "found_damage", lambda *arguments: {})
    found = h2_leave_out.leave_out(replace(CELL, epochs=2))
    assert [len(labels) for labels in trained_on] == [256, 226, 226, 226]
    assert torch.equal(trained_on[1], trained_on[0][30:])
    assert steps == [4 * 2] * 4
    assert len({tuple(labels.tolist()) for labels in trained_on}) == 4
    assert found["ours"]["left_out"] == 30
    assert found["ours"]["wrong"] <= 30
    assert len(found["ours"]["random"]) == 2
    assert all(run["best_loss"] > 0 for run in [found["all"], found["ours"]["outliers"], *found["ours"]["random"]])
    assert set(found["paper"]) == {"left_out", "wrong", "damaged"}  # too few to leave out


def test_training_images_are_analysed_in_probes(trained, monkeypatch: pytest.MonkeyPatch) -> None:
    probes = []
    analyze_places = h2_leave_out.analyze_places

    def counting(maps, places, reading):
        probes.append(places)
        return analyze_places(maps, places, reading)

    class Some:
        def normalised(self, part: str) -> Tensor:
            return trained.probe

    monkeypatch.setattr(h2_leave_out, "analyze_places", counting)
    found = h2_leave_out.training_outliers(trained.model, Some(), 200)
    assert [len(places) for places in probes] == [200, 200] * 2
    assert torch.cat(probes[:2]).sort().values.tolist() == [*range(400)]
    assert 70 < (probes[0] < 200).sum() < 130  # damaged images lie side by side, and must not come into one probe
    assert found["ours"][trained.damaged].all()
    assert found["ours"].sum() < 20
    assert found["paper"].shape == (400,)


def test_the_matrix_is_whole_seed_by_seed() -> None:
    jobs = h2.full_matrix(["lenet5", "alexnet"], [0, 1])
    keys = [job.key for job in jobs]
    assert len(set(keys)) == 2 * 2 * 2 * 2
    assert keys[:2] == ["measure/lenet5/cifar10/overfitting/0", "measure/lenet5/fashion_mnist/overfitting/0"]
    assert [key.split("/")[1] for key in keys] == ["lenet5"] * 8 + ["alexnet"] * 8
    epochs = {(job.kind, job.cell.network): job.cell.epochs for job in jobs}
    assert epochs == {
        ("measure", "lenet5"): 40,
        ("leave_out", "lenet5"): 40,
        ("measure", "alexnet"): 16,
        ("leave_out", "alexnet"): 16,
    }


def test_the_data_have_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not hold an intact copy of cifar10"):
        h2.run_job(h2.full_matrix(["lenet5"], [0])[0], str(tmp_path))
