"""Figures show what the report says, in the order promised, and stay small."""

import re
from dataclasses import replace

import matplotlib
import matplotlib.style
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from reports import layer as made_up
from torch import Tensor

from lightning_anomaly.plots import clearest_filters, filter_figure, outlier_figure, verdict_map
from lightning_anomaly.report import AnomalyReport, LayerReport
from lightning_anomaly.verdicts.rare import ANOMALY, DEAD, NONFINITE, NORMAL

N = 60


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer(verdicts, outliers=(), **values) -> LayerReport:
    return made_up(*verdicts, outliers=outliers, **values)


def report(n_samples=N, **layers) -> AnomalyReport:
    return AnomalyReport({name.replace("__", "."): found for name, found in layers.items()}, n_samples)


def far(outliers: list[int], distance: float, spread: float = 1.0, seed: int = 0) -> Tensor:
    """Samples of one filter `(N, 2)` within a disc, but for the outliers on a small circle far away."""
    radius, angle = torch.rand(2, N, generator=rng(seed))
    points = spread * radius[:, None].sqrt() * torch.stack([(7 * angle).cos(), (7 * angle).sin()], 1)
    points[outliers] = torch.tensor([distance, 0.0])
    return points


def pixels(figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


class TestClearestFilters:
    def clearest(self, *points: Tensor, outliers: list[int]) -> list[int]:
        flagged = dict.fromkeys(range(len(points)), outliers)
        found = report(conv=layer([ANOMALY] * len(points), flagged, points=torch.stack(points)))
        return [index for _, index in clearest_filters(found)]

    def test_wider_gaps_come_first_in_units_of_the_spread_of_the_others(self):
        assert self.clearest(*(far([1, 2], gap) for gap in (3.0, 4.2, 2.0, 3.6)), outliers=[1, 2]) == [1, 3, 0, 2]
        assert self.clearest(far([0], 3.0), 0.5 * far([0], 2.9), outliers=[0]) == [0, 1]  # the same, twice as close

    def test_near_dead_filters_do_not_crowd_out_the_others(self):
        silent = torch.zeros(N, 2)
        silent[5, 0] = 7.0
        assert self.clearest(silent, far([5], 10.0), silent, far([5], 2.0), outliers=[5]) == [1, 0, 2, 3]

    def test_only_anomaly_filters_of_any_layer_up_to_the_limit(self):
        found = report(a=layer([NORMAL, ANOMALY, DEAD], {1: [3]}), b=layer([NONFINITE, ANOMALY], {1: [3]}))
        assert sorted(clearest_filters(found)) == [("a", 1), ("b", 1)]
        assert len(clearest_filters(found, max_filters=1)) == 1

        every = report(a=layer([ANOMALY, ANOMALY], {0: list(range(N)), 1: [3]}))  # all samples may be outliers
        assert clearest_filters(every) == [("a", 1), ("a", 0)]


class TestFilterFigure:
    def test_nothing_to_show_is_none(self):
        assert filter_figure(report()) is None
        assert filter_figure(report(conv=layer([NORMAL, DEAD, NONFINITE]))) is None

    def test_rings_lie_on_the_outliers_and_nowhere_else(self):
        found = layer([NORMAL, ANOMALY], {1: [4, 17, 40]})
        (axes,) = filter_figure(report(conv=found)).axes
        (rings,) = (drawn for drawn in axes.collections if drawn.get_label() == "outlier sample")
        np.testing.assert_array_equal(rings.get_offsets(), found.points[1, [4, 17, 40]].numpy())

    def test_components_are_numbered_and_coloured_by_size(self):
        labels = torch.tensor([[0] * 5 + [1] * 2 + [2] * (N - 7)])
        found = layer([ANOMALY], {0: [5, 6]}, labels=labels)
        (axes,) = filter_figure(report(conv=found)).axes
        drawn = {part.get_label(): part for part in axes.collections}
        for name, label in (("component 1", 2), ("component 2", 0), ("component 3", 1)):
            np.testing.assert_array_equal(drawn[name].get_offsets(), found.points[0, labels[0] == label].numpy())
        assert len({tuple(drawn[f"component {rank}"].get_facecolor()[0]) for rank in (1, 2, 3)}) == 3
        assert "component 4" not in drawn

        many, *_ = filter_figure(report(conv=layer([ANOMALY], {0: [5]}, labels=torch.arange(N)[None] % 12))).axes
        parts = many.collections[:-1]
        assert len({(*part.get_facecolor()[0], part.get_paths()[0].vertices.tobytes()) for part in parts}) == 12

    @pytest.mark.parametrize(("value", "text"), [(1234.5, "1,234"), (0.0, "0"), (3.14159, "3.14"), (7.3e34, "7.3e+34")])
    def test_title_and_axes_say_what_is_shown(self, value, text):
        index = torch.tensor([value], dtype=torch.float64)
        own = layer([ANOMALY], {0: [5]}, calinski_harabasz=index, n_components=torch.tensor([3]))
        (axes,) = filter_figure(report(block__conv1=own)).axes
        assert axes.get_title() == f"layer block.conv1\nfilter 0: K = 3, CH = {text}, 1 outlier"
        assert axes.get_xlabel() == "first component (its std. dev.)"

    def test_panels_are_the_clearest_filters_in_order(self):
        found = report(conv=layer([ANOMALY] * 9, {i: [i] for i in range(9)}))
        figure = filter_figure(found)
        shown = [axes.get_title().split("\n")[1].split(":")[0] for axes in figure.axes]
        assert shown == [f"filter {index}" for _, index in clearest_filters(found)]
        assert figure.get_suptitle() == "Filters with the clearest anomalies: 6 of 9"

    def test_a_component_that_hardly_varies_looks_so(self):
        points = far([5], 4.0)[None].clone()
        points[..., 1] *= 1e-17
        (axes,) = filter_figure(report(conv=layer([ANOMALY], {0: [5]}, points=points))).axes
        low, high = axes.get_ylim()
        assert high - low == pytest.approx(1)

    @pytest.mark.parametrize("count", [1, 6])
    def test_nothing_lies_outside_or_overlaps(self, count):
        labels = torch.arange(N).expand(count, N) % 8
        name = "backbone.with_a_long_name.layer4.2.downsample.0"
        own = layer([ANOMALY] * count, {i: [5] for i in range(count)}, labels=labels)
        figure = filter_figure(AnomalyReport({name: own}, N))
        pixels(figure)
        shown = [figure.legends[0], *(part for axes in figure.axes for part in (axes.title, axes.xaxis.label))]
        boxes = [part.get_window_extent(figure.canvas.get_renderer()) for part in shown]
        for place, box in enumerate(boxes):
            assert min(*box.min, *(figure.get_size_inches() * figure.dpi - box.max)) >= 0
            assert not any(box.overlaps(other) for other in boxes[:place])


class TestOutlierFigure:
    found = report(
        a=layer([ANOMALY, ANOMALY, NORMAL], {0: [7, 30], 1: [30]}), b=layer([ANOMALY, ANOMALY], {0: [30, 9], 1: [9]})
    )
    images = torch.randint(0, 256, (N, 3, 5, 4), generator=rng()).to(torch.uint8)

    def captions(self, figure):
        return [axes.get_title() for axes in figure.axes]

    def test_nothing_to_show_is_none(self):
        assert outlier_figure(report(conv=layer([NORMAL])), self.images) is None

    def test_most_votes_first_then_earliest(self):
        figure = outlier_figure(self.found, self.images)
        votes = {30: "3 votes", 9: "2 votes", 7: "1 vote"}
        assert self.captions(figure) == [f"sample {sample}\nscore 0.0\n{text}" for sample, text in votes.items()]
        assert figure.get_suptitle().startswith("Samples with the largest outlier scores: 3 of 60\n")
        tied = outlier_figure(report(conv=layer([ANOMALY], {0: [40, 2, 11]})), self.images)
        assert [text.split()[1] for text in self.captions(tied)] == ["2", "11", "40"]

    def test_a_white_image_has_a_frame(self):
        figure = outlier_figure(self.found, torch.full((N, 1, 4, 4), 255, dtype=torch.uint8))
        image = pixels(figure)
        for axes in figure.axes:
            box = axes.get_window_extent()
            top, bottom = (round(len(image) - y) for y in (box.y1, box.y0))
            inside = image[top - 1 : bottom + 1, round(box.x0) - 1 : round(box.x1) + 1]
            assert (inside < 250).any()

    def test_larger_scores_come_before_more_votes(self):
        scores = torch.full((N,), -1.0)
        scores[:5] = torch.tensor([2.0, 4.0, 1.0, 5.0, 3.0])
        found = report(conv=replace(layer([ANOMALY], {0: [40, 2]}), outlier_scores=scores))
        shown = [int(caption.split()[1]) for caption in self.captions(outlier_figure(found, self.images))]
        assert shown == [3, 1, 4, 0, 2, 40]  # none that is ordinary, unless it has votes

    def test_sixteen_are_shown_at_most(self):
        figure = outlier_figure(report(conv=layer([ANOMALY], {0: list(range(N))})), self.images)
        assert len(figure.axes) == 16
        assert figure.get_suptitle().startswith("Samples with the largest outlier scores: 16 of 60\n")

    def shown(self, images: Tensor) -> list[np.ndarray]:
        return [np.asarray(axes.images[0].get_array()) for axes in outlier_figure(self.found, images).axes]

    def test_bytes_are_shown_as_they_are_and_of_other_numbers_of_channels_the_first(self):
        for image, sample in zip(self.shown(self.images), (30, 9, 7), strict=True):
            np.testing.assert_array_equal(image, self.images[sample].permute(1, 2, 0).numpy())
        for images in (self.images[:, :1], torch.cat([self.images, self.images], 1)):
            np.testing.assert_array_equal(self.shown(images)[0], images[30, 0].numpy())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_normalisation_is_undone(self, dtype):
        images = self.images.clone()
        images[:, :, 0, 0], images[:, :, 0, 1] = 0, 255
        images[30], images[9] = 0, 255  # a black and a white image have no range of their own
        mean, std = torch.tensor([0.1, 0.5, 0.9])[:, None, None], torch.tensor([0.2, 0.3, 0.05])[:, None, None]
        shown = self.shown(((images / 255 - mean) / std).to(dtype).requires_grad_())
        for image, sample in zip(shown, (30, 9, 7), strict=True):
            difference = np.abs(image.astype(int) - images[sample].permute(1, 2, 0).numpy())
            assert difference.max() <= (0 if dtype == torch.float32 else 3)

    def test_extreme_images_do_not_darken_the_others(self):
        images = torch.rand(N, 1, 8, 8, generator=rng())
        images[30] *= 1e6
        shown = self.shown(images)
        assert shown[0].mean() > 250
        assert np.abs(shown[1] - 255 * images[9, 0].numpy()).max() < 12

    def test_images_without_sense_do_no_harm(self):
        images = torch.randn(N, 3, 5, 4, generator=rng())
        images[30], images[9], images[7] = torch.nan, torch.inf, -torch.inf
        assert [image.max() for image in self.shown(images)] == [0, 255, 0]
        assert [image.max() for image in self.shown(torch.zeros(N, 1, 2, 2))] == [0, 0, 0]

    @pytest.mark.parametrize(
        ("images", "found"),
        [
            *((torch.zeros(size), size) for size in ((N, 3, 4), (N - 1, 3, 4, 4), (N, 0, 4, 4))),
            (np.zeros(N), "ndarray"),
        ],
    )
    def test_what_is_no_image_for_each_sample_is_an_error(self, images, found):
        with pytest.raises(ValueError, match=rf"`images` should be .*\(60, .*Found {re.escape(str(found))}"):
            outlier_figure(self.found, images)


class TestVerdictMap:
    def codes(self, figure):
        return [mesh.get_array().compressed().tolist() for mesh in figure.axes[0].collections]

    def test_every_filter_is_a_cell_with_its_verdict(self):
        found = report(a=layer([NORMAL, ANOMALY, DEAD], {1: [5]}), b=layer([NONFINITE] + [NORMAL] * 69))
        figure = verdict_map(found)
        assert self.codes(figure) == [[0, 1, 2], [3] + [0] * 69]
        assert [mesh.get_array().shape for mesh in figure.axes[0].collections] == [(1, 32), (3, 32)]
        colours = figure.axes[0].collections[0].to_rgba([0, 1, 2, 3], alpha=1)
        assert len({tuple(colour) for colour in colours}) == 4
        for patch, colour in zip(figure.legends[0].get_patches(), colours, strict=True):
            assert patch.get_facecolor() == pytest.approx(colour)

    def test_legend_and_labels_count(self):
        found = report(a=layer([NORMAL, ANOMALY, DEAD], {1: [5]}), b=layer([ANOMALY, NORMAL], {0: [5]}))
        figure = verdict_map(found)
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["normal: 2", "anomaly: 2", "dead: 1"]
        assert [text.get_text() for text in figure.axes[0].texts] == ["layer a", "1 of 3", "layer b", "1 of 2"]
        assert figure.axes[0].get_title().startswith("2 of 5 filters are anomaly filters, 50.0% of those")

    def test_filters_that_set_samples_apart_have_shades_of_their_own(self):
        apart = torch.zeros(4, N, dtype=torch.bool)
        apart[[1, 3], 5] = True
        figure = verdict_map(report(a=layer([NORMAL, NORMAL, ANOMALY, ANOMALY], {2: [5], 3: [5]}, isolated=apart)))
        assert self.codes(figure) == [[0, 4, 1, 5]]
        texts = ["normal: 1", "anomaly: 1", "dead: 0", "normal, isolated: 1", "anomaly, isolated: 1"]
        assert [text.get_text() for text in figure.legends[0].get_texts()] == texts
        assert len({patch.get_facecolor() for patch in figure.legends[0].get_patches()}) == 5

    def test_long_names_lose_their_beginning(self):
        figure = verdict_map(AnomalyReport({"encoder." * 20 + "last.conv": layer([NORMAL]), "": layer([NORMAL])}, N))
        (first, _, second, _) = (text.get_text() for text in figure.axes[0].texts)
        assert first.startswith("layer …")
        assert first.endswith("encoder.last.conv")
        assert len(first) == 36
        assert second == "the model"

    def test_no_filters_is_a_picture_too(self):
        figure = verdict_map(report())
        assert figure.axes[0].get_title() == "No filters were analyzed"
        pixels(figure)

    @pytest.mark.parametrize(("layers", "filters"), [(150, 8), (3, 12_000)])
    def test_size_is_bounded_and_every_cell_is_kept(self, layers, filters):
        found = layer([NORMAL, ANOMALY] * (filters // 2), samples=1)
        figure = verdict_map(AnomalyReport({f"layer{i}": found for i in range(layers)}, 1))
        assert (figure.get_size_inches() <= (10, 20)).all()
        assert sum(map(len, self.codes(figure))) == layers * filters
        few = len(figure.axes[0].texts) < 2 * layers
        assert few == ("is named" in figure.axes[0].get_title()) == (layers > 100)

    def test_a_single_anomaly_among_thousands_can_be_seen(self):
        found = {f"layer{i}": layer([NORMAL] * 512, samples=1) for i in range(40)}
        found["layer20"] = layer([NORMAL] * 300 + [ANOMALY] + [NORMAL] * 211, {300: [0]}, samples=1)
        figure = verdict_map(AnomalyReport(found, 1))
        image = pixels(figure)[: -int(0.5 * figure.dpi)]  # without the legend
        assert (np.abs(image - [0xD5, 0x5E, 0x00]) < 40).all(2).sum() >= 4


def test_the_users_style_neither_matters_nor_changes():
    from matplotlib import pyplot

    found = report(conv__with_under_scores=layer([ANOMALY, DEAD], {0: [5]}), **{"money$1$": layer([NORMAL])})
    plain = [pixels(filter_figure(found)), pixels(verdict_map(found))]
    with matplotlib.style.context(["dark_background", {"font.size": 20, "text.usetex": True}]):
        before = dict(matplotlib.rcParams)
        styled = [pixels(filter_figure(found)), pixels(verdict_map(found))]
        assert dict(matplotlib.rcParams) == before
    for one, other in zip(plain, styled, strict=True):
        np.testing.assert_array_equal(one, other)
    assert pyplot.get_fignums() == []  # no window knows the figures
