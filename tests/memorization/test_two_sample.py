"""`two_sample_test` finds filters that respond differently to two kinds of images, and no others."""

import math
import re

import pytest
import torch
from functional import Net
from sklearn.metrics import roc_auc_score
from torch import nn

from lightning_anomaly import two_sample_test
from lightning_anomaly.memorization.ranks import random_divisions, rank_test, responding_filters

RNG = torch.Generator().manual_seed(0)
IMAGES = torch.randn(150, 1, 9, 9, generator=RNG)


def pair() -> Net:
    """Two filters, the second of which responds to the brightness, and a layer that is never called."""
    layers = {"conv": nn.Conv2d(1, 2, 1, bias=False), "norm": nn.BatchNorm2d(2), "idle": nn.Conv2d(1, 1, 1)}
    layers["conv"].weight.data = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1)
    return Net(lambda net, images: net.norm(net.conv(images)), **layers)


@pytest.mark.parametrize(("n_train", "n_val", "active"), [(100, 1000, 54), (100, 1000, 55), (300, 300, 10)])
def test_silent_filters_give_no_false_alarms(n_train: int, n_val: int, active: int) -> None:
    values = torch.zeros(3000, n_train + n_val)
    for row in values:
        row[torch.randperm(len(row), generator=RNG)[:active]] = torch.rand(active, generator=RNG)
    tested = responding_filters(values, n_train)
    _, p_value = rank_test(values[tested], torch.arange(n_train + n_val)[:, None] < n_train)
    assert int((p_value <= 0.01).sum()) <= 3000 * (0.01 + 4 * math.sqrt(0.01 / 3000))
    assert tested.all() == (active * min(n_train, n_val) >= 5 * (n_train + n_val))
    assert tested.any() == tested.all()


def test_only_the_filter_that_responds_differently_is_found() -> None:
    train, val = IMAGES[:70], IMAGES[70:]
    with pytest.warns(UserWarning, match="'idle' is left out"):
        report = two_sample_test(pair(), train + 1, val)
    assert report.filters == {"conv": [1]}
    assert (report.count, report.fraction, report.n_train, report.n_val) == (1, 1.0, 70, 80)  # filter 0 is not tested
    expected = roc_auc_score([True] * 70 + [False] * 80, torch.cat([train + 1, val]).relu().amax((1, 2, 3)))
    assert report.layers["conv"].auc.tolist() == pytest.approx([0.5, expected])
    alike = two_sample_test(pair(), train, val, layers=["conv"])
    assert alike.filters == {}
    assert alike.fraction == 0
    assert alike.layers["conv"].p_value[1] > 0.01


def test_the_p_value_compares_the_share_with_those_of_random_divisions() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 30, 3))
    images = IMAGES.clone()
    images[:70] *= torch.linspace(1, 1.6, 70)[:, None, None, None]
    report = two_sample_test(network, images[:70], images[70:])
    largest = report.chance.topk(5).indices.tolist()
    for column in (*range(5), *largest):
        first = random_divisions(70, 150)[:, column]
        other = two_sample_test(network, images[first], images[~first])
        assert report.chance[column].item() == other.fraction
    assert len(report.chance) == 999
    assert report.chance[largest].min() > 0
    assert report.filter_p_value == (1 + int((report.chance >= report.fraction).sum())) / 1000
    assert two_sample_test(network, images[:70] * 3, images[70:]).filter_p_value == 0.001


def test_only_the_layer_that_differs_is_named_even_if_it_has_one_filter() -> None:
    layers = {"edges": nn.Conv2d(1, 1, (1, 2), bias=False), "brightness": nn.Conv2d(1, 1, 1, bias=False)}
    layers["edges"].weight.data = torch.tensor([[[[1.0, -1.0]]]])
    layers["brightness"].weight.data.fill_(1)
    model = Net(lambda net, images: (net.edges(images), net.brightness(images))[1].flatten(1), **layers)
    report = two_sample_test(model, IMAGES[:70] + 3, IMAGES[70:])
    assert report.layers["brightness"].share_p_value == 0.001
    assert report.significant_layers == {"brightness": 1.0}
    assert report.where == "in filters of 'brightness' (100%)"


def test_a_report_has_a_table_and_totals() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3))
    report = two_sample_test(network, IMAGES[:70] * 3, IMAGES[70:])
    counts = {name: len(filters) for name, filters in report.filters.items()}
    assert report.count == sum(counts.values()) > 0
    tested = {name: int(layer.tested.sum()) for name, layer in report.layers.items()}
    assert report.fraction == report.count / sum(tested.values())
    assert report.shares == {name: counts.get(name, 0) / tested[name] for name in ("0", "2")}
    found = {"auc", "gap", "error_ratio", "p_value", "count", "fraction", "filter_p_value"}
    shares = {f"layer/{name}": share for name, share in report.shares.items()}
    assert report.metrics() == {name: getattr(report, name) for name in found} | shares
    for text in (str(report), repr(report)):
        row = rf"^0 +4 +{tested['0']} +{counts['0']} +{counts['0'] / tested['0']:.3f} "
        assert re.search(row, text, flags=re.MULTILINE)
        assert f"{report.count} filters" in text
        assert f"and the 80 validation images; {100 * report.filter_p_value:.1f}% of random divisions" in text
    assert report._repr_html_().startswith("<table>")


BRIGHT, DARK = IMAGES.abs() + 0.1, -IMAGES.abs()  # the filter of `pair` responds only to the first


@pytest.mark.parametrize(("n_train", "n_val"), [(9, 100), (100, 2)])
def test_ten_images_of_each_kind_are_required(n_train: int, n_val: int) -> None:
    said = rf"{n_train} training and {n_val} validation images .* at least 10 of each"
    with pytest.warns(UserWarning, match=said) as caught:
        report = two_sample_test(pair(), BRIGHT[:n_train], DARK[:n_val], layers=["conv"])
    (note,) = report.notes.values()
    assert [str(warning.message) for warning in caught] == [note]
    assert f"note: {note}" in str(report)
    assert (report.filters, report.compares_filters, report.compares_output) == ({}, False, False)
    report = two_sample_test(pair(), BRIGHT[:10], DARK[:10], layers=["conv"])  # without a warning
    assert report.filters == {"conv": [1]}
    assert report.layers["conv"].p_value[1] <= 0.01


def test_filters_that_are_silent_on_nearly_all_images_give_a_note() -> None:
    images = torch.where(torch.arange(300)[:, None, None, None] % 25 == 0, BRIGHT.repeat(2, 1, 1, 1), -1.0)
    with pytest.warns(UserWarning, match="None of the 2"):
        report = two_sample_test(pair(), images[:50], images[50:100], layers=["conv"])
    assert not report.layers["conv"].tested.any()
    report = two_sample_test(pair(), images[:125], images[125:250], layers=["conv"])
    assert report.layers["conv"].tested.tolist() == [False, True]


@pytest.mark.parametrize("lost", [[0], [0, 1]])
def test_filters_with_nan_are_left_out_with_a_note(lost: list[int]) -> None:
    model = pair()
    model.conv.weight.data[lost] = torch.nan
    with pytest.warns(UserWarning, match=f"'conv': {len(lost)} of 2"), pytest.warns(UserWarning, match="NaN for 150"):
        report = two_sample_test(model, IMAGES[:70] + 1, IMAGES[70:], layers=["conv"])
    assert report.layers["conv"].tested.tolist() == [False, 1 not in lost]
    assert report.filters == ({} if 1 in lost else {"conv": [1]})
    assert set(report.notes) == {"output", "conv nonfinite"}


def test_chance_does_not_depend_on_the_default_dtype() -> None:
    conv = nn.Conv2d(1, 600, 1, bias=False)
    nn.init.ones_(conv.weight)
    expected = two_sample_test(conv, IMAGES[:70], IMAGES[70:]).chance
    assert expected.max() == 1  # more filters than a number in bfloat16 can count
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # as Lightning does for "bf16-true"
    try:
        found = two_sample_test(conv, IMAGES[:70], IMAGES[70:]).chance
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(found, expected)


def test_volumes_in_bfloat16_are_accepted() -> None:
    model = nn.Conv3d(1, 3, 1).bfloat16()
    nn.init.ones_(model.weight)
    train, val = (torch.randn(count, 1, 2, 3, 4, generator=RNG).bfloat16() for count in (20, 30))
    report = two_sample_test(model, train + 4, val)
    assert (report.n_train, report.n_val, report.filters) == (20, 30, {"": [0, 1, 2]})
    assert report.where == "in filters of the model (100%)"


def test_images_of_different_shapes_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"of the same shape. Found \(1, 8, 9\) and \(1, 9, 9\)"):
        two_sample_test(pair(), IMAGES[:, :, :8], IMAGES)
