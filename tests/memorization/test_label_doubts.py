"""Margins of labels, of logits and of predictions from the other images, and their means over validations."""

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reports import page_rows, table
from torch import Tensor, nn

from lightning_anomaly import MemorizationReport
from lightning_anomaly.images.image_source import ImageSource
from lightning_anomaly.memorization.comparison import compare_outputs
from lightning_anomaly.memorization.label_doubts import KnownLabels, LabelMargins, MeanMargins, share_of_wrong
from lightning_anomaly.network.class_scores import Scores
from lightning_anomaly.scores.label_score import margins_over
from lightning_anomaly.scores.sample_table import first_by

RNG = torch.Generator().manual_seed(0)
LABELS = torch.arange(30) % 3


def known(labels: Tensor = LABELS, **options: object) -> KnownLabels:
    texts = [str(label) for label in labels.tolist()]
    positions = [10 * place for place in range(len(texts))]
    return KnownLabels(**{"train": texts, "val": texts, "classes": (), "positions": positions, "names": None} | options)


@pytest.mark.parametrize("width", [2, 40])
def test_features_that_are_all_alike_know_nothing(width: int) -> None:
    seen = known().measure_margins(torch.zeros(60, 3), torch.ones(60, width))
    assert seen.margins[1].isfinite().all()
    assert (seen.margins[1] - seen.margins[1, 0]).abs().max() < 1e-9


@given(st.integers(0, 10**6), st.floats(-100, 100))
def test_a_margin_is_above_0_where_another_class_is_preferred(seed: int, shift: float) -> None:
    scores = torch.randn(30, 3, generator=torch.Generator().manual_seed(seed)).double()
    found = margins_over(LABELS, scores)
    assert torch.equal(found > 0, scores.argmax(1) != LABELS)
    torch.testing.assert_close(margins_over(LABELS, scores + shift), found)


def margins_of(margins: Tensor, looks_like: list[str], loss: float, predicted: Tensor | None = None) -> LabelMargins:
    """Margins of images that all look like one class, unless other classes are `predicted`."""
    return LabelMargins(
        margins, torch.zeros(margins.shape[1]).long() if predicted is None else predicted, looks_like, loss
    )


def at(loss: float, *first: float) -> LabelMargins:
    """Margins of the logits; without features the others are unknown."""
    unknown = [torch.nan] * len(first)
    return margins_of(torch.tensor([first, unknown, unknown]).double(), ["b"] * len(first), loss)


def order(means: MeanMargins, labels: KnownLabels) -> list[int]:
    return first_by(means.doubts(labels), "doubt")


def in_order(means: MeanMargins, labels: KnownLabels, *columns: str) -> list[Any]:
    """Position and some columns of the images, the most doubtful first."""
    table = means.doubts(labels).loc[order(means, labels)].reset_index()
    return [tuple(row) for row in table[["position", *columns]].values.tolist()]


def test_margins_are_averaged_up_to_the_lowest_loss() -> None:
    labels, means = known(LABELS[:3]), MeanMargins()
    orders = []
    for epoch, now in enumerate((at(2, 1, 2, -9), at(1, 9, 1, -9), at(3, 0, 900, -9), at(0.5, 0, 0, 2000))):
        means.add(now, epoch)
        orders.append(order(means, labels))
    assert orders == [[10, 0, 20], [0, 10, 20], [0, 10, 20], [20, 10, 0]]
    assert in_order(means, labels, "class", "since") == [(20, "2", 3), (10, "1", None), (0, "0", None)]
    found = means.doubts(labels)
    assert {*found["in_doubt"]} == {None}
    report = MemorizationReport(3, 3, samples=found)
    assert report.doubtful_labels is None
    assert [*report.label_doubts.values()] == sorted(found["doubt"], reverse=True)
    again = MeanMargins()
    again.load_state_dict(means.state_dict())
    again.add(at(0.4, 0, 5000, 1), 4)
    assert in_order(again, labels, "since") == [(10, 4), (20, 3), (0, None)]
    assert order(means, labels) == orders[-1]


def test_without_a_loss_every_validation_counts_and_other_images_begin_anew() -> None:
    labels, means = known(LABELS[:3]), MeanMargins()
    for now in (at(math.nan, 1, 2, 3), at(math.nan, 9, 1, 1)):
        means.add(now, 0)
    assert order(means, labels) == [0, 20, 10]
    means.add(at(5.0, 1, 2), 7)
    assert in_order(means, known(LABELS[:2]), "since") == [(10, 7), (0, 7)]


def judged(wrong: float, unsure: float, seed: int = 0) -> Tensor:
    """Margins of 2,000 images, a share of whose labels is wrong, by a network that is unsure of a share of images."""
    generator = torch.Generator().manual_seed(seed)
    leads, chance, is_wrong = torch.rand(3, 2000, generator=generator).double()
    contradicted = (is_wrong < wrong) ^ (chance < 0.5 * (1 - leads / unsure))
    return torch.stack([leads, leads.where(contradicted, -leads), leads])


@pytest.mark.parametrize("unsure", [0.05, 0.3, 0.6])
@pytest.mark.parametrize("wrong", [0, 0.02, 0.1])
def test_the_first_labels_are_in_doubt_as_many_as_are_wrong(wrong: float, unsure: float) -> None:
    margins, labels, means = judged(wrong, unsure), known(torch.zeros(2000).long()), MeanMargins()
    means.add(margins_of(margins, ["b"] * 2000, 1.0), 0)
    found = [in_doubt for _, in_doubt in in_order(means, labels, "in_doubt")]
    assert wrong / 2 <= found.count(True) / 2000 <= max(2 * wrong, 0.01)
    assert found == sorted(found, key=lambda in_doubt: not in_doubt)


def test_the_number_in_doubt_does_not_fall_when_the_network_learns_wrong_labels() -> None:
    labels, means, counts = known(torch.zeros(2000).long()), MeanMargins(), []
    for epoch, (wrong, unsure, loss) in enumerate([(0.1, 0.9, 3), (0.1, 0.3, 2), (0.001, 0.2, 1.9), (0, 0.01, 1.8)]):
        for _ in range(1 + 9 * (epoch > 1)):
            means.add(margins_of(judged(wrong, unsure), ["b"] * 2000, loss), epoch)
        counts.append([in_doubt for _, in_doubt in in_order(means, labels, "in_doubt")].count(True))
    assert counts[1] == counts[2] == counts[3]
    assert 100 <= counts[1] <= 400


def test_the_number_in_doubt_is_at_most_that_of_contradicted_labels_and_unknown_if_these_are_many() -> None:
    leads = torch.linspace(1, 0, 100).double()
    few, alike = leads.where(torch.arange(100) < 4, -leads), torch.zeros(100).long()
    assert share_of_wrong(few, leads, alike) == pytest.approx((0.04, 0.04))
    for left_out in (-few, few.where(leads > 0.01, torch.nan), judged(0.5, 0.3)[1, :100]):
        assert math.isnan(share_of_wrong(left_out, leads, alike)[0])
    for none_alike in (torch.arange(100), alike[:0]):
        assert math.isnan(share_of_wrong(few[: len(none_alike)], leads[: len(none_alike)], none_alike)[0])


def test_a_table_has_all_images_by_their_doubt_and_a_page_the_first(tmp_path: Path) -> None:
    means, margins = MeanMargins(), torch.rand(3, 70, generator=RNG).double()
    means.add(margins_of(margins, ["b"] * 70, 1.0), 4)
    report = MemorizationReport(70, 10, samples=means.doubts(known(torch.zeros(70).long())))
    report.save_csv(tmp_path / "labels.csv")
    rows = table(tmp_path / "labels.csv")
    assert [int(row["position"]) for row in rows] == [*report.label_doubts]
    assert {(row["class"], row["looks_like"]) for row in rows} == {("0", "b")}
    report.save_html(tmp_path / "labels.html")
    page = (tmp_path / "labels.html").read_text()
    assert "<title>Training labels</title>" in page
    ((_, rows),) = page_rows(page).items()
    assert [row["position"] for row in rows] == [*report.label_doubts][:64]


@pytest.mark.parametrize("classes", [1, 3])
def test_wrong_labels_of_classes_that_look_alike_count_although_their_leads_are_small(classes: int) -> None:
    """A quarter of the labels in some of ten classes are wrong, which halves the leads there."""
    predicted, clean, swapped = torch.arange(2000) % 10, judged(0, 0.3), judged(0.25, 0.3, seed=1) / 2
    margins = swapped.where(predicted < classes, clean)
    estimate, _ = share_of_wrong(margins[1], margins[2], predicted)
    assert 0.025 * classes / 2 <= estimate <= 0.025 * classes * 2


def test_the_class_of_most_doubt_and_its_file_are_named() -> None:
    features = torch.eye(3)[LABELS] + 0.01 * torch.randn(30, 3, generator=RNG)
    logits = torch.cat([features, features])
    wrong = LABELS.clone()
    wrong[4] = 2
    names = [f"{place}.png" for place in range(300)]
    texts, folder = ["abc"[label] for label in wrong.tolist()], str(Path("/data"))
    labels = known(train=texts, classes=("a", "b", "c"), names=names, val=["a"] * 30, folder=folder)
    seen, means = labels.measure_margins(logits, logits), MeanMargins()
    means.add(seen, 2)
    first, *others = in_order(means, labels, "name", "class", "looks_like", "path", "left_out")
    assert first[:4] == (40, "40.png", "c", "b")
    assert first[4] == os.path.abspath(os.path.join(folder, "40.png"))
    assert first[5] > max(other[5] for other in others) + 1
    report = MemorizationReport(30, 30, samples=means.doubts(labels))
    assert report.label_list(1).entries[0].reason == "labeled c, looks like b (since epoch 2)"
    assert seen.loss == pytest.approx(torch.nn.functional.cross_entropy(features, LABELS * 0).item())


@pytest.mark.parametrize(
    ("labels", "logits"),
    [
        (known(), None),
        (known(), torch.zeros(60, 2)),
        (known(train=["0"] * 29 + ["cat"]), torch.zeros(60, 3)),
        (known(train=[None] * 30), torch.zeros(60, 3)),
        (known(train=["cat"] * 30), torch.zeros(60, 3)),
        (known(), torch.zeros(60, 1)),
    ],
)
def test_labels_that_no_logit_belongs_to_are_not_judged(labels: KnownLabels, logits: Tensor | None) -> None:
    assert labels.measure_margins(logits, torch.rand(60, 4, generator=RNG)) is None


def test_without_features_or_labels_of_validation_images_the_logits_still_count() -> None:
    logits = torch.randn(60, 3, generator=RNG)
    for features in (None, torch.full((60, 2), torch.inf)):
        seen = known(val=[None] * 30).measure_margins(logits, features)
        torch.testing.assert_close(seen.margins[0], margins_over(LABELS, logits[:30].double()))
        assert seen.margins[1].isnan().all()
        assert math.isnan(seen.loss)


def test_images_without_a_label_are_left_out_and_the_others_are_judged_alike() -> None:
    logits, features = torch.randn(2, 60, 3, generator=RNG)
    train: list[str | None] = [str(label) for label in LABELS.tolist()]
    rest = [place for place in range(30) if place not in (4, 17)]
    fewer = known(LABELS[rest], val=["0"] * 29).measure_margins(
        logits[[*rest, *range(31, 60)]], features[[*rest, *range(31, 60)]]
    )
    train[4] = train[17] = None
    labels = known(train=train, val=[None, *["0"] * 29])
    seen, means = labels.measure_margins(logits, features), MeanMargins()
    torch.testing.assert_close(seen.margins[:, rest], fewer.margins)
    assert seen.margins[:, [4, 17]].isnan().all()
    assert seen.loss == pytest.approx(fewer.loss)
    means.add(seen, 0)
    assert sorted(order(means, labels)) == [10 * place for place in rest]


def test_an_image_that_is_missing_once_keeps_its_place_and_its_mean() -> None:
    labels, means = known(LABELS[:3]), MeanMargins()
    means.add(at(2, 4, 3, math.nan), 0)
    assert order(means, labels) == [0, 10]
    means.add(margins_of(at(1, 4, math.nan, 3.5).margins, ["b", "", "c"], 1), 1)
    assert in_order(means, labels, "looks_like", "since") == [
        (0, "b", 0),
        (20, "c", 1),
        (10, "b", 0),
    ]
    means.add(at(0.5, 4, 9, 3.5), 2)
    assert order(means, labels) == [10, 0, 20]


def test_a_comparison_judges_labels_by_the_features_and_logits_of_the_same_pass() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten())
    model, head = nn.Sequential(body, nn.Linear(144, 3)), 1
    pictures = torch.rand(60, 1, 8, 8, generator=RNG)
    sources = [ImageSource(part, "inputs", 16) for part in pictures.split(30)]
    seen = compare_outputs(model, *sources, model, Scores(), labels=known()).label_margins
    with torch.no_grad():
        features = body(pictures)
        expected = known().measure_margins(model[head](features), features)
    torch.testing.assert_close(seen.margins, expected.margins)
    assert seen.loss == pytest.approx(expected.loss)
    for train, noted in (([None] * 30, []), (["cat"] * 30, ["labels"])):
        unknown = compare_outputs(model, *sources, model, Scores(), labels=known(train=train))
        assert unknown.label_margins is None
        assert list(unknown.notes) == noted
