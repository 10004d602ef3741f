"""A report is plain values there and back, a table, and a few finite numbers."""

import json
import math
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from lightning_anomaly.report import AnomalyReport, LayerReport


def layer(*verdicts: str, outliers: dict[int, list[int]] | None = None, samples: int = 6, **values) -> LayerReport:
    filters = len(verdicts)
    found = torch.zeros(filters, samples, dtype=torch.bool)
    for index, indices in (outliers or {}).items():
        found[index, indices] = True
    generator = torch.Generator().manual_seed(filters)
    fields = {
        "n_components": torch.full((filters,), 2),
        "calinski_harabasz": torch.rand(filters, generator=generator, dtype=torch.float64) * 1e3,
        "smallest_share": torch.full((filters,), 1 / 3, dtype=torch.float64),
        "labels": found.to(torch.uint8),
        "points": torch.randn(filters, samples, 2, generator=generator),
        "outliers": found,
        "isolated": torch.zeros(filters, samples, dtype=torch.bool),
        "explained": torch.rand(filters, generator=generator, dtype=torch.float64),
        "sparsity": torch.full((filters,), 0.25, dtype=torch.float64),
        "map_size": (8, 8),
        "analysed_size": (8, 8),
    }
    return LayerReport(verdicts=verdicts, **(fields | values))


SCORES = torch.tensor([2.0, 0.5, math.inf, 9.0, 0.5, 1.0])


@pytest.fixture
def report() -> AnomalyReport:
    return AnomalyReport(
        {
            "conv1": layer("normal", "anomaly", "dead", outliers={1: [2, 5]}, map_size=(32, 32), outlier_scores=SCORES),
            "conv2": layer("nonfinite", "normal", sparsity=torch.tensor([0.9, 0.75]).double(), map_size=()),
            "conv3": layer("anomaly", "anomaly", outliers={0: [5], 1: [5, 0]}, outlier_scores=SCORES.flip(0)),
        },
        6,
        {"max_components": 5, "engine": "torch"},
        {"conv9 left out": "Layer 'conv9' is left out of the analysis: it was never called."},
    )


EMPTY = AnomalyReport({}, 0, {}, {"no layers": "The model has no convolution: there are no filters to analyse."})


def test_filters_are_listed_by_verdict_and_layers_without_any_are_left_out(report):
    assert report.anomaly_filters == {"conv1": [1], "conv3": [0, 1]}
    assert report.dead_filters == {"conv1": [2]}
    assert report.nonfinite_filters == {"conv2": [0]}
    assert report.count == 3
    assert report.layers["conv1"].outliers_of(1) == [2, 5]
    assert report.layers["conv1"].outliers_of(0) == []


def test_the_fraction_is_of_the_filters_that_could_be_clustered(report):
    assert report.fraction == 3 / 5
    assert [report.fraction_in([name]) for name in report.layers] == [1 / 2, 0, 1]
    assert report.fraction_in(["conv1", "conv2", "unknown"]) == 1 / 3
    assert report.fraction_in([]) == 0
    assert AnomalyReport({"conv": layer("dead", "nonfinite")}, 6).fraction == 0
    assert report.live_in(["conv1", "unknown"]) == ["normal", "anomaly"]


def test_isolated_filters_are_listed_counted_and_shown(report):
    apart = torch.zeros(3, 6, dtype=torch.bool)
    apart[0, 4], apart[1, :2] = True, True
    found = AnomalyReport({"conv0": layer("normal"), "conv1": layer("normal", "anomaly", "dead", isolated=apart)}, 6)
    assert found.isolated == {"conv1": [0, 1]}
    assert found.metrics()["isolated"] == 2
    assert [line.split()[:4] for line in str(found).splitlines()[2:4]] == [
        ["conv0", "1", "0", "0"],
        ["conv1", "3", "1", "2"],
    ]
    assert AnomalyReport.from_dict(found.to_dict()).isolated == found.isolated


def test_values_of_an_earlier_version_have_no_isolated_filters(report):
    values = report.to_dict()
    for own in values["layers"].values():
        del own["isolated"]
    again = AnomalyReport.from_dict(values)
    assert again.isolated == {}
    assert again.to_dict() == report.to_dict()


def test_outlier_samples_count_the_filters_that_each_sample_is_an_outlier_of(report):
    assert report.outlier_samples == [1, 0, 1, 0, 0, 3]
    assert EMPTY.outlier_samples == []


def test_a_sample_s_outlier_score_is_that_of_the_layer_where_it_is_farthest(report):
    assert report.outlier_scores == [2, 0.5, math.inf, math.inf, 0.5, 2]
    assert report.by_outlier_score == [2, 3, 5, 0, 1, 4]  # at equal scores by votes, then by place
    assert EMPTY.outlier_scores == EMPTY.by_outlier_score == []
    assert "largest outlier scores: samples 2 (inf, 1 vote), 3 (inf, 0 votes), 5 (2.0, 3 votes)," in str(report)


def test_a_report_without_scores_is_loaded_and_has_zeros(report):
    values = report.to_dict()
    for own in values["layers"].values():
        del own["outlier_scores"]
    old = AnomalyReport.from_dict(values)
    assert old.outlier_scores == [0] * 6
    assert old.by_outlier_score[:3] == [5, 0, 2]
    assert old.metrics()["outlier_score"] == 0
    assert "outlier scores" not in str(old)


def test_sparsity_is_the_mean_over_filters_without_nan(report):
    assert report.sparsity == pytest.approx((5 * 0.25 + 0.75) / 6)


def test_metrics_are_finite_floats(report):
    assert report.metrics() == {
        "count": 3.0,
        "fraction": 0.6,
        "isolated": 0.0,
        "dead": 1.0,
        "sparsity": pytest.approx(2 / 6),
        "outlier_samples": 3.0,
        "outlier_score": 2.0,
        "layer/conv1": 1.0,
        "layer/conv2": 0.0,
        "layer/conv3": 2.0,
    }
    nonfinite = AnomalyReport({"conv": layer("nonfinite", sparsity=torch.tensor([0.5]).double())}, 6)
    for found in (report, EMPTY, nonfinite):
        assert all(type(value) is float and math.isfinite(value) for value in found.metrics().values())
    assert set(EMPTY.metrics().values()) == {0.0}


def test_to_dict_gives_json_and_from_dict_takes_it_back(report):
    odd = layer("nonfinite", samples=3, calinski_harabasz=torch.tensor([math.inf]).double())
    odd.points[0, 1] = torch.tensor([-math.inf, math.nan])
    for found in (report, EMPTY, AnomalyReport({"": odd}, 3), AnomalyReport({"": layer("dead", samples=1)}, 1)):
        values = found.to_dict()
        again = AnomalyReport.from_dict(json.loads(json.dumps(values, allow_nan=False)))
        assert again.to_dict() == values
        assert str(again) == str(found)
        for name, own in found.layers.items():
            for key, value in vars(own).items():
                other = getattr(again.layers[name], key)
                if isinstance(value, torch.Tensor):
                    assert other.dtype == value.dtype
                    assert torch.equal(other.nan_to_num(7), value.nan_to_num(7))
                    assert torch.equal(other.isnan(), value.isnan())
                else:
                    assert other == value


def test_the_way_back_keeps_no_hold_of_what_it_was_given(report):
    values = report.to_dict()
    again = AnomalyReport.from_dict(values)
    values["notes"].clear()
    values["settings"].clear()
    assert again.notes == report.notes
    assert again.settings == report.settings


@pytest.mark.parametrize("values", [{}, {"layers": {}}, None, [], "report", {1: 2, "layers": 3}])
def test_other_values_are_an_error_that_says_what_was_found(values):
    with pytest.raises(ValueError, match=r"`values` should be what `AnomalyReport\.to_dict\(\)` returned\. Found"):
        AnomalyReport.from_dict(values)


PER_SAMPLE = ("points", "labels", "outliers", "isolated")


@pytest.mark.parametrize(
    "change",
    [
        lambda own: own.pop("labels"),
        lambda own: own.pop("verdicts"),
        lambda own: own.update(points=[1.0]),
        lambda own: own.update(outliers="none"),
        lambda own: own.update(map_size=3),
        lambda own: own.update(verdicts=None),
        lambda own: own.update(verdicts=["evil"] * len(own["verdicts"])),
        *(lambda own, key=key: own.update({key: [row[:3] for row in own[key]]}) for key in PER_SAMPLE),
        lambda own: own.update(outlier_scores=[1.0]),
    ],
)
def test_a_damaged_layer_is_an_error(report, change):
    values = report.to_dict()
    change(values["layers"]["conv3"])
    with pytest.raises(ValueError, match=r"`values` should be what `AnomalyReport\.to_dict\(\)`"):
        AnomalyReport.from_dict(values)


def test_damaged_parts_are_an_error(report):
    for key in ("layers", "notes", "settings", "n_samples"):
        with pytest.raises(ValueError, match=r"`values` should be what `AnomalyReport\.to_dict\(\)` returned\."):
            AnomalyReport.from_dict(report.to_dict() | {key: 3})


def test_print_gives_a_table(report, capsys):
    print(report)
    lines = capsys.readouterr().out.splitlines()
    words = [" ".join(line.split()) for line in lines]
    assert words[0] == "layer filters anomaly isolated dead sparsity maps anomaly filters (outlier samples)"
    assert set(words[1]) == {"-"}
    assert words[2] == "conv1 3 1 0 1 0.25 32x32 pooled to 8x8 1 (2)"
    assert words[3].startswith("conv2 2 0 0 0 0.82 1 pooled to 8x8")
    assert words[4] == "conv3 2 2 0 0 0.25 8x8 0 (1), 1 (2)"
    assert "3 anomaly filters (60.0% of those with varying maps), 3 of 6 probe samples" in lines[5]
    assert lines[6].startswith("largest outlier scores: samples 2 (inf, 1 vote), ")
    assert lines[7] == "note: Layer 'conv9' is left out of the analysis: it was never called."
    assert not any(line != line.rstrip() for line in lines)


def test_the_table_lists_at_most_six_filters_of_a_layer_and_names_a_bare_model():
    many = layer(*["anomaly"] * 9, outliers={index: [0] for index in range(9)}, map_size=(1, 1), analysed_size=(1, 1))
    text = str(AnomalyReport({"": many}, 6))
    assert "(the model)" in text
    assert "5 (1), ..." in text
    assert "6 (1)" not in text


def test_a_console_shows_the_table_too():
    report = AnomalyReport({"": layer(*["anomaly"] * 2, outliers={0: [0], 1: [0]})}, 6)
    assert repr(report) == str(report)


def test_an_empty_report_prints_its_note():
    assert str(EMPTY).endswith("note: The model has no convolution: there are no filters to analyse.")
    assert "0 anomaly filters (0.0% of those with varying maps)" in str(EMPTY)


class TestHtml:
    def rows(self, found: AnomalyReport) -> list[list[str]]:
        table = ElementTree.fromstring(f"<div>{found._repr_html_()}</div>")
        return [[cell.text or "" for cell in row] for row in table.iter("tr")]

    def test_it_has_the_cells_of_the_text(self, report):
        words = [" ".join(line.split()) for line in str(report).splitlines()]
        rows = [" ".join(" ".join(row).split()) for row in self.rows(report)]
        assert rows == [words[0], *words[2:5]]
        assert "<p>3 anomaly filters (60.0% of those with varying maps)" in report._repr_html_()
        assert "<p>note: Layer &#x27;conv9&#x27; is left out" in report._repr_html_()

    def test_names_and_notes_are_shown_and_not_interpreted(self):
        script = "<script>alert('&amp;')</script>"
        found = AnomalyReport({script: layer("normal")}, 6, {}, {"note": script})
        assert "<script" not in found._repr_html_()
        assert self.rows(found)[1][0] == script

    def test_an_empty_report_has_a_heading_and_its_note(self):
        assert len(self.rows(EMPTY)) == 1
        assert "<p>note: The model has no convolution" in EMPTY._repr_html_()


class TestFrame:
    def test_one_row_for_each_filter(self, report):
        pytest.importorskip("pandas")
        frame = report.to_frame()
        assert list(frame.columns) == [
            "layer",
            "filter",
            "verdict",
            "n_components",
            "calinski_harabasz",
            "smallest_share",
            "outliers",
            "isolated",
            "explained",
            "sparsity",
        ]
        rows = frame.to_dict("records")
        assert [(row["layer"], row["filter"], row["verdict"], row["outliers"]) for row in rows] == [
            ("conv1", 0, "normal", 0),
            ("conv1", 1, "anomaly", 2),
            ("conv1", 2, "dead", 0),
            ("conv2", 0, "nonfinite", 0),
            ("conv2", 1, "normal", 0),
            ("conv3", 0, "anomaly", 1),
            ("conv3", 1, "anomaly", 2),
        ]
        for row in rows:
            own = report.layers[row["layer"]]
            for key in ("n_components", "calinski_harabasz", "smallest_share", "explained", "sparsity"):
                assert row[key] == getattr(own, key)[row["filter"]].item()

    def test_an_empty_report_has_the_columns(self):
        pytest.importorskip("pandas")
        assert EMPTY.to_frame().shape == (0, 10)

    def test_without_pandas_a_sentence_says_what_to_install(self, report, monkeypatch):
        monkeypatch.setitem(sys.modules, "pandas", None)
        with pytest.raises(ImportError, match=r"^`AnomalyReport.to_frame` needs pandas, .*: `pip install pandas`\.$"):
            report.to_frame()


class TestPlot:
    def titles(self, figure) -> list[str]:
        return [axes.get_title().replace("\n", " ") for axes in figure.axes]

    def test_the_network_is_a_map_of_all_filters(self, report):
        (title,) = self.titles(report.plot())
        assert title.startswith("3 of 7 filters are anomaly filters, 60.0% of those with varying maps")

    def test_a_layer_shows_anomalies_first(self, report):
        figure = report.plot("conv1")
        assert figure.get_suptitle() == "layer conv1: 1 of 3 filters are anomaly filters; shown are 3"
        filters = [title.split(":")[0] for title in self.titles(figure)]
        assert filters == ["layer conv1 filter 1", "layer conv1 filter 0", "layer conv1 filter 2"]

    def test_a_filter_alone(self, report):
        for index in (1, np.int64(1)):
            (title,) = self.titles(report.plot("conv1", index))
            assert title.startswith("layer conv1 filter 1: K = 2, CH = ")
            assert title.endswith(", 2 outliers")

    def test_what_was_not_clustered_is_called_by_its_verdict(self, report):
        assert self.titles(report.plot("conv1", 2)) == ["layer conv1 filter 2: dead"]
        assert self.titles(report.plot("conv2", 0)) == ["layer conv2 filter 0: nonfinite"]

    def test_a_bare_model_is_a_layer_too(self):
        found = AnomalyReport({"": layer("normal")}, 6)
        assert self.titles(found.plot("", 0))[0].startswith("the model filter 0")
        assert len(found.plot("").axes) == 1

    def test_notebooks_show_it_and_files_take_it(self, report, tmp_path):
        figure = report.plot("conv3")
        assert figure._repr_png_().startswith(b"\x89PNG")
        figure.savefig(tmp_path / "plot.png")
        assert (tmp_path / "plot.png").stat().st_size > 5_000

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("conv7",), r"`layer` should be one of the report's layers, \['conv1', .*\]\. Found `layer = 'conv7'`"),
            (("conv7", 0), r"`layer` should be one of the report's layers"),
            (("conv1", 3), r"`filter_index` should be an integer from 0 to 2 for layer 'conv1'\. Found .* = 3`"),
            (("conv1", -1), r"`filter_index` should be an integer from 0 to 2"),
            (("conv1", True), r"`filter_index` should be an integer from 0 to 2"),
            (("conv1", 1.0), r"`filter_index` should be an integer from 0 to 2"),
            ((None, 1), r"`layer` should be given with `filter_index`, one of \['conv1'"),
        ],
    )
    def test_what_does_not_exist_is_an_error_that_lists_what_does(self, report, arguments, message):
        with pytest.raises(ValueError, match=f"^Parameter {message}"):
            report.plot(*arguments)
