"""A loaded detector gives the same scores, p-values are exact, and broken files do not change other results."""

import math
import threading
from dataclasses import replace

import pytest
import torch
from datasets import Broken
from lightning_anomaly.outliers.combine import conformal_p_values
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from lightning_anomaly import OutlierDetector, OutlierReport, analyze, find_outliers
from lightning_anomaly.capture.samples import SampleStatistics
from lightning_anomaly.outliers.scorer import Statistics, fit_scorers

DIGITS = torch.from_numpy(load_digits().images).float()[:, None] / 16


def classifier(classes: int = 10) -> nn.Sequential:
    torch.manual_seed(0)
    convs = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3)
    return nn.Sequential(*convs, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes))


@pytest.fixture(scope="module")
def fitted() -> OutlierDetector:
    return OutlierDetector(classifier()).fit(DIGITS[:800])


def test_a_loaded_detector_gives_the_same_scores(fitted, tmp_path):
    fitted.save(tmp_path / "detector.pt")
    content = torch.load(tmp_path / "detector.pt", weights_only=True)
    assert content["version"] == 1
    loaded = OutlierDetector.load(tmp_path / "detector.pt", classifier())
    images = torch.cat([DIGITS[800:900], torch.rand(5, 1, 8, 8)])
    scores = fitted.score(images)
    assert torch.equal(loaded.score(images), scores)
    assert torch.equal(loaded.p_values(scores), fitted.p_values(scores))
    report, expected = loaded.search(images), fitted.search(images)
    assert report.rows() == expected.rows()
    assert torch.equal(report.images, expected.images)


def test_scores_do_not_depend_on_the_batch_size_and_equal_those_of_find_outliers(fitted):
    images = DIGITS[800:870]
    report = find_outliers(classifier(), images, DIGITS[:800])
    torch.testing.assert_close(fitted.score(images), report.scores, rtol=1e-6, atol=1e-6)
    alone = torch.cat([fitted.score(image[None]) for image in images])
    torch.testing.assert_close(alone, report.scores, rtol=1e-5, atol=1e-5)
    assert torch.equal(fitted.search(images, batch_size=7).p_values, report.p_values)


def test_a_model_without_classes_is_scored_by_its_pixels_and_filters(tmp_path):
    model = classifier()[:5]
    detector = OutlierDetector(model).fit(DIGITS[:400])
    detector.save(tmp_path / "detector.pt")
    images = DIGITS[400:450]
    scores = OutlierDetector.load(tmp_path / "detector.pt", model).score(images)
    torch.testing.assert_close(scores, detector.search(images).scores)
    assert {*detector.search(images).view_scores} == {"pixels", "filters"}


def test_filters_of_a_norm_without_weights_explain_a_score(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8, affine=False))
    detector = OutlierDetector(model, layers=["1"]).fit(DIGITS[:200])
    detector.save(tmp_path / "detector.pt")
    images = DIGITS[200:250]
    assert torch.equal(OutlierDetector.load(tmp_path / "detector.pt", model).score(images), detector.score(images))


def test_another_model_file_version_or_image_shape_is_refused(fitted, tmp_path):
    fitted.save(tmp_path / "detector.pt")
    wider = classifier()
    wider[4] = nn.Conv2d(16, 30, 3)
    with pytest.raises(ValueError, match=r"Layer '4' should have a weight of shape \[32, 16, 3, 3\]. Found \[30, 16"):
        OutlierDetector.load(tmp_path / "detector.pt", wider)
    with pytest.raises(ValueError, match=r"Layer '0' .*Found no such layer"):
        OutlierDetector.load(tmp_path / "detector.pt", nn.Conv2d(1, 1, 1))
    torch.save({"version": 0}, tmp_path / "old.pt")
    with pytest.raises(ValueError, match=r"version 1\. Found 0\."):
        OutlierDetector.load(tmp_path / "old.pt", classifier())
    with pytest.raises(ValueError, match="should be fitted first"):
        OutlierDetector(classifier()).score(DIGITS[:5])
    with pytest.raises(ValueError, match=r"`images` should hold images of the shape of the reference, \(1, 8, 8\)"):
        fitted.score(torch.rand(5, 1, 9, 9))


def test_threads_get_the_same_scores_and_leave_the_model_unchanged(fitted):
    fitted.model.train()
    expected, scores = fitted.score(DIGITS[800:]), {}
    threads = [
        threading.Thread(target=lambda part=part: scores.update({part: fitted.score(DIGITS[800 + 50 * part :][:50])}))
        for part in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.testing.assert_close(torch.cat([scores[part] for part in range(8)]), expected[:400], rtol=1e-6, atol=1e-6)
    assert all(module.training and not module._forward_hooks for module in fitted.model.modules())


def test_max_reference_limits_the_reference():
    report = OutlierDetector(classifier()).fit(DIGITS[:600], max_reference=150).search(DIGITS[600:610])
    assert (report.n_reference, report.n_calibration) == (150, 75)


def test_unreadable_files_are_listed_last_and_do_not_change_other_results(fitted):
    images = torch.cat([torch.rand(12, 1, 8, 8), DIGITS[1000:1200]])
    whole = fitted.search(images)
    with pytest.warns(UserWarning, match="^30 of the 242 images cannot be read, the first at position"):
        report = fitted.search(Broken(torch.cat([DIGITS[:30], images]), *range(30)))
    assert report.unusable == [*range(30)]
    assert [index - 30 for index in report.significant] == whole.significant
    assert report.min_detectable == whole.min_detectable
    assert [index - 30 for index in report.top(1000)] == whole.top(1000)
    assert [row["position"] for row in report.rows()][-30:] == report.unusable
    assert report.p_values[:30].isnan().all()
    torch.testing.assert_close(report.p_values[30:], whole.p_values)


def scores_of(values: Tensor) -> tuple[Tensor, Tensor]:
    """Score the last 200 samples and the calibration samples; the others are split as a detector splits a reference."""
    layers = {f"layer {i}": layer for i, layer in enumerate(values.unbind(1))}
    samples = Statistics(torch.arange(len(values)), layers, SampleStatistics())
    count = len(values) - 200
    parts = slice(3 * count // 8), slice(3 * count // 8, count // 2), slice(count // 2, count), slice(count, None)
    fit, scale, calibration, new = (samples.select(part) for part in parts)
    (scorer,) = fit_scorers([(fit, scale)], "reference")
    return scorer.judge(new).scores, scorer.judge(calibration).scores.sort().values


@pytest.mark.parametrize(("count", "layers"), [(100, 1), (100, 20), (200, 20)])
def test_p_values_are_exact_for_small_references_and_many_layers(count, layers):
    """When the scale of scores was fitted to the calibration images, P(p <= 0.1) was 0.126."""
    fits = 60
    shares: dict[float, list[float]] = {0.05: [], 0.1: []}
    for seed in range(fits):
        values = torch.randn(count + 200, layers, 2, 5, generator=torch.Generator().manual_seed(seed))
        p_values = conformal_p_values(*scores_of(values))
        for level, measured in shares.items():
            measured.append((p_values <= level).double().mean().item())
    for level, measured in shares.items():
        share = torch.tensor(measured)
        exact = math.floor(level * (1 + count / 2)) / (1 + count / 2)
        assert share.mean().item() == pytest.approx(exact, abs=3 * share.std().item() / math.sqrt(fits))


def test_broken_files_do_not_change_which_images_are_significant(fitted):
    """An infinite score has no p-value: 100 of them once raised the threshold for the readable images."""
    report = fitted.search(DIGITS[800:1400])
    significant = []
    for broken in (0, 30, 100):
        scores = torch.cat([report.scores, torch.full((broken,), torch.inf)])
        p_values = fitted.p_values(scores)
        significant.append(replace(report, scores=scores, p_values=p_values).significant)
    assert significant[0] == significant[1] == significant[2]


@pytest.mark.filterwarnings("ignore")
def test_unknown_classes_are_found_and_the_class_view_is_no_worse_than_the_energy():
    """For a network trained without two of the digits; filters and pixels alone gave AUROCs of 0.80 to 0.88."""
    labels = torch.from_numpy(load_digits().target)
    trained, model = labels < 8, classifier(8)
    train, targets = DIGITS[trained][:1000], labels[trained][:1000]
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    order = torch.Generator().manual_seed(0)
    for _ in range(25):
        for batch in torch.randperm(len(train), generator=order).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(train[batch]), targets[batch]).backward()
            optimizer.step()
    images = torch.cat([DIGITS[trained][1000:], DIGITS[~trained][:20]])
    odd = torch.arange(len(images)) >= len(images) - 20
    for report in (analyze(model, images), find_outliers(model, images, train)):
        views = report.view_scores
        scores = report.scores if isinstance(report, OutlierReport) else report.outlier_scores
        assert roc_auc_score(odd, scores) >= 0.9
        assert roc_auc_score(odd, views["features"] + views["logits"]) >= roc_auc_score(odd, views["logits"]) - 0.01
