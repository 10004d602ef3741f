"""The measurements of the experiments, compared with independent computations."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import accuracy_score, roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from lightning_anomaly.pruning import mask_filters
from recipes.common.networks import build
from recipes.experiments.fitting import further_epochs, prepare, watched_layers
from recipes.experiments.measures import gradients, h2, h3, output, two_sample
from recipes.experiments.spec import EXPERIMENTS

RNG = torch.Generator().manual_seed(0)
NOISY = replace(EXPERIMENTS["h3"].quick_trainings()[0], condition="noise30")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, stride=2, groups=2, bias=False)),
        *(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 5)),
    ).double().eval()  # fmt: skip


def test_gradient_norms_are_those_of_a_loop_over_samples() -> None:
    model, inputs = network(), torch.randn(11, 2, 8, 8, dtype=torch.float64, generator=RNG)
    targets, rows = torch.randint(0, 5, (11,), generator=RNG), []
    for i in range(11):
        model.zero_grad()
        functional.cross_entropy(model(inputs[i : i + 1]), targets[i : i + 1]).backward()
        rows.append(torch.cat([p.grad.flatten() for p in model.parameters()]).norm())
    found = gradients.gradient_norms(model, inputs, targets)
    torch.testing.assert_close(found, torch.stack(rows), rtol=1e-12, atol=0)


def test_gradient_disparity_is_the_mean_distance_of_pairs() -> None:
    model, inputs = network(), torch.randn(10, 2, 8, 8, dtype=torch.float64, generator=RNG)
    targets, rows = torch.arange(10) % 5, []
    for batch in torch.arange(10).split(2):
        model.zero_grad()
        functional.cross_entropy(model(inputs[batch]), targets[batch]).backward()
        rows.append(torch.cat([p.grad.flatten().clone() for p in model.parameters()]))
    pairs = [(a - b).norm() for place, a in enumerate(rows) for b in rows[:place]]
    assert gradients.batch_disparity(model, inputs, targets, 2) == pytest.approx(torch.stack(pairs).mean().item())


def test_ratios_and_their_intervals() -> None:
    group, rest = (torch.rand(200, generator=RNG) + shift for shift in (1.0, 0.5))
    ratio, low, high = h2.ratio_with_interval(group, rest)
    assert ratio == pytest.approx((group.double().mean() / rest.double().mean()).item())
    error = ratio * ((group.std() / group.mean()) ** 2 / 200 + (rest.std() / rest.mean()) ** 2 / 200).sqrt().item()
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert low < ratio < high
    assert h2.ratio_with_interval(torch.ones(3), torch.zeros(3))[0] == float("inf")
    assert h2.log_spaced(40, 6) == [1, 2, 4, 9, 19, 40]


def test_responses_are_those_of_the_layers_and_the_logits_those_of_the_network() -> None:
    for name, place in (("lenet5", 3), ("simple_cnn_bn", 1)):  # with a BatchNorm behind each convolution
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


def test_only_live_filters_that_respond_to_one_kind_of_images_are_counted() -> None:
    values = torch.rand(4, 300, generator=torch.Generator().manual_seed(0))
    values[1, :200] += 0.3
    values[2] = 0
    values[3] = 1 - values[1]
    found, by_chance = two_sample.compare({"mean": {"0": values}, "max": {"0": values[2:3]}, "units": {}}, 200)
    assert (found["mean"]["0"]["count"], found["mean"]["0"]["live"]) == (2, 3)
    area = [roc_auc_score([True] * 200 + [False] * 100, row) for row in values[[0, 1, 3]]]
    assert found["mean"]["0"]["auc"] == pytest.approx(sum(area) / 3)
    assert found["max"]["0"] == {"count": 0, "live": 0, "auc": 0.5}
    # Two of three filters, which are significant together; by chance, that happens about once in a hundred times.
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
    errors = [1 - logits.softmax(1).amax(1).mean().item() for logits in (train, val)]
    assert found["confidence_error_ratio"] == pytest.approx(errors[1] / errors[0])
    made = 1 - accuracy_score(labels[1], val.argmax(1))
    assert math.exp(found["log_overconfidence"]) == pytest.approx(made / errors[1])


def test_other_masks_have_as_many_filters_and_no_dead_ones() -> None:
    order = {"a": [3.0, 1.0, 2.0, 0.0], "b": [1.0, 2.0]}
    assert h3.choose({"a": [0, 3], "b": [1]}, {"a": [0, 1, 2], "b": [0, 1]}, order) == {"a": [1, 2], "b": [0]}


def test_a_mask_is_kept_in_further_training_and_the_rest_is_trained() -> None:
    images, model = prepare(NOISY), build("lenet5", 1, 10)
    before: Tensor = copy.deepcopy(model[3].weight.detach())
    mask = mask_filters(model, {"0": [1], "3": [0, 5]}, example_input=images.part("val", 2)[0])
    assert list(further_epochs(NOISY, images, model, 2, mask)) == [1, 2]
    assert not model[3].weight[[0, 5]].any()
    assert not torch.equal(model[3].weight[1], before[1])
