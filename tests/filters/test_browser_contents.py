"""The contents of the filter browser, without a browser."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from reports import contents, layer, page_rows
from torch import Tensor

from lightning_anomaly import AnomalyReport
from lightning_anomaly.filters.filter_page import filter_browser_text
from lightning_anomaly.filters.kept_maps import KeptMaps, keep_maps
from lightning_anomaly.network.layer_maps import LayerMaps
from lightning_anomaly.pages.html_page import usual_score


def made_up(filters: int, samples: int, outliers: int = 0) -> AnomalyReport:
    """Make a layer with random points; the first `outliers` samples are outliers of every filter."""
    labels = torch.randint(0, 3, (filters, samples), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    verdicts = ["anomaly" if outliers else "normal"] * filters
    flagged = dict.fromkeys(range(filters), range(outliers))
    return AnomalyReport({"conv": layer(*verdicts, outliers=flagged, samples=samples, clusters=labels)}, samples)


def read_points(raw: bytes, filters: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Decode samples `(n,)`, points `(n, 2)`, and clusters and marks `(n, 2)` of each filter."""
    starts = np.frombuffer(raw, "<u4", filters + 1)
    count, offset = int(starts[-1]), 4 * (filters + 1)
    ranges = np.frombuffer(raw, "<f4", 4 * filters, offset).reshape(filters, 2, 2)
    steps = np.frombuffer(raw, "<u4", count, offset + 16 * filters)
    planes = np.frombuffer(raw, np.uint8, offset=offset + 16 * filters + 4 * count).reshape(6, count)
    levels = np.stack([planes[0] + 256.0 * planes[1], planes[2] + 256.0 * planes[3]], 1)
    found = []
    for (low, high), (begin, end) in zip(ranges.transpose(0, 2, 1), pairwise(starts), strict=True):
        points = low + (high - low) * levels[begin:end] / 4095
        found.append((steps[begin:end].cumsum(), points, planes[4:, begin:end].T))
    return found


@pytest.mark.parametrize("shown", [100, 1000])
def test_points_are_stored_with_4096_levels_and_thinned_if_there_are_too_many(monkeypatch, shown):
    monkeypatch.setattr("lightning_anomaly.filters.filter_page._POINTS", 5 * shown)
    report = made_up(5, 1000, outliers=3)
    conv = report.layers["conv"]
    conv.isolated[:, [1, 7]] = True
    conv.calinski_harabasz[0], conv.sparsity[1] = torch.inf, torch.nan  # which JSON does not have
    index, blocks = contents(filter_browser_text(report, "", None))
    assert index["layers"][0]["calinski_harabasz"][0] is index["layers"][0]["sparsity"][1] is None
    for place, (samples, points, marks) in enumerate(read_points(blocks["points-0"], 5)):
        kept, whole = samples.tolist(), conv.points[place]
        assert {0, 1, 2, 7} <= set(kept)
        assert shown <= len(kept) <= shown + 4
        assert np.diff(kept).max() < 2500 / shown
        error = np.abs(points - whole[kept].numpy()) / (whole.amax(0) - whole.amin(0)).numpy()
        assert error.max() <= 0.5 / 4095 + 1e-6
        assert marks[:, 0].tolist() == conv.clusters[place, kept].tolist()
        assert (marks[:, 1] & 1).tolist() == conv.outliers[place, kept].tolist()
        assert (marks[:, 1] >> 1).tolist() == conv.isolated[place, kept].tolist()
    conv.points[4] = 0  # of a dead filter, which has no points to draw
    last = read_points(contents(filter_browser_text(report, "", None))[1]["points-0"], 5)[4]
    assert len(last[0]) == 0
    notes = [" 100 samples" in note and "1,000" in note for note in index["notes"]]
    assert notes == [True] * (shown < 1000)


def test_the_first_24_filters_that_react_to_each_sample_are_stored():
    """First those that isolate it, then those with it in a rare cluster, by descending distance."""
    conv = made_up(40, 50, outliers=2).layers["conv"]
    conv.isolated[7, [0, 5]] = True
    report = AnomalyReport({"first": made_up(3, 50).layers["conv"], "conv": conv}, 50)
    stored = contents(filter_browser_text(report, "", None))[0]["reactions"]
    assert [len(reactions) for reactions in stored] == [24, 24, 0, 0, 0, 1, *[0] * 44]
    assert stored[0][0][0] == stored[5][0][0] == 3 + 7
    distances = conv.points[:, 0].norm(dim=1)
    for number, distance in stored[0]:
        assert distance == pytest.approx(distances[number - 3].item(), rel=1e-3)
    others = [distance for _, distance in stored[0][1:]]
    assert others == sorted(others, reverse=True)


class TestMaps:
    def take(self, maps: Tensor, outliers: Tensor) -> KeptMaps:
        conv = replace(made_up(*outliers.shape).layers["conv"], outliers=outliers)
        return keep_maps({"conv": conv}, {"conv": LayerMaps([maps], len(maps), tuple(maps.shape[2:]))})["conv"]

    def test_maps_of_outliers_come_first_then_the_most_and_least_active(self):
        maps = torch.arange(100.0)[:, None, None, None].expand(-1, 2, 4, 4).clone()
        outliers = torch.zeros(2, 100, dtype=torch.bool)
        outliers[1, [50, 60]] = True
        kept = self.take(maps, outliers)
        assert kept.most.tolist() == [list(range(99, 91, -1))] * 2
        assert kept.least.tolist() == [list(range(8))] * 2
        assert set(kept.samples[1, :2].tolist()) == {50, 60}
        assert set(kept.samples[1, 2:18].tolist()) == {*range(8), *range(92, 100)}
        assert kept.samples.sort(1).values.tolist() == [list(range(100))] * 2

    def test_the_scale_is_that_of_ordinary_maps_or_else_the_largest_value(self):
        maps = torch.rand(100, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        maps[3] *= 1000
        kept = self.take(maps, torch.zeros(1, 100, dtype=torch.bool))
        others = kept.maps[0, kept.samples[0] != 3]
        assert others.float().mean() == pytest.approx(127, abs=12)
        assert kept.maps[0, kept.samples[0] == 3].float().mean() > 250
        maps = torch.zeros(100, 1, 2, 2)
        maps[7, 0, 0] = torch.tensor([5, 1])
        kept = self.take(maps, torch.zeros(1, 100, dtype=torch.bool))
        assert kept.maps[0, kept.samples[0] == 7].tolist() == [[[255, 51], [0, 0]]]
        assert kept.maps.sum() == 255 + 51

    def test_maps_of_volumes_are_their_middle_slices_and_those_of_signals_rows(self):
        maps = torch.rand(30, 2, 5, 4, 3, generator=torch.Generator().manual_seed(0))
        whole, middle, signals, numbers = (
            self.take(part, torch.zeros(2, 30, dtype=torch.bool)).maps
            for part in (maps, maps[:, :, 2], maps[..., 0, 0], maps[..., 0, 0, 0])
        )
        assert torch.equal(whole, middle)
        assert (signals.shape, numbers.shape) == ((2, 30, 1, 5), (2, 30, 1, 1))

    def test_pixels_are_packed_as_the_nearest_of_sixteen_levels(self):
        outliers = torch.zeros(2, 30, dtype=torch.bool)
        kept = self.take(torch.rand(30, 2, 3, 3, generator=torch.Generator().manual_seed(0)), outliers)
        index, blocks = contents(filter_browser_text(replace(made_up(2, 30), maps={"conv": kept}), "", None))
        raw = blocks["maps-0"]
        assert index["notes"] == []  # no map is left out
        samples = np.frombuffer(raw, "<u4", 60).reshape(2, 30).cumsum(1)
        assert samples.tolist() == [list(range(30))] * 2
        packed = np.frombuffer(raw, np.uint8, offset=240).reshape(2, 30, 5)
        levels = np.stack([packed & 15, packed >> 4], 3).reshape(2, 30, 10)[..., :9]
        ordered = kept.maps.flatten(2).gather(1, kept.samples.argsort(1)[..., None].expand(-1, -1, 9))
        assert levels.tolist() == (ordered.float() / 17).round().int().tolist()


class TestReport:
    def test_a_page_has_all_scores_and_their_95th_percentile(self):
        report = made_up(1, 5)
        assert contents(filter_browser_text(report, "", None))[0]["scores"] == [0] * 5
        assert usual_score(torch.tensor([torch.inf])) == usual_score(torch.zeros(9)) == 0
        look = torch.tensor([1.25, torch.inf, 0.5, 2, 3], dtype=torch.float64)
        report = replace(report, columns={"look_score": look, "look_reason": ["a", "b", "", "d", "e"]})
        page = filter_browser_text(report, "", [*"vwxyz"])
        index, _ = contents(page)
        assert "".join(row["class"] for row in page_rows(page)["strangest samples"]) == "wzyvx"  # by descending score
        assert index["scores"] == [1.25, None, 0.5, 2, 3]
        assert index["ordinary"] == pytest.approx(torch.tensor([1.25, 0.5, 2, 3]).quantile(0.95).item(), rel=1e-3)
        assert index["views"] == [{"view": "look", "ordinary": index["ordinary"], "scores": index["scores"]}]
        assert index["reasons"] == [{"look": reason} if reason else {} for reason in ("a", "b", "", "d", "e")]

    @pytest.mark.parametrize(
        ("labels", "names"),
        [
            (torch.tensor([10, 9, 10]), ["9", "10"]),  # in their own order
            (["b", "a", "b"], ["a", "b"]),
            (np.array([[3], [1], [3]]), ["[1]", "[3]"]),  # MedMNIST's
        ],
    )
    def test_labels_are_numbered_in_the_order_of_their_values(self, labels, names):
        index, _ = contents(filter_browser_text(made_up(1, 3), "", labels))
        assert index["labels"] == {"names": names, "of": [1, 0, 1]}

    def test_given_labels_replace_those_of_the_report(self, tmp_path):
        report = replace(made_up(1, 3), columns={"class": ["a", "b", "c"]})
        for labels, names in ((None, ["a", "b", "c"]), ([7, 7, 7], ["7"])):
            page = report.save_html(tmp_path / "filters.html", labels).path
            assert contents(page.read_text())[0]["labels"]["names"] == names

    def test_a_page_without_layers_has_its_notes_alone(self):
        report = AnomalyReport({}, 0, notes={"no layers": "There is no convolution."})
        index, _ = contents(filter_browser_text(report, "", ["a", "b"]))
        assert index["notes"] == ["There is no convolution."]
        assert not index["measured"]
        assert [index[name] for name in ("images", "labels", "names")] == [None] * 3
