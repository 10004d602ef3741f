"""Figures show the values of a report or of a run in the documented order and have a limited size."""

import math

import matplotlib
import matplotlib.style
import numpy as np
import pytest
import torch
from figures import pixels
from reports import layer
from torch import Tensor

from lightning_anomaly.filters.filter_figures import clearest_filters, curves_figure, filter_figure, verdict_map
from lightning_anomaly.filters.layer_report import ANOMALY, DEAD, NONFINITE, NORMAL

N = 60


def far(outliers: list[int], distance: float) -> Tensor:
    radius, angle = torch.rand(2, N, generator=torch.Generator().manual_seed(0))
    points = radius[:, None].sqrt() * torch.stack([(7 * angle).cos(), (7 * angle).sin()], 1)
    points[outliers] = torch.tensor([distance, 0.0])
    return points


class TestClearestFilters:
    def clearest(self, *points: Tensor, outliers: list[int]) -> list[int]:
        flagged = dict.fromkeys(range(len(points)), outliers)
        found = {"conv": layer(*[ANOMALY] * len(points), outliers=flagged, points=torch.stack(points))}
        return [index for _, index in clearest_filters(found)]

    def test_filters_are_ordered_by_gap_in_units_of_the_spread(self):
        for place in (0, 9):
            points = [far([1, 2], gap) + place for gap in (3.0, 4.2, 2.0, 3.6)]
            assert self.clearest(*points, outliers=[1, 2]) == [1, 3, 0, 2]
        assert self.clearest(far([0], 3.0), 0.5 * far([0], 2.9), outliers=[0]) == [0, 1]  # the same gap, twice as close

    def test_only_anomaly_filters_are_listed_up_to_the_limit(self):
        found = {
            "a": layer(NORMAL, ANOMALY, DEAD, outliers={1: [3]}),
            "b": layer(NONFINITE, ANOMALY, outliers={1: [3]}),
        }
        assert sorted(clearest_filters(found)) == [("a", 1), ("b", 1)]
        assert len(clearest_filters(found, max_filters=1)) == 1

        every = {"a": layer(ANOMALY, ANOMALY, outliers={0: list(range(N)), 1: [3]})}  # all samples may be outliers
        assert clearest_filters(every) == [("a", 1), ("a", 0)]


class TestFilterFigure:
    def test_components_are_numbered_by_size_and_outliers_have_rings(self):
        labels = torch.tensor([[0] * N, [0] * 5 + [1] * 2 + [3] * (N - 7)])
        index = torch.tensor([0.0, 1234.5], dtype=torch.float64)
        conv = layer(NORMAL, ANOMALY, outliers={1: [5, 6]}, clusters=labels, calinski_harabasz=index)
        figure = filter_figure({"block.conv1": conv})
        assert figure._repr_png_().startswith(b"\x89PNG")  # for notebooks
        (axes,) = figure.axes
        drawn = {part.get_label(): part for part in axes.collections}
        np.testing.assert_array_equal(drawn.pop("outlier sample").get_offsets(), conv.points[1, [5, 6]].numpy())
        assert list(drawn) == ["component 1", "component 2", "component 3"]
        for part, label in zip(drawn.values(), (3, 0, 1), strict=True):
            np.testing.assert_array_equal(part.get_offsets(), conv.points[1, labels[1] == label].numpy())
        assert axes.get_title() == "layer block.conv1\nfilter 1: K = 2, CH = 1,234, 2 outliers"
        assert axes.get_xlabel() == "first component (its std. dev.)"
        line = torch.stack([torch.arange(N) / N, torch.zeros(N)], 1)  # the second component does not vary
        many = layer(ANOMALY, outliers={0: [5]}, clusters=torch.arange(N)[None] % 12, points=line[None])
        (axes,) = filter_figure({"conv": many}).axes
        assert axes.get_ylim() == pytest.approx((-0.5, 0.5))
        parts = axes.collections[:-1]
        assert len({(*part.get_facecolor()[0], part.get_paths()[0].vertices.tobytes()) for part in parts}) == 12
        assert filter_figure({"conv": layer(NORMAL, DEAD, NONFINITE)}) is None

    @pytest.mark.parametrize("count", [1, 9])
    def test_panels_are_the_clearest_filters(self, count):
        labels = torch.arange(N).expand(count, N) % 8
        conv = layer(*[ANOMALY] * count, outliers={i: [i] for i in range(count)}, clusters=labels)
        found = {"backbone.with_a_long_name.layer4.2.downsample.0": conv}
        figure = filter_figure(found)
        assert figure.get_suptitle() == f"Filters with the clearest anomalies: {min(count, 6)} of {count}"
        shown = [axes.get_title().split("\n")[1].split(":")[0] for axes in figure.axes]
        assert shown == [f"filter {index}" for _, index in clearest_filters(found)]
        named = [text.get_text() for text in figure.legends[0].get_texts()]
        assert named == [*(f"component {rank}" for rank in range(1, 9)), "outlier sample"]
        assert all(axes.bbox.height > 1.8 * figure.dpi for axes in figure.axes)  # inches


class TestVerdictMap:
    def codes(self, figure):
        return [mesh.get_array().compressed().tolist() for mesh in figure.axes[0].collections]

    def test_every_filter_is_a_cell_in_the_color_of_its_verdict_and_the_legend_counts(self):
        apart = torch.zeros(5, N, dtype=torch.bool)
        apart[[1, 3], 5] = True
        a = layer(NORMAL, NORMAL, ANOMALY, ANOMALY, DEAD, outliers={2: [5], 3: [5]}, isolated=apart)
        figure = verdict_map({"a": a, "b": layer(NONFINITE, *[NORMAL] * 69)})
        assert self.codes(figure) == [[0, 1, 2, 3, 4], [5] + [0] * 69]
        assert [mesh.get_array().shape for mesh in figure.axes[0].collections] == [(1, 64), (2, 64)]
        colors = figure.axes[0].collections[0].to_rgba(range(6), alpha=1)
        assert len({tuple(color) for color in colors}) == 6
        for patch, color in zip(figure.legends[0].get_patches(), colors, strict=True):
            assert patch.get_facecolor() == pytest.approx(color)
        counts = ["normal: 70", "isolated: 1", "anomaly: 1", "anomaly and isolated: 1", "dead: 1", "nonfinite: 1"]
        assert [text.get_text() for text in figure.legends[0].get_texts()] == counts
        assert [text.get_text() for text in figure.axes[0].texts] == ["layer a", "2 of 5", "layer b", "0 of 70"]
        assert figure.axes[0].get_title().startswith("2 of 75 filters are anomaly filters, 2.7% of those")

    def test_long_names_are_shortened_at_the_start_and_an_empty_report_is_drawn(self):
        figure = verdict_map({"encoder." * 20 + "last.conv": layer(NORMAL), "": layer(NORMAL)})
        (first, _, second, _) = (text.get_text() for text in figure.axes[0].texts)
        assert first.endswith("encoder.last.conv")
        assert len(first) == 24
        assert second == "the model"
        pixels(verdict_map({}))

    def test_a_single_anomaly_in_a_large_network_is_visible_and_the_size_is_limited(self):
        found = {f"layer{i}": layer(*[NORMAL] * 128, samples=1) for i in range(150)}
        found["layer20"] = layer(*[NORMAL] * 60, ANOMALY, *[NORMAL] * 67, outliers={60: [0]}, samples=1)
        figure = verdict_map(found)
        assert (figure.get_size_inches() <= (10, 20)).all()
        assert sum(map(len, self.codes(figure))) == 150 * 128
        assert len(figure.axes[0].texts) < 2 * 150  # names do not overlap
        image = pixels(figure)[: -int(0.8 * figure.dpi)]  # without the legend
        assert (np.abs(image - [0xD5, 0x5E, 0x00]) < 40).all(2).sum() >= 4
        flat = verdict_map({"a": layer(*[NORMAL] * 64 * 600, samples=1)})  # whose cells have no room for edges
        assert [drawn.axes[0].collections[0].get_linewidth()[0] > 0 for drawn in (figure, flat)] == [True, False]


def test_figures_neither_use_nor_change_the_users_style():
    from matplotlib import pyplot

    found = {"conv.with_under_scores": layer(ANOMALY, DEAD, outliers={0: [5]}), "money$1$": layer(NORMAL)}
    plain = [pixels(filter_figure(found)), pixels(verdict_map(found))]
    with matplotlib.style.context(["dark_background", {"font.size": 20, "text.usetex": True}]):
        before = dict(matplotlib.rcParams)
        styled = [pixels(filter_figure(found)), pixels(verdict_map(found))]
        assert dict(matplotlib.rcParams) == before
    for one, other in zip(plain, styled, strict=True):
        np.testing.assert_array_equal(one, other)
    assert pyplot.get_fignums() == []  # pyplot does not manage the figures


def test_losses_and_counts_are_those_of_each_validation_and_a_missing_value_is_a_gap() -> None:
    losses = [{"val_loss": 3.0}, {"train_loss": 2.0}, {"val_loss": 1.0}]  # a training loss is known later
    history = [
        {"epoch": epoch, "step": 9 * epoch, "metrics": {"count": 4.0 + epoch, "isolated": 2.0}, "logged": logged}
        for epoch, logged in enumerate(losses)
    ]
    left, right = curves_figure(
        [*history, {**history[0], "epoch": 3, "metrics": {}}], {"training": "train_loss", "validation": "val_loss"}
    ).axes
    found = {line.get_label(): line.get_ydata() for axes in (left, right) for line in axes.get_lines()}
    assert list(found) == ["train_loss", "val_loss", "isolated filters", "anomaly filters"]
    gap = math.nan
    expected = [gap, 2, gap, gap], [3, gap, 1, 3], [2, 2, 2, gap], [4, 5, 6, gap]
    np.testing.assert_array_equal(list(found.values()), expected)
    assert (left.get_ylabel(), right.get_ylabel(), right.get_ylim()[0]) == ("loss", "filters", 0)
    assert [line.get_linestyle() for line in left.get_lines()] == ["-", "--"]
    assert curves_figure([{**history[0], "logged": {}}], {}).axes[0].get_ylabel() == ""


@pytest.mark.parametrize(
    ("epochs", "label", "numbers"),
    [
        ([4, 9, 14], "epoch", ["4", "9", "14"]),
        ([*range(10)], "epoch", [*"0123456789"]),
        ([0, 0, 1], "step", ["7", "14", "21"]),
    ],
)
def test_validations_are_numbered_by_epoch_or_by_step(epochs: list[int], label: str, numbers: list[str]) -> None:
    history = [{"epoch": epoch, "step": 7 * place + 7, "metrics": {}} for place, epoch in enumerate(epochs)]
    axes = curves_figure(history, {}).axes[0]
    assert axes.get_xlabel() == label
    assert [tick.get_text() for tick in axes.get_xticklabels()] == numbers


@pytest.mark.parametrize(("metrics", "said"), [({"count": 0.0, "isolated": 0.0}, ""), ({}, ": not measured")])
def test_counts_of_0_and_none_have_whole_ticks_and_none_is_said(metrics: dict[str, float], said: str) -> None:
    _, right = curves_figure([{"epoch": 0, "step": 9, "metrics": metrics}], {}).axes
    assert all(tick == round(tick) for tick in right.get_yticks())
    assert [line.get_label() for line in right.get_lines()] == [f"isolated filters{said}", f"anomaly filters{said}"]
