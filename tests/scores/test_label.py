"""Images are compared with the others of their class, each left out exactly, and wrong labels stand first."""

import pytest
import torch
from sklearn.metrics import average_precision_score
from torch.nn.functional import normalize

from lightning_anomaly.network.features import SampleStatistics
from lightning_anomaly.scores.label import Label
from lightning_anomaly.scores.scale import conformal_p_values


def drawn(count: int, seed: int = 0, classes: int = 3, width: int = 12) -> tuple[SampleStatistics, list[str | None]]:
    """Features of images around a mean for each class."""
    generator = torch.Generator().manual_seed(seed)
    means = 2 * torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    targets = torch.randint(classes, (count,), generator=generator)
    features = means[targets] + torch.randn(count, width, generator=generator)
    return SampleStatistics(features=features), [f"class {target}" for target in targets.tolist()]


def fitted(samples: SampleStatistics, labels: list[str | None]) -> Label:
    label = Label.fit(samples, labels)
    assert label is not None
    return label


@pytest.mark.parametrize("count", [20, 60])
def test_each_image_is_left_out_of_its_mean_and_of_the_covariance_exactly(count):
    samples, labels = drawn(count)
    label = fitted(samples, labels)
    targets = torch.tensor([label.names.index(name) for name in labels])
    distances, others = label.distances(samples, targets, left_out=True)
    vectors, freedom = normalize(samples.features.double()), count - 3
    centered = vectors - torch.stack([vectors[targets == target].mean(0) for target in range(3)])[targets]
    ridge = 0.03 * centered.square().sum() / freedom * torch.eye(12, dtype=torch.float64)
    for row in range(0, count, 7):
        rest = torch.arange(count) != row
        means = torch.stack([vectors[rest & (targets == target)].mean(0) for target in range(3)])
        within = (vectors - means[targets])[rest]
        covariance = within.T @ within / freedom + ridge
        away = vectors[row] - means
        expected = (away @ torch.linalg.inv(covariance) * away).sum(1)
        torch.testing.assert_close(distances[row], expected, rtol=1e-8, atol=1e-8)
        assert others[row].tolist() == [int((rest & (targets == target)).sum()) for target in range(3)]


def test_wrong_labels_and_other_things_stand_first():
    samples, labels = drawn(300)
    wrong, odd = torch.arange(300) < 12, torch.arange(300) >= 290
    truth = labels[:12]
    labels[:12] = [f"class {(int(name[-1]) + 1) % 3}" for name in truth]
    samples.features[odd] = torch.randn(10, 12, generator=torch.Generator().manual_seed(5)) * 3
    label = fitted(samples, labels)
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
    measures = fitted(samples, labels).measure(samples, labels, left_out=True)
    assert torch.stack([measures.label[:4], measures.content[:4]]).isnan().all()
    assert measures.label[4:].isfinite().all()
    new = fitted(samples, labels).measure(samples, ["unheard of", *labels[1:]])
    assert new.label.isnan()[:4].tolist() == [True, True, True, True]
    assert new.label[4:].isfinite().all()


def test_many_features_are_reduced_and_nan_is_infinitely_far():
    samples, labels = drawn(200, width=2500)
    label = fitted(samples, labels)
    assert label.whitening.shape[1] <= 512
    samples.features[3, 7] = torch.nan
    measures = label.measure(samples, labels)
    assert measures.content[3] == torch.inf
    assert measures.content.isinf().sum() == 1


def test_p_values_of_the_label_are_honest():
    shares = []
    for seed in range(40):
        samples, labels = drawn(400, seed)
        parts = slice(75), slice(75, 100), slice(100, 200), slice(200, 400)
        fit, scale, calibration, new = ((samples.select(part), labels[part]) for part in parts)
        label = Label.fit(*fit, scale)
        assert label is not None
        known, found = (label.label.scores(label.measure(*part).label[:, None])[0] for part in (calibration, new))
        shares.append((conformal_p_values(found, known.sort().values) <= 0.1).double().mean())
    assert torch.stack(shares).mean() == pytest.approx(0.1, abs=0.02)
