"""A report is printed as a table, and has finite metrics."""

import math
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch
from reports import layer

from lightning_anomaly import AnomalyReport

LOOK = torch.tensor([2.0, 0.5, 1.0, 9.0, 0.5, 1.0], dtype=torch.float64)
VIEWS = {"look_score": LOOK, "look_reason": ["dark", "", "flat", "noisy", "", "odd"]}
BROKEN = torch.arange(6) == 2
APART = torch.zeros(3, 6, dtype=torch.bool)
APART[0, 4], APART[1, :2] = True, True
LEFT_OUT = "Layer 'conv9' is left out of the analysis: it was never called."
REPORT = AnomalyReport(
    {
        "conv1": layer("normal", "anomaly", "dead", outliers={1: [2, 5]}, samples=6, map_size=(32, 32), isolated=APART),
        "conv2": layer("nonfinite", "normal", samples=6, sparsity=torch.tensor([0.9, 0.75]).double(), map_size=(),
                       nonfinite=BROKEN),
        "conv3": layer("anomaly", "anomaly", outliers={0: [5], 1: [5, 0]}, samples=6),
    },
    6,
    {"max_components": 5, "engine": "sklearn"},
    {"conv9 left out": LEFT_OUT},
    VIEWS,
)  # fmt: skip
EMPTY = AnomalyReport({}, 0, {}, {"no layers": "The model has no convolution."})


def test_filters_are_listed_by_verdict_without_empty_layers():
    assert REPORT.anomaly_filters == {"conv1": [1], "conv3": [0, 1]}
    assert REPORT.dead_filters == {"conv1": [2]}
    assert REPORT.isolated_filters == {"conv1": [0, 1]}
    assert REPORT.count == 3


def test_the_fraction_counts_only_filters_that_could_be_clustered():
    assert (REPORT.fraction, REPORT.n_clustered) == (3 / 5, 5)
    assert AnomalyReport({"conv": layer("dead", "nonfinite")}, 60).fraction == EMPTY.fraction == 0


def test_samples_have_votes_and_a_score_that_is_infinite_with_nonfinite_maps():
    assert REPORT.votes == [1, 0, 1, 0, 0, 3]
    assert REPORT.outlier_scores.tolist() == [2, 0.5, math.inf, 9, 0.5, 1]
    assert REPORT.by_outlier_score == [2, 3, 0, 5, 1, 4]  # equal scores are ordered by votes, then by position
    assert EMPTY.votes == EMPTY.outlier_scores.tolist() == EMPTY.by_outlier_score == []


def test_the_score_is_the_larger_one_and_its_reason_comes_first():
    reasons = ["", "", "unlike the others", "unlike the others", "", ""]
    report = replace(REPORT, columns={**VIEWS, "content_score": LOOK.flip(0), "content_reason": reasons}, layers={})
    assert report.outlier_scores.tolist() == [2, 0.5, 9, 9, 0.5, 2]
    assert (report.look_scores.tolist(), report.content_scores.tolist()) == (LOOK.tolist(), LOOK.flip(0).tolist())
    assert [*report.outlier_reasons(2)] == ["content", "look"]
    assert [*report.outlier_reasons(3).items()] == [("look", "noisy"), ("content", "unlike the others")]
    assert report.outlier_reasons(1) == {}
    with pytest.raises(ValueError, match="`sample = 6`"):
        report.outlier_reasons(6)
    assert REPORT.content_scores.isnan().tolist() == EMPTY.look_scores.isnan().tolist() + [True] * 6


def test_metrics_are_finite_floats():
    assert REPORT.metrics() == {
        "count": 3.0,
        "fraction": 0.6,
        "isolated": 2.0,
        "dead": 1.0,
        "sparsity": pytest.approx((5 * 0.25 + 0.75) / 6),  # of the filters without NaN
        "outlier_samples": 3.0,
        "layer/conv1": 1.0,
        "layer/conv2": 0.0,
        "layer/conv3": 2.0,
    }
    nonfinite = AnomalyReport({"conv": layer("nonfinite", samples=6)}, 6)
    assert [found.measured for found in (REPORT, EMPTY, nonfinite)] == [True, False, False]
    for found in (REPORT, EMPTY, nonfinite):
        assert all(type(value) is float and math.isfinite(value) for value in found.metrics().values())
    assert set(EMPTY.metrics().values()) == {0.0}


class TestTable:
    def test_a_report_begins_with_the_strangest_samples_then_the_count(self):
        text, table = str(REPORT).split("\n\n")
        *strangest, isolating, count = text.splitlines()
        assert strangest[1:3] == ["  2, score inf: flat", "  3, score 9.0: noisy"]
        assert len(strangest) == 6
        assert isolating == "2 filters isolate a sample; chance gives up to 1"
        assert count.startswith("anomaly filters: 3, 60.0% of those with varying maps (0.0% where at least 70%")
        assert count.endswith("75.0% elsewhere)")
        assert table.splitlines()[-1] == f"note: {LEFT_OUT}"
        assert "  c, score inf: flat" in str(replace(REPORT, columns={**VIEWS, "name": [*"abcdef"]}))

    def test_a_table_has_a_row_for_each_layer_and_twelve_at_most(self):
        words = [" ".join(line.split()) for line in str(REPORT).split("\n\n")[1].splitlines()]
        assert words[0].startswith("layer filters anomaly isolated dead sparsity")
        assert words[2] == "conv1 3 1 2 1 0.25 32x32 pooled to 8x8 1 (2)"
        assert words[3].startswith("conv2 2 0 0 0 0.82 1 pooled to 8x8")
        assert words[4] == "conv3 2 2 0 0 0.25 8x8 0 (1), 1 (2)"
        assert repr(REPORT) == str(REPORT)
        many = str(AnomalyReport({"": layer(*["anomaly"] * 9, outliers={index: [0] for index in range(9)})}, 60))
        assert "(the model)" in many
        assert "5 (1), ..." in many
        assert "6 (1)" not in many
        layers = {f"conv{index}": layer("normal", *["anomaly"] * (index % 5)) for index in range(20)}
        rows = str(AnomalyReport(layers, 60)).split("\n\n")[-1].splitlines()[2:]
        assert [row.split()[0] for row in rows[:-1]] == [f"conv{i}" for i in range(20) if i % 5 > 2 or i in (2, 7, 12)]
        assert rows[-1].split() == ["9", "others", "15", "6", "0", "0", "0.25"]

    def test_what_was_not_measured_is_no_count_of_0(self):
        nonfinite = AnomalyReport({"conv": layer("nonfinite", samples=6)}, 6)
        few = replace(REPORT, notes={"few samples": "The probe has 6 samples."})
        for report, row in ((EMPTY, ""), (nonfinite, "conv 1 - - 0 "), (few, "conv1 3 - - 1 ")):
            text = " ".join(str(report).split())
            assert "anomaly filters: not measured" in text
            assert row in text
        assert "conv 1 - - 0 " in " ".join(str(replace(REPORT, layers={**REPORT.layers, **nonfinite.layers})).split())

    def test_notebooks_show_the_same_table_and_escape_names(self):
        def rows(report: AnomalyReport) -> list[str]:
            table = ElementTree.fromstring(f"<div>{report._repr_html_()}</div>")
            return [" ".join(" ".join(cell.text or "" for cell in row).split()) for row in table.iter("tr")]

        words = [" ".join(line.split()) for line in str(REPORT).split("\n\n")[1].splitlines()]
        assert rows(REPORT) == [words[0], *words[2:5]]
        assert "<p>note: Layer &#x27;conv9&#x27; is left out" in REPORT._repr_html_()
        script = "<script>alert('&amp;')</script>"
        hostile = AnomalyReport({script: layer("normal")}, 60, {}, {"note": script})
        assert "<script" not in hostile._repr_html_()
        assert rows(hostile)[1].startswith(script)


def test_the_frame_has_one_row_for_each_filter():
    pytest.importorskip("pandas")
    values = ["n_components", "calinski_harabasz", "smallest_share", "explained", "sparsity"]
    frame = REPORT.to_frame()
    assert list(frame.columns) == ["layer", "filter", "verdict", *values[:3], "outliers", "isolated", *values[3:]]
    assert EMPTY.to_frame().shape == (0, 10)
    rows = frame.to_dict("records")
    assert [tuple(row[key] for key in ("layer", "filter", "verdict", "outliers", "isolated")) for row in rows] == [
        ("conv1", 0, "normal", 0, 1),
        ("conv1", 1, "anomaly", 2, 2),
        ("conv1", 2, "dead", 0, 0),
        ("conv2", 0, "nonfinite", 0, 0),
        ("conv2", 1, "normal", 0, 0),
        ("conv3", 0, "anomaly", 1, 0),
        ("conv3", 1, "anomaly", 2, 0),
    ]
    for row in rows:
        part = REPORT.layers[row["layer"]]
        assert [row[key] for key in values] == [getattr(part, key)[row["filter"]].item() for key in values]


def test_a_network_can_be_plotted():
    assert REPORT.plot().axes[0].get_title().startswith("3 of 7 filters are anomaly filters, 60.0%")
    few = replace(REPORT, notes={"few samples": "The probe has 6 samples."})
    assert few.plot().axes[0].get_title().startswith("anomaly filters: not measured")


def test_wrong_labels_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`labels`.* 6 .* 2\."):
        REPORT.save_html(tmp_path / "a.html", labels=["a", "b"])
    assert not (tmp_path / "a.html").exists()


def test_the_same_report_gives_the_same_file(tmp_path):
    report = replace(REPORT, images=torch.zeros(6, 8, 8, 1, dtype=torch.uint8))
    for name in ("a", "b/c/d"):  # missing folders are made
        report.save_html(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b/c/d").read_bytes()
