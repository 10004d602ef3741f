"""`find_outliers` finds planted images, keeps its rate of false discoveries, and changes no model and no position."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from datasets import Broken
from functional import Net
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_anomaly import OutlierDetector, OutlierReport, find_outliers
from lightning_anomaly.scores.sample_table import sample_table


def images(count: int, seed: int = 0, damaged: tuple[int, ...] = ()) -> Tensor:
    """Smooth images; the damaged ones are noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 1, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(12, 12), mode="bilinear", align_corners=False)
    smooth[list(damaged)] = torch.randn(len(damaged), 1, 12, 12, generator=generator)
    return smooth


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(), nn.Conv2d(8, 6, 3)
    )


def test_planted_images_are_found_with_and_without_a_reference(net):
    planted = (5, 71, 100, 101)
    inputs = images(120, 1, planted)
    report = find_outliers(inputs, net, images(1000))
    assert set(report.top(4)) == set(planted) <= set(report.significant)
    assert report.p_values.min().item() == report.p_values[5].item() == 1 / (1 + 500)  # more than half of the reference
    assert set(find_outliers(images(400, 1, planted), net).top(4)) == set(planted)


@pytest.mark.slow
def test_on_clean_images_the_false_discovery_rate_holds(net):
    """The share of clean data sets in which something is significant is at most the rate."""
    reports = []
    for seed in range(40):
        detector = OutlierDetector(net).fit(images(500, seed))
        part = detector.search_part(images(100, 100 + seed))
        del part["gray"]  # near duplicates are not sought, which takes most of the time
        reports.append(detector.join_parts([part]))
    p_values = torch.cat([report.p_values for report in reports])
    for level in (0.02, 0.1, 0.3, 0.6):  # four standard errors of images that are scored by the same reference
        assert (p_values <= level).double().mean().item() == pytest.approx(level, abs=0.3 * math.sqrt(level / 10))
    for rate in (0.1, 0.3):
        share = sum(bool(replace(report, false_discovery_rate=rate).significant) for report in reports) / len(reports)
        assert share <= rate + 2 * math.sqrt(rate * (1 - rate) / len(reports))


def test_without_a_reference_there_are_no_p_values_and_no_image_is_significant(net):
    report = find_outliers(images(300), net)
    assert (report.n_reference, report.n_calibration) == (300, 0)
    assert report.p_values.isnan().all()
    assert "p-value  " not in str(report)
    assert replace(report, false_discovery_rate=1.0).significant == []
    assert "as `reference`" in str(report)
    assert "pooled maps of '5'" in str(report)  # as there is no head
    other = find_outliers(images(300), net, reference=images(300, seed=5), max_reference=200)
    assert (other.n_reference, other.n_calibration) == (200, 100)


def test_an_image_with_large_negative_values_alone_is_found():
    identity = nn.Conv2d(6, 6, 1, bias=False)
    nn.init.dirac_(identity.weight)
    inputs = images(1200).view(200, 6, 12, 12)
    ordinary = find_outliers(inputs, identity)
    inputs[7] = torch.where(inputs[7] < 0, 9 * inputs[7], inputs[7])
    report = find_outliers(inputs, identity)
    assert report.top(1) == [7] != ordinary.top(1)


def report_of(p_values: Tensor, n_reference: int, rate: float, scores: Tensor | None = None) -> OutlierReport:
    """A report without views; by default all scores are equal."""
    scores = torch.zeros(len(p_values)) if scores is None else scores
    samples = sample_table({"score": scores, "p_value": p_values}, range(len(scores)))
    return OutlierReport(samples, n_reference, n_reference - n_reference // 2, rate)


def test_significant_images_follow_benjamini_and_hochberg_s_rule():
    p_values = torch.tensor([0.9, 0.04, 0.001, 0.02, 0.5, 0.03], dtype=torch.float64)
    scores = torch.tensor([0.0, 3, 9, 5, 1, 4])
    for rate, found, told in ((0.06, [2, 3, 5, 1], "4 images of 6"), (0.05, [2], "1 image of 6"), (0.005, [], "None")):
        # 0.02 and 0.03 are too large in their places, 0.04 is as small as 4/6 of 0.06
        report = report_of(p_values, 100, rate, scores)
        assert report.significant == found
        assert told in str(report)
    for number, found_all in ((1333, False), (1334, True)):  # 0.15 * 1334 / 20010 is 0.01 but for rounding
        p_values = torch.ones(20010, dtype=torch.float64)
        p_values[:number] = 0.01
        assert len(report_of(p_values, 198, 0.15).significant) == number * found_all


def test_if_nearly_all_images_are_one_the_others_do_not_tie(net):
    inputs = images(200, 1)
    inputs[:185] = inputs[0].clone()
    report = find_outliers(inputs, net)
    assert len(report.content_scores[185:].unique()) == 15
    assert report.scores[:185].max() < report.scores[185:].min()


def test_a_search_without_scores_still_lists_copies_and_what_gives_nan(net):
    few = images(60, 1)
    few[9] = few[3].flip(2)
    few[20] = math.nan
    with pytest.warns(UserWarning, match="too few"), pytest.warns(UserWarning, match="NaN"):
        report = find_outliers(few, net)
    assert [group.positions for group in report.duplicates] == [[3, 9]]
    assert report.unusable == [20]
    assert "No image has a score." in str(report)
    with pytest.warns(UserWarning, match="all alike"), pytest.warns(UserWarning, match="no content"):
        report = find_outliers(images(1).expand(150, -1, -1, -1), net)
    assert [group.positions for group in report.duplicates] == [[*range(150)]]
    assert report.scores.isnan().all()


def test_nothing_is_changed(net):
    net.train()
    net[1].eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state, inputs = torch.get_rng_state(), images(200)
    find_outliers(DataLoader(TensorDataset(inputs), 32), net)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert [module.training for module in net] == [True, False, True, True, True, True]
    assert not any(module._forward_hooks for module in net)
    assert torch.equal(inputs, images(200))


def test_reference_images_with_nan_are_left_out(net):
    """The infinite scores of reference images with NaN must not hide outliers."""
    inputs, reference = images(300, 1, tuple(range(12))), images(1000, 2)
    inputs[[30, 90]] = math.nan
    spoilt = torch.cat([reference[:500], reference[:40] * math.nan, reference[500:]])
    with (
        pytest.warns(UserWarning, match="^40 of .*`reference`"),
        pytest.warns(UserWarning, match="^2 of .*`images`.* position 30"),
    ):
        report = find_outliers(inputs, net, spoilt)
    assert {*report.significant} >= {*range(12)}
    assert report.unusable == [30, 90]
    assert report.n_reference == 1000
    with pytest.warns(UserWarning, match="^1 of .*`images`"):
        report = find_outliers(torch.cat([reference, torch.full((1, 1, 12, 12), math.inf)]), net)
    assert report.unusable == [1000]


def test_images_that_take_another_path_through_the_model_are_refused(net):
    def forward(model: Net, x: Tensor) -> Tensor:
        found = model.net[0](x)
        return found if x.abs().max() > 100 else model.net[1:](found)

    with pytest.raises(ValueError, match=r"`images`.*same layer"):
        find_outliers(1000 * images(5), Net(forward, net=net), images(150))


def test_the_same_image_has_the_same_score(net):
    """Two identical files once had 5.8 and 9.9: each half was scored by a fit to the other half."""
    inputs = images(240, 1, (7,))
    inputs = torch.cat([inputs, inputs[:40]])[torch.randperm(280, generator=torch.Generator().manual_seed(0))]
    scores = find_outliers(inputs, net).scores
    same = (inputs[:, None] == inputs[None]).flatten(2).all(2)
    assert ((scores[:, None] - scores[None]).abs()[same] < 1e-4).all()


def test_images_are_converted_to_the_precision_of_the_model(net):
    inputs, reference = images(250, 1, (7,)), images(200)
    assert find_outliers(inputs, net.bfloat16(), reference).scores.argsort()[-5:].eq(7).any()


def test_a_report_has_rows_by_descending_score(net):
    report = find_outliers(images(200, 1, (7,)), net, images(300))
    assert report.top(1) == [7]
    assert report.scores[7] == max(report.look_scores[7], report.content_scores[7])
    for view in ("look", "content"):
        scores = getattr(report, f"{view}_scores")
        assert report.top(5, by=view) == scores.argsort(descending=True, stable=True)[:5].tolist()
        assert 0 < report.samples[f"{view}_p_value"][7] <= 1
    assert len(report.top(1000)) == 200
    lines = str(report).splitlines()
    assert [line.split()[0] for line in lines[2:12]] == [str(position) for position in report.top(10)]
    assert "calibration images" in lines[12]
    with pytest.raises(ValueError, match="`k`"):
        report.top(0)


def test_signals_are_scored_by_their_content():
    inputs = torch.randn(150, 2, 20, generator=torch.Generator().manual_seed(0))
    inputs[11] = inputs[11].abs() * 9
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="no look scores"):
        report = find_outliers(inputs, nn.Conv1d(2, 40, 3))
    assert report.top(1) == [11]
    assert report.pictures == {}


def test_a_report_has_small_pictures_of_its_lists_scaled_to_ordinary_images():
    torch.manual_seed(0)  # the weights decide which images score highest
    inputs = images(400)[..., None].expand(-1, -1, -1, -1, 30).flatten(3).repeat_interleave(20, 2)  # 240x360
    inputs[:300] *= 100
    report = find_outliers(inputs, nn.Conv2d(1, 2, 3), inputs[300:])
    assert {*report.pictures} >= {*report.top(100, "look"), *report.top(100, "content")}
    pictures = torch.stack([report.pictures[place] for place in report.top(100, "look")])
    assert pictures.shape == (100, 120, 180, 1)
    assert ((pictures == 0) | (pictures == 255)).float().mean() > 0.9


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"reference": images(99)}, "`reference`.* Found 99"),
        ({"reference": images(150) * math.nan}, "`reference`.*finite values"),
        ({"reference": images(1).expand(150, -1, -1, -1)}, "`reference`.*pixels or features"),
        ({"reference": torch.rand(150, 1, 9, 9)}, r"\(1, 9, 9\). Found \(1, 12, 12\)"),
        ({"images": images(150).byte()}, "`images`.*torch.uint8"),
    ],
)
def test_bad_arguments_are_named(net, changed, message):
    arguments = {"model": net, "images": images(5), "reference": images(150), **changed}
    with pytest.raises(ValueError, match=message):
        find_outliers(**arguments)


DATA = TensorDataset(images(120), torch.arange(120))


def without_seven(items: list[tuple[Tensor, Tensor]]) -> Any:
    return torch.utils.data.default_collate([item for item in items if item[1] != 7])


ONE_IS_NARROW: Any = [(torch.zeros(1, 12, 12 - (index == 7)), 0) for index in range(120)]
BOXES: Any = [(torch.zeros(3, 6, 6), {"boxes": torch.zeros(index % 3, 4)}) for index in range(120)]


@pytest.mark.parametrize(
    ("loader", "found"),
    [
        (DataLoader(DATA, 120, collate_fn=without_seven), r"\(119, 1, 12, 12\) for n = 120"),
        (DataLoader(ONE_IS_NARROW, 1), r"\(1, 12, 12\) and \(1, 12, 11\).* position 7"),
        (DataLoader(ONE_IS_NARROW, 50), r"\(1, 12, 12\) and \(1, 12, 11\).* position 7"),
        (DataLoader(BOXES, 3, collate_fn=lambda items: tuple(zip(*items, strict=True))), "`collate_fn`"),
    ],
)
def test_batches_that_are_not_one_image_for_each_item_are_refused(net, loader, found):
    """Otherwise scores would belong to other images."""
    with pytest.raises(ValueError, match=f"Found .*{found}"):
        find_outliers(loader, net)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_unreadable_images_do_not_change_the_scores_of_others(net, workers):
    loader = DataLoader(Broken(images(200, 1), 0, 5), 32, num_workers=workers)
    with pytest.warns(UserWarning, match="^2 of .*`images`.* position 0"):
        report = find_outliers(loader, net, DATA.tensors[0])
    assert report.unusable == [0, 5]
    rest = [index for index in range(200) if index not in (0, 5)]
    expected = find_outliers(images(200, 1)[rest], net, DATA.tensors[0])
    torch.testing.assert_close(report.scores[rest], expected.scores)
    assert torch.equal(report.p_values[rest], expected.p_values)
    for place, picture in expected.pictures.items():
        assert torch.equal(report.pictures[rest[place]], picture)


def test_unreadable_reference_images_are_left_out(net):
    with pytest.warns(UserWarning, match="^1 of .*`reference`.* position 5"):
        report = find_outliers(images(200, 1), net, DataLoader(Broken(DATA.tensors[0], 5), 32))
    assert report.n_reference == 119
    assert report.scores.isfinite().all()
    with pytest.warns(UserWarning, match="^1 of .*`images`.* position 5"):
        report = find_outliers(DataLoader(Broken(images(200, 1), 5), 32), net)
    assert (report.n_reference, report.unusable) == (199, [5])
    with pytest.raises(ValueError, match=r"`images`.*image 0"):
        find_outliers(DataLoader(Broken(images(200, 1), *range(200)), 32), net)
