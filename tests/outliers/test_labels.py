"""Classes come with the data, wrong ones stand first, and those that tell nothing change nothing."""

from typing import Any

import pytest
import torch
from datasets import Items
from reports import table
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_anomaly import OutlierDetector, find_outliers

COUNT = 600
ORDER = torch.randperm(1797, generator=torch.Generator().manual_seed(0))  # several writers
IMAGES = torch.from_numpy(load_digits().images)[ORDER].float()[:, None] / 16
TRUTH = torch.from_numpy(load_digits().target)[ORDER].long()
WRONG = [3, 77, 150, 301, 402]
FILED = TRUTH.clone()
FILED[WRONG] = (FILED[WRONG] + 1) % 10


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def test_wrong_labels_stand_first_with_the_class_that_they_look_like(net):
    digits: Any = TensorDataset(IMAGES[:COUNT], FILED[:COUNT])
    digits.targets, digits.classes = FILED[:COUNT].tolist(), [f"digit {number}" for number in range(10)]
    report = find_outliers(digits, net)
    assert average_precision_score(FILED[:COUNT] != TRUTH[:COUNT], report.label_scores) > 0.5
    samples = report.samples
    assert [*samples["class"].loc[WRONG]] == [f"digit {FILED[place]}" for place in WRONG]
    assert [*samples["looks_like"].loc[WRONG]] == [f"digit {TRUTH[place]}" for place in WRONG]
    reason = f"filed under digit {FILED[3]}, clearly looks like digit {TRUTH[3]}"
    assert report.outlier_reasons(3)["label"] == reason
    assert reason in str(report)
    assert torch.equal(report.scores, torch.maximum(report.look_scores, report.content_scores))
    alike = torch.nn.functional.cosine_similarity(IMAGES[WRONG].flatten(1)[:, None], IMAGES[:COUNT].flatten(1), dim=2)
    for place, values in zip(WRONG, alike, strict=True):  # the features are the pixels
        values[place] = -1
        for side, label in enumerate((FILED[place], TRUTH[place])):
            near = values.where(FILED[:COUNT] == label, -1).argsort(descending=True)[:3]
            assert samples["nearest"][place][side] == near.tolist()
            assert {*near.tolist()} <= {*report.pictures}
    assert {*samples["nearest"][samples["class"] == samples["looks_like"]]} == {None}


def test_what_is_filed_elsewhere_does_not_depend_on_how_much_is(net):
    """With a fifth of wrong labels the list was empty, although these stood first."""
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))
    for share, listed in ((0.0, 0.06), (0.05, 0.12), (0.2, 0.3)):
        filed, wrong = TRUTH[:COUNT].clone(), {*order[: int(share * COUNT)].tolist()}
        filed[[*wrong]] = (filed[[*wrong]] + 1) % 10
        report = find_outliers(IMAGES[:COUNT], net, labels=filed.tolist())
        found, perhaps = {*report.filed_elsewhere}, {*report.perhaps_elsewhere}
        assert len(found & wrong) >= 0.75 * len(wrong)
        assert len(found) <= listed * COUNT
        assert not found & perhaps
        assert found | perhaps == {*report.samples.query("looks_like != `class`").index}
        lists = {part.name: [entry.position for entry in part.entries] for part in report.lists(5)}
        assert lists["label"] == report.filed_elsewhere
        assert lists["perhaps"] == report.perhaps_elsewhere[:5]


def test_labels_that_tell_nothing_are_noted_and_change_nothing(net):
    plain = find_outliers(IMAGES[:COUNT], net)
    assert plain.label_scores.isnan().all()
    assert {*plain.samples["class"]} == {""}
    halves = ["train" if place % 5 else "val" for place in range(COUNT)]
    for labels in (halves, ["all"] * COUNT):
        with pytest.warns(UserWarning, match="tell nothing"):
            found = find_outliers(IMAGES[:COUNT], net, labels=labels)
        assert torch.equal(found.scores, plain.scores)
        assert found.label_scores.isnan().all()
    assert torch.equal(find_outliers(IMAGES[:COUNT], net, labels=[None] * COUNT).scores, plain.scores)
    for labels, error in ((["a"], ValueError), (3, TypeError)):
        with pytest.raises(error, match="`labels`"):
            find_outliers(IMAGES[:COUNT], net, labels=labels)


def test_an_image_in_two_classes_is_in_a_list_of_its_own_in_the_tables_and_on_the_page(net, tmp_path):
    images, labels = IMAGES[:COUNT].clone(), [f"={label}" for label in TRUTH[:COUNT].tolist()]
    images[20], labels[20] = images[10], f"={(TRUTH[10] + 1) % 10}"
    images[60], labels[40] = images[50], None
    labels[50] = labels[60] = f"={(TRUTH[50] + 1) % 10}"  # copies in one class, filed wrongly
    report = find_outliers(images, net, labels=labels)
    scores = report.label_scores[report.filed_elsewhere].tolist()
    assert scores == sorted(scores, reverse=True)
    assert {20, 50, 60} <= {*report.filed_elsewhere}
    assert [group.positions for group in report.filed_twice] == [[10, 20]]
    assert report.outlier_reasons(10)["label"] == f"filed under {labels[10]}, also under {labels[20]}"
    assert report.label_scores[40].isnan()
    report.save_csv(tmp_path / "rows.csv", 5)
    rows = {int(row["position"]): row for row in table(tmp_path / "rows.csv")}
    assert rows[10]["class"] == rows[10]["looks_like"] == f"./{labels[10]}"
    assert {*report.filed_elsewhere} <= {*rows}
    lists = {part.name: part.entries for part in report.lists()}
    assert [entry.score for entry in lists["label"]] == scores
    assert [entry.position for entry in lists["twice"]] == [10, 20]
    assert all(report.outlier_reasons(entry.position)["label"] in entry.reason for entry in lists["twice"])
    assert {*report.pictures} >= {*report.filed_elsewhere[:100]}


def test_a_copy_in_another_class_does_not_speak_against_an_image(net):
    generator, classes = torch.Generator().manual_seed(1), torch.arange(150) % 3
    images = 0.2 * torch.randn(150, 1, 8, 8, generator=generator) + 0.5
    images += 0.1 * torch.randn(3, 1, 8, 8, generator=generator)[classes]
    plain = find_outliers(images, net, labels=classes.tolist())
    right = plain.samples.query("looks_like == `class`").index[:20].tolist()
    filed = torch.cat([classes, (classes[right] + 1) % 3]).tolist()
    report = find_outliers(torch.cat([images, images[right]]), net, labels=filed)
    assert [group.positions for group in report.duplicates] == [[place, 150 + i] for i, place in enumerate(right)]
    assert not {*right} & {*report.filed_elsewhere}  # two of them were, and six looked like the class of their copy
    agree = report.samples.loc[right].query("looks_like == `class`")
    assert len(agree) >= 18
    assert {*agree["nearest"]} == {None}
    assert len({*range(150, 170)} & {*report.filed_elsewhere}) >= 15


def test_a_labelled_reference_gives_honest_p_values_and_is_saved(net, tmp_path):
    reference, new = TensorDataset(IMAGES[:1000], TRUTH[:1000]), TensorDataset(IMAGES[1000:1600], TRUTH[1000:1600])
    detector = OutlierDetector(net).fit(reference)
    detector.save(tmp_path / "detector.pt")
    loaded = OutlierDetector.load(tmp_path / "detector.pt", net)
    report, again = detector.search(new), loaded.search(new)
    assert torch.equal(again.label_scores, report.label_scores)
    assert again.samples.equals(report.samples)
    for name in ("label", "content"):
        p_values = report.samples[f"{name}_p_value"]
        for level in (0.05, 0.2):
            assert (p_values <= level).mean() <= level + 3.5 * (level / 270) ** 0.5
    wrong = loaded.search(new, labels=[*((TRUTH[1000:1010] + 1) % 10).tolist(), *TRUTH[1010:1600].tolist()])
    assert len({*wrong.top(14, by="label")} & {*range(10)}) >= 7
    assert wrong.samples["label_p_value"][:10].median() < 0.02
    # Without classes, or with others, the search is that of a reference without classes.
    plain = OutlierDetector(net).fit(IMAGES[:1000]).search(IMAGES[1000:1600])
    for labels in ([None] * 600, ["unknown"] * 600):
        found = loaded.search(new, labels=labels)
        torch.testing.assert_close(found.p_values, plain.p_values)
        assert found.label_scores.isnan().all()
    torch.testing.assert_close(detector.score(IMAGES[1000:1010]), plain.scores[:10])


def test_of_many_images_each_class_is_judged_and_those_of_the_fit_are_no_odder(net):
    """Of 6,000 images in classes of twelve, 1,104 had no label score, and fitted ones stood first twice as often."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(100).repeat_interleave(12)
    images = torch.randn(100, 64, generator=generator)[labels] + torch.randn(1200, 64, generator=generator)
    read = list[int]()

    def item(index: int) -> Tensor:
        read.append(index)
        return images[index].view(1, 8, 8)

    found = find_outliers(Items(1200, item, targets=labels.tolist()), net, max_reference=400)
    fitted = torch.zeros(1200).index_fill(0, torch.tensor(read[1:401]), 1)
    assert not found.label_scores.isnan().any()
    for scores in (found.label_scores, found.content_scores):
        assert fitted[scores.argsort(descending=True)[:150]].mean() < 1.3 * fitted.mean()
    # Where there are too many classes, some are judged.
    few = find_outliers(images.view(-1, 1, 8, 8), net, labels=labels.tolist(), max_reference=150)
    assert few.label_scores.isfinite().sum() >= 40 * 12


def test_one_hot_labels_are_an_error_that_says_what_is_allowed():
    rows = torch.eye(3)[torch.arange(COUNT) % 3]
    with pytest.raises(ValueError, match=r"`labels`.*name or a number for each image.*`labels.argmax\(1\)`"):
        find_outliers(IMAGES[:COUNT], nn.Conv2d(1, 4, 3), labels=rows)
