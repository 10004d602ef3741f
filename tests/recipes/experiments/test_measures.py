"""What is measured, against other ways to the same numbers."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.feature_selection import f_classif
from sklearn.metrics import accuracy_score, roc_auc_score
from torch import nn
from torch.nn import functional

from lightning_anomaly import analyze
from recipes.common.networks import build
from recipes.experiments.fitting import watched_layers
from recipes.experiments.measures import gradients, h1, output, two_sample
from recipes.experiments.measures.pool import auroc

RNG = torch.Generator().manual_seed(0)
POINTS = torch.randn(5, 60, 2, generator=RNG, dtype=torch.float64)


def test_kurtosis_is_scipys() -> None:
    values = POINTS[:, :, 0].exp()
    expected = scipy.stats.kurtosis(values.numpy(), axis=1, fisher=False)
    torch.testing.assert_close(h1.kurtosis(values), torch.from_numpy(expected))


def test_class_separation_is_that_of_an_analysis_of_variance() -> None:
    labels = torch.arange(60) % 4
    flat = torch.stack([POINTS[:, :, 0], torch.zeros(5, 60, dtype=torch.float64)], 2)
    f, _ = f_classif(flat[:, :, 0].T.numpy(), labels.numpy())
    expected = torch.from_numpy(3 * f / (3 * f + 56))  # between over total, from their ratio
    torch.testing.assert_close(h1.class_separation(flat, labels), expected)


def test_layer_statistics_count_what_was_planted(trained: Any) -> None:
    report = analyze(trained.model, trained.probe)
    layer = next(layer for layer in report.layers.values() if layer.filters("anomaly"))
    labels = torch.arange(len(trained.probe)) % 3
    found = h1.layer_statistics(layer, labels)
    assert found["count"] == len(layer.filters("anomaly"))
    assert found["live"] == len(layer.verdicts) - len(layer.filters("dead"))
    assert found["set_apart"] == len(layer.isolated_filters)
    points, outliers = layer.points.double(), layer.outliers
    far = 0
    for index in layer.filters("anomaly"):
        distances = np.linalg.norm(points[index, outliers[index]][:, None] - points[index, ~outliers[index]], axis=2)
        far += distances.min() >= 1
    assert found["isolated"] == far
    live = layer.filters("anomaly") + layer.filters("normal")
    assert found["outside"] == pytest.approx(1 - layer.explained[live].mean().item())


def test_gradient_disparity_is_the_mean_distance_of_pairs() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).double()
    inputs, targets = torch.randn(10, 2, 8, 8, dtype=torch.float64, generator=RNG), torch.arange(10) % 5
    rows = []
    for batch in torch.arange(10).split(2):
        model.zero_grad()
        functional.cross_entropy(model(inputs[batch]), targets[batch]).backward()
        rows.append(torch.cat([p.grad.flatten().clone() for p in model.parameters()]))
    pairs = [(a - b).norm() for place, a in enumerate(rows) for b in rows[:place]]
    assert gradients.batch_disparity(model, inputs, targets, 2) == pytest.approx(torch.stack(pairs).mean().item())


def test_responses_are_those_of_the_layers_and_the_logits_those_of_the_network() -> None:
    for name, place in (("lenet5", 3), ("simple_cnn_bn", 1)):  # of the latter what the BatchNorm gives
        images = torch.rand(4, 1, 32, 32, generator=RNG)
        model = build(name, 1, 10).eval()
        values, logits = two_sample.responses(model, images)
        with torch.no_grad():
            maps = model[: place + 1](images).relu()
            torch.testing.assert_close(logits, model(images))
        torch.testing.assert_close(values["mean"][str(place)], maps.mean((2, 3)).T)
        torch.testing.assert_close(values["max"][str(place)], maps.amax((2, 3)).T)
        assert list(values["units"]) == (["9", "12"] if name == "lenet5" else ["14"])
    assert watched_layers(model)["5"] == "4"


def test_filters_that_respond_to_one_kind_of_images_are_counted_and_dead_ones_are_not() -> None:
    values = torch.rand(4, 300, generator=torch.Generator().manual_seed(0))
    values[1, :200] += 0.3
    values[2] = 0
    values[3] = 1 - values[1]
    found, by_chance = two_sample.compare({"mean": {"0": values}, "max": {"0": values[2:3]}, "units": {}}, 200)
    assert (found["mean"]["0"]["count"], found["mean"]["0"]["live"]) == (2, 3)
    area = [roc_auc_score([True] * 200 + [False] * 100, row) for row in values[[0, 1, 3]]]
    assert found["mean"]["0"]["auc"] == pytest.approx(sum(area) / 3)
    assert found["max"]["0"] == {"count": 0, "live": 0, "auc": 0.5}
    # Two of three, but these two are found together: chance does that about once in a hundred times.
    assert by_chance["p mean fraction"] == by_chance["p mean fraction last"] == pytest.approx(0.01, abs=0.008)
    assert by_chance["p max fraction"] == by_chance["p max auc"] == 1
    assert not any(name.startswith("p units") for name in by_chance)


def test_areas_of_the_output_are_scikit_learns() -> None:
    train, val = (scale * torch.randn(n, 5, generator=RNG).double() for scale, n in ((2, 300), (1, 200)))
    labels = [torch.randint(5, (n,), generator=RNG) for n in (300, 200)]
    found = output.compare_outputs(train, val, *labels)
    truth, both = [True] * 300 + [False] * 200, torch.cat([train, val])
    assert found["confidence_auc"] == pytest.approx(roc_auc_score(truth, both.softmax(1).amax(1)))
    losses = functional.cross_entropy(both, torch.cat(labels), reduction="none")
    assert found["loss_auc"] == pytest.approx(roc_auc_score(truth, -losses))
    errors = [1 - own.softmax(1).amax(1).mean().item() for own in (train, val)]
    assert found["confidence_error_ratio"] == pytest.approx(errors[1] / errors[0])
    made = 1 - accuracy_score(labels[1], val.argmax(1))
    assert math.exp(found["log_overconfidence"]) == pytest.approx(made / errors[1])


def test_areas_of_scores_are_scikit_learns() -> None:
    truth, values = torch.rand(80, generator=RNG) < 0.2, torch.randint(0, 9, (80,), generator=RNG).double()
    assert auroc(truth, values) == pytest.approx(roc_auc_score(truth, values))


def test_the_rise_of_fewer_images_is_theirs() -> None:
    everything, few = output.Rises(), output.Rises()
    for scale in (1, 1, 1, 3):
        train = scale * torch.randn(300, 5, generator=RNG).double()
        val = torch.randn(200, 5, generator=RNG).double()
        found, of_few = everything.add(train, val), few.add(train[:128], val[:128])
    assert found["confidence_rise"] > 0.1
    assert found["confidence_rise 128"] == of_few["confidence_rise"] != found["confidence_rise"]
