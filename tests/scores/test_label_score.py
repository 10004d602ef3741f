"""Images are compared with the others of their class, each left out exactly, and wrong labels stand first."""

from collections.abc import Callable

import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from lightning_anomaly.network.features import SampleStatistics
from lightning_anomaly.scores.distributions import conformal_p_values
from lightning_anomaly.scores.label_score import Label, predicted_label_view


def drawn(count: int, seed: int = 0, classes: int = 3, width: int = 12) -> tuple[SampleStatistics, list[str | None]]:
    """Features of images around a mean for each class."""
    generator = torch.Generator().manual_seed(seed)
    means = 2 * torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    targets = torch.randint(classes, (count,), generator=generator)
    features = means[targets] + torch.randn(count, width, generator=generator)
    return SampleStatistics(features=features), [f"class {target}" for target in targets.tolist()]


def ridge_on(samples: SampleStatistics, labels: list[str | None]) -> tuple[Tensor, Callable[[Tensor], Ridge]]:
    """Make the vectors of images, and a function that fits scikit-learn's regression to some of them."""
    targets = torch.tensor([int(name[-1]) for name in labels])
    weights = targets.bincount().double()[targets] ** -0.5
    weights /= weights.sum()
    roots = normalize(samples.features.sign() * samples.features.double().abs() ** 0.5)
    vectors = normalize(roots - weights @ roots)
    alpha = 0.004 * float(weights @ (vectors - weights @ vectors).square().sum(1))
    return vectors, lambda rest: Ridge(alpha).fit(vectors[rest], one_hot(targets)[rest], sample_weight=weights[rest])


@pytest.mark.parametrize(("count", "width"), [(20, 12), (60, 12), (40, 50)])
def test_classes_are_predicted_by_a_ridge_regression_on_the_other_images(count, width):
    samples, labels = drawn(count, width=width)
    measures = Label.fit(samples, labels).measure(samples, labels, left_out=True)
    targets = torch.tensor([int(name[-1]) for name in labels])
    vectors, fit = ridge_on(samples, labels)
    for row in range(0, count, 7):
        predicted = fit(torch.arange(count) != row).predict(vectors[row : row + 1])[0]
        others = [value for place, value in enumerate(predicted) if place != targets[row]]
        assert measures.label[row].item() == pytest.approx(max(others) - predicted[targets[row]], abs=1e-8)
        assert measures.looks_like[row] == predicted.argmax()


def test_copies_are_predicted_without_all_of_them():
    samples, labels = drawn(40, width=50)
    copies, targets = [3, 11, 19], torch.tensor([int(name[-1]) for name in labels])
    label = Label.fit(samples, labels)
    left_out = torch.tensor([targets[3], targets[11], -1])  # the last was not in the fit
    alone = label.ridge.predict_without(samples.features[copies[:1]], targets[copies[:1]])
    torch.testing.assert_close(alone, label.ridge.predict(samples.features[copies[:1]], targets[copies[:1]]))
    found = label.ridge.predict_without(samples.features[copies], left_out)
    vectors, fit = ridge_on(samples, labels)
    rest = torch.ones(40, dtype=torch.bool).index_fill(0, torch.tensor(copies[:2]), False)
    torch.testing.assert_close(found, torch.from_numpy(fit(rest).predict(vectors[copies])))
    few = [*labels[:20], *["few"] * 3, *labels[23:]]
    view, looks_like = Label.fit(samples, few).score_copies(samples.features[19:22], few[19:22])
    assert view.scores.isnan().tolist() == [False, True, True]  # only one more is of their class
    assert "few" not in looks_like[1:]


def test_images_are_compared_with_the_others_of_their_class():
    samples, labels = drawn(60)
    label = Label.fit(samples, labels)
    within, beside = (label.measure(samples, labels, left_out=left_out).content for left_out in (True, False))
    unit, targets = normalize(samples.features.double()), torch.tensor([int(name[-1]) for name in labels])
    for row in range(0, 60, 7):
        alike = targets == targets[row]
        # Images beside those of the fit are compared with one image more, and would seem nearer by this factor.
        more = 1 - 1 / alike.sum().double() ** 2
        for found, chosen, factor in ((within, alike & (torch.arange(60) != row), 1), (beside, alike, more)):
            expected = ((unit[row] - unit[chosen].mean(0)).square().sum() / factor).log()
            torch.testing.assert_close(found[row], expected)


def test_wrong_labels_and_other_things_stand_first():
    samples, labels = drawn(300)
    wrong, odd = torch.arange(300) < 12, torch.arange(300) >= 290
    truth = labels[:12]
    labels[:12] = [f"class {(int(name[-1]) + 1) % 3}" for name in truth]
    samples.features[odd] = torch.randn(10, 12, generator=torch.Generator().manual_seed(5)) * 3
    label = Label.fit(samples, labels)
    measures = label.measure(samples, labels, left_out=True)
    assert average_precision_score(wrong, measures.label) > 0.95
    assert average_precision_score(odd, measures.content.where(~wrong, 0)) > 0.9
    assert [label.names[place] for place in measures.looks_like[:12].tolist()] == truth


def test_labels_that_are_shuffled_alone_or_of_one_class_tell_nothing():
    samples, labels = drawn(300)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0)).tolist()
    for names in ([labels[place] for place in order], [f"{place}" for place in range(300)], ["a"] * 300, [None] * 300):
        assert Label.fit(samples, names) is None
    assert Label.fit(samples._replace(features=torch.ones(300, 12)), labels) is None


def test_two_classes_suffice_and_an_image_of_a_small_or_unknown_class_has_no_label_measure():
    samples, labels = drawn(200, classes=2)
    labels[:4] = "alone", "pair", "pair", None
    measures = Label.fit(samples, labels).measure(samples, labels, left_out=True)
    assert torch.stack([measures.label[:4], measures.content[:4]]).isnan().all()
    assert measures.label[4:].isfinite().all()
    ridge, unknown = Label.fit(samples, labels).ridge, torch.full((200,), -1)
    torch.testing.assert_close(ridge.predict(samples.features, unknown), ridge.predict(samples.features))
    new = Label.fit(samples, labels).measure(samples, ["unheard of", *labels[1:]])
    assert new.label.isnan()[:4].tolist() == [True, True, True, True]
    assert new.label[4:].isfinite().all()


def test_the_order_of_images_with_many_features_changes_nothing_and_nan_is_infinitely_far():
    samples, _ = drawn(600, width=2500)
    labels = [f"class {place % 2}" for place in range(600)]
    samples.features[1::2] += torch.randn(2500, generator=torch.Generator().manual_seed(7)) / 4
    label = Label.fit(samples, labels)
    measures = label.measure(samples, labels, left_out=True)
    order = [*range(0, 600, 2), *range(1, 600, 2)]
    sorted_samples, sorted_labels = samples.select(order), [labels[place] for place in order]
    moved = Label.fit(sorted_samples, sorted_labels).measure(sorted_samples, sorted_labels, left_out=True)
    torch.testing.assert_close(moved.content, measures.content[order])
    torch.testing.assert_close(moved.label, measures.label[order])
    assert (measures.looks_like == torch.arange(600) % 2).double().mean() > 0.95
    samples.features[3, 7] = torch.nan
    samples.features[5] = torch.randn(2500, generator=torch.Generator().manual_seed(8))  # beside all components
    measures = label.measure(samples, labels)
    assert measures.content[3] == torch.inf
    assert measures.content.isinf().sum() == 1
    assert measures.label[3].isnan()
    assert measures.content.where(measures.content.isfinite(), -1).argmax() == 5


def test_p_values_of_the_label_are_honest():
    shares = []
    for seed in range(40):
        samples, labels = drawn(400, seed)
        parts = slice(100), slice(100, 200), slice(200, 400)
        fit, calibration, new = ((samples.select(part), labels[part]) for part in parts)
        label = Label.fit(*fit)
        known, found = (label.label.scores(label.measure(*part).label[:, None])[0] for part in (calibration, new))
        shares.append((conformal_p_values(found, known.sort().values) <= 0.1).double().mean())
    assert torch.stack(shares).mean() == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("names", [(), ("ape", "bee", "cat")])
def test_the_label_that_a_network_doubts_stands_first(names):
    targets = torch.arange(60) % 3
    logits = 3 * one_hot(targets) + torch.rand(60, 3, generator=torch.Generator().manual_seed(0))
    named = names or ("0", "1", "2")
    labels = [named[target] for target in targets.tolist()]
    labels[4] = named[0]
    logits[7, 1] -= 1.5  # unsure, and right
    logits[9, 1] = torch.nan
    view = predicted_label_view(logits, labels, names)
    assert view.scores.nan_to_num(-1).argmax() == 4
    assert view.scores.isnan().nonzero()[:, 0].tolist() == [9]
    assert [place for place, reason in enumerate(view.reasons) if reason] == [4]
    assert view.reasons[4] == f"labeled {named[0]}, predicted {named[1]}"
    assert predicted_label_view(logits, ["unknown", *labels[1:]], names) is None
    assert predicted_label_view(logits, [*labels[1:], labels[0]], names) is None
    assert predicted_label_view(logits[:3], labels[:3], names) is None  # too few to tell
