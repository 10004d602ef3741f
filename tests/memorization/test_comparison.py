"""The comparison of confidences: areas, gaps, ratios of expected errors, and p-values."""

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from functional import Net
from scipy.stats import betabinom, binom, mannwhitneyu
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from lightning_anomaly import two_sample_test
from lightning_anomaly.memorization.comparison import ExpectedErrors, compare_confidences, expected_error, mean_error
from lightning_anomaly.memorization.ranks import permutation_p_value, rank_test
from lightning_anomaly.network.class_scores import Scores

RNG = torch.Generator().manual_seed(0)
IMAGES = torch.randn(150, 1, 9, 9, generator=RNG)


def answers(answer: Callable[[Tensor], Any]) -> Net:
    """Make a convolution whose output is a function of its maps."""
    conv = nn.Conv2d(1, 3, 3, bias=False)
    conv.weight.data = torch.randn(3, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    return Net(lambda net, images: answer(net.conv(images)), conv=conv)


def logits(maps: Tensor) -> Tensor:
    return maps.mean((2, 3)) * 5


def test_the_area_the_gap_and_the_p_value_are_those_of_the_largest_softmax_probability() -> None:
    model = answers(logits)
    train, val = IMAGES[:70] * 1.5, IMAGES[70:]
    report = two_sample_test(model, train, val)
    with torch.no_grad():
        sure = [model(images).double().softmax(1).amax(1) for images in (train, val)]
    assert report.auc == pytest.approx(roc_auc_score([True] * 70 + [False] * 80, torch.cat(sure)), abs=1e-3)
    assert report.gap == pytest.approx((sure[0].mean() - sure[1].mean()).item(), abs=1e-6)
    expected = [1 - confidence.mean().item() for confidence in sure]
    assert report.error_ratio == pytest.approx(expected[1] / expected[0], rel=1e-5)
    assert report.p_value == pytest.approx(mannwhitneyu(*sure).pvalue, rel=0.05)
    assert report.auc > 0.55
    assert f"than on a validation image in {100 * report.auc:.1f}%" in str(report)
    turned = two_sample_test(model, val, train)
    assert turned.auc == pytest.approx(1 - report.auc)
    assert turned.gap == -report.gap
    assert turned.error_ratio == pytest.approx(1 / report.error_ratio)


def test_ties_count_half_and_equal_confidences_have_no_gap() -> None:
    assert compare_confidences(torch.ones(5), torch.ones(9)) == (0.5, 0.0, 1.0)
    assert compare_confidences(torch.tensor([0.5, 1]), torch.tensor([0.5, 0.5]))[0] == 0.75


def test_errors_are_means_over_positions_of_logits_probabilities_and_their_logarithms() -> None:
    maps = torch.randn(4, 3, 5, 6, generator=RNG)
    found = {}
    for name, output in (("logits", maps), ("probabilities", maps.softmax(1)), ("logarithms", maps.log_softmax(1))):
        expected = ExpectedErrors(Scores())
        expected.add(output[:3])
        expected.add(output[3:])
        found[name] = expected.result(4)
        wrong = 1 - maps.double().softmax(1).amax(1).mean((1, 2))
        torch.testing.assert_close(found[name], wrong.float(), rtol=1e-5, atol=1e-6)


def test_one_score_is_a_logit_or_a_probability_of_the_second_of_two_classes() -> None:
    one = torch.randn(40, 1, generator=RNG) * 3
    both = torch.cat([torch.zeros(40, 1), one], 1)
    for reading, scores in (("logits", one), ("logits", one.sigmoid()), ("probabilities", one.sigmoid())):
        for told in (None, reading):
            errors = ExpectedErrors(Scores(reading=told))
            errors.add(scores)
            logits = torch.cat([torch.zeros(40, 1), scores], 1) if told == "logits" else both
            wrong = expected_error(logits.softmax(1))
            torch.testing.assert_close(errors.result(40), wrong, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(errors.logits.softmax(1), logits.softmax(1), rtol=1e-5, atol=1e-6)


def test_a_named_method_returns_logits_even_within_0_to_1() -> None:
    model = answers(lambda maps: maps.mean((1, 2, 3)).relu().clamp(max=1))
    inferred = two_sample_test(model, IMAGES[:70], IMAGES[70:])
    named = two_sample_test(model, IMAGES[:70], IMAGES[70:], logits_from="forward")
    assert inferred.train_errors.min() == 0
    torch.testing.assert_close(named.train_errors.max(), torch.tensor(0.5))


def test_the_first_batch_tells_what_scores_are_and_a_later_one_that_disagrees_is_a_problem() -> None:
    """Probabilities have two digits, as in bfloat16."""
    rows, one = torch.tensor([[0.71, 0.2, 0.1]]).repeat(4, 1), torch.rand(4, 1, generator=RNG)
    for first, wrong in ((rows, torch.full((4,), 0.3)), (one, torch.minimum(one, 1 - one)[:, 0])):
        expected = ExpectedErrors(Scores())
        expected.add(first)
        torch.testing.assert_close(expected.result(4), wrong)
        expected.add(first + 1)
        assert expected.result(8) is None
        assert "of others" in expected.problem


def test_expected_errors_resolve_tiny_differences_and_their_ratio_is_finite() -> None:
    def errors(margin: float) -> Tensor:
        expected = ExpectedErrors(Scores())
        expected.add(torch.tensor([[margin, 0.0]] * 4))
        found = expected.result(4)
        return found

    # Although 1 minus the largest probability is 0 in float32.
    assert errors(40)[0].item() == pytest.approx(math.exp(-40), rel=1e-5)
    assert compare_confidences(-errors(40), -errors(20))[0] == 1
    assert mean_error(errors(7)) / mean_error(errors(14)) == pytest.approx(math.exp(7), rel=1e-2)
    assert mean_error(errors(0)) / mean_error(errors(1000)) == 5e6


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (lambda maps: {"scores": logits(maps)}, "it is a dict"),
        (lambda maps: logits(maps)[:, :0], "it has shape (35, 0)"),
        (lambda maps: logits(maps).argmax(1)[:, None], "of torch.int64, not logits"),
        (lambda maps: logits(maps)[1:], "it has 146 samples where the inputs have 150"),
        (lambda maps: logits(maps) * torch.nan, "it is NaN for 150 of 150 samples"),
    ],
)
def test_other_outputs_give_one_note_and_do_not_change_the_filters(answer, problem: str) -> None:
    expected = two_sample_test(answers(logits), IMAGES[:70] * 2, IMAGES[70:])
    with pytest.warns(UserWarning, match="not compared") as caught:
        report = two_sample_test(answers(answer), IMAGES[:70] * 2, IMAGES[70:])
    assert list(report.notes) == ["output"]
    assert problem in report.notes["output"]
    assert len(caught) == 1
    unknown = report.auc, report.gap, report.p_value, report.error_ratio
    assert all(map(math.isnan, unknown))
    assert "the output: not measured" in str(report)
    assert not report.compares_output
    assert report.filters == expected.filters != {}


def test_outputs_of_a_network_without_convolutions_are_compared() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(81, 5))
    with pytest.warns(UserWarning, match="no convolution"):
        report = two_sample_test(model, IMAGES[:70] * 3, IMAGES[70:])
    assert report.auc > 0.6
    assert (report.count, report.compares_filters, report.shares) == (0, False, {})
    assert all(map(math.isnan, (report.fraction, report.filter_p_value)))
    assert (report.layers, list(report.notes), report.n_train, report.n_val) == ({}, ["no layers"], 70, 80)
    assert report.where == "in the output"


def test_a_named_linear_layer_is_compared_and_said_where() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 4, 2), nn.Flatten(), nn.Linear(256, 30), nn.ReLU(), nn.Linear(30, 5)
    model, train, val = nn.Sequential(*layers), IMAGES[:70] * 2, IMAGES[70:]
    report = two_sample_test(model, train, val, layers=["0", "2"])
    assert list(report.layers) == ["0", "2"]
    assert list(two_sample_test(model, train, val).layers) == ["0"]
    assert report.significant_layers["2"] == report.shares["2"] > 0
    shares = list(report.significant_layers.values())
    assert shares == sorted(shares, reverse=True)
    assert re.fullmatch(r"in filters of .*'2' \(\d+%\).*", report.where)
    assert two_sample_test(model, IMAGES[:70], val).where == "nowhere"


def test_p_values_of_output_and_filters_are_exact_on_images_outside_training(trained) -> None:
    """Given any network and images, the divisions are the only chance, so the bounds hold whatever was trained."""
    # In float64, because float32 rounding depends on the batch and may change the order of confidences.
    unseen, model = torch.tensor(load_digits().images[1200:])[:, None] / 16, copy.deepcopy(trained.model).double()
    n, draws, rare = 300, 1000, 1e-6
    noise = torch.rand(len(unseen), draws, generator=torch.Generator().manual_seed(7))
    divisions = noise <= noise.kthvalue(n, dim=0).values
    reports = [two_sample_test(model, unseen[first], unseen[~first]) for first in divisions.T[:3]]

    sure = -expected_error(model(unseen).softmax(1))
    compared = [compare_confidences(sure[first], sure[~first]) for first in divisions.T]
    assert [report.p_value for report in reports] == pytest.approx([p for *_, p in compared[:3]], rel=1e-3)
    output = torch.tensor([p_value for *_, p_value in compared], dtype=torch.float64)

    layers = [model[:1], model[:3], model[:7]]
    values = torch.cat([functional.relu(part(unseen)).amax((2, 3)).T for part in layers])
    tested = torch.cat([layer.tested for layer in reports[0].layers.values()])
    fractions = (rank_test(values[tested], divisions)[1] <= 0.01).double().mean(0)
    assert [report.fraction for report in reports] == pytest.approx(fractions[:3].tolist())
    chance = reports[0].chance  # of 999 other divisions; the p-values of ours and of these by these
    ours, others = (
        torch.tensor([permutation_p_value(fraction, chance) for fraction in found.tolist()], dtype=torch.float64)
        for found in (fractions, chance)
    )
    # Each report has its own 999 divisions. The standard deviation of a difference is at most 0.5 * sqrt(2 / 999).
    assert [report.filter_p_value for report in reports] == pytest.approx(
        ours[:3].tolist(), abs=5 * 0.5 * (2 / 999) ** 0.5
    )
    for level in (0.01, 0.05, 0.5):
        # Exact, not only conservative.
        found = int((output <= level).sum())
        assert binom.ppf(rare, draws, level) <= found <= binom.isf(rare, draws, level)
        # The 999 divisions are one draw too: the number of ours beyond the k-th largest of them is beta-binomial, with
        # k = 1000 * level, as a p-value counts its own division, or less if no possible p-value is equal to the level.
        least, k = int((others <= level).sum()), 1000 * level
        fewest = betabinom.ppf(rare, draws, least, 1000 - least) if least else 0
        assert fewest <= (ours <= level).sum() <= betabinom.isf(rare, draws, k, 1000 - k)
