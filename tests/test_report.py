"""A report is plain values there and back, a table, and a few finite numbers."""

import json
import math

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
        "labels": found.long(),
        "points": torch.randn(filters, samples, 2, generator=generator),
        "outliers": found,
        "explained": torch.rand(filters, generator=generator, dtype=torch.float64),
        "sparsity": torch.full((filters,), 0.25, dtype=torch.float64),
        "map_size": (8, 8),
        "analysed_size": (8, 8),
    }
    return LayerReport(verdicts=verdicts, **(fields | values))


@pytest.fixture
def report() -> AnomalyReport:
    return AnomalyReport(
        {
            "conv1": layer("normal", "anomaly", "dead", outliers={1: [2, 5]}, map_size=(32, 32)),
            "conv2": layer("nonfinite", "normal", sparsity=torch.tensor([0.9, 0.75]).double(), map_size=()),
            "conv3": layer("anomaly", "anomaly", outliers={0: [5], 1: [5, 0]}),
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
    assert [own.fraction for own in report.layers.values()] == [1 / 2, 0, 1]
    assert report.fraction_in(["conv1", "conv2", "unknown"]) == 1 / 3
    assert report.fraction_in([]) == 0
    assert layer("dead", "nonfinite").fraction == 0


def test_outlier_samples_count_the_filters_that_each_sample_is_an_outlier_of(report):
    assert report.outlier_samples == [1, 0, 1, 0, 0, 3]
    assert EMPTY.outlier_samples == []


def test_sparsity_is_the_mean_over_filters_without_nan(report):
    assert report.sparsity == pytest.approx((5 * 0.25 + 0.75) / 6)


def test_metrics_are_finite_floats(report):
    assert report.metrics() == {
        "count": 3.0,
        "fraction": 0.6,
        "dead": 1.0,
        "sparsity": pytest.approx(2 / 6),
        "outlier_samples": 3.0,
        "layer/conv1": 1.0,
        "layer/conv2": 0.0,
        "layer/conv3": 2.0,
    }
    nonfinite = AnomalyReport({"conv": layer("nonfinite", sparsity=torch.tensor([0.5]).double())}, 6)
    for found in (report, EMPTY, nonfinite):
        assert all(type(value) is float and math.isfinite(value) for value in found.metrics().values())
    assert set(EMPTY.metrics().values()) == {0.0}


def plain(value) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and plain(item) for key, item in value.items())
    return all(map(plain, value)) if type(value) is list else type(value) in (int, float, str, bool)


def test_to_dict_gives_plain_python_values_and_from_dict_takes_them_back(report):
    for found in (report, EMPTY, AnomalyReport({"": layer("dead", samples=1)}, 1)):
        values = found.to_dict()
        assert plain(values)
        again = AnomalyReport.from_dict(json.loads(json.dumps(values)))
        assert again.to_dict() == values
        assert str(again) == str(found)
        for name, own in found.layers.items():
            for key, value in vars(own).items():
                other = getattr(again.layers[name], key)
                if isinstance(value, torch.Tensor):
                    assert other.dtype == value.dtype
                    assert torch.equal(other, value)
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
    with pytest.raises(ValueError, match=r"`values` should be what `AnomalyReport\.to_dict\(\)` gave\. Found"):
        AnomalyReport.from_dict(values)


@pytest.mark.parametrize(
    "change",
    [
        lambda own: own.pop("labels"),
        lambda own: own.pop("verdicts"),
        lambda own: own.update(points=[1.0]),
        lambda own: own.update(outliers="none"),
        lambda own: own.update(map_size=3),
        lambda own: own.update(verdicts=None),
    ],
)
def test_a_damaged_layer_is_an_error_that_names_it(report, change):
    values = report.to_dict()
    change(values["layers"]["conv3"])
    with pytest.raises(ValueError, match=r"`values` should be what `AnomalyReport\.to_dict\(\)` gave\. .*'conv3'"):
        AnomalyReport.from_dict(values)


def test_damaged_parts_are_an_error(report):
    for key in ("layers", "notes", "settings"):
        with pytest.raises(ValueError, match=r"`values` should be what `AnomalyReport\.to_dict\(\)` gave\."):
            AnomalyReport.from_dict(report.to_dict() | {key: 3})


def test_print_gives_a_table(report, capsys):
    print(report)
    lines = capsys.readouterr().out.splitlines()
    words = [" ".join(line.split()) for line in lines]
    assert words[0] == "layer filters anomaly dead sparsity maps anomaly filters (outlier samples)"
    assert set(words[1]) == {"-"}
    assert words[2] == "conv1 3 1 1 0.25 32x32 pooled to 8x8 1 (2)"
    assert words[3].startswith("conv2 2 0 0 0.82 1 pooled to 8x8")
    assert words[4] == "conv3 2 2 0 0.25 8x8 0 (1), 1 (2)"
    assert "3 anomaly filters (60.0% of those with varying maps), 3 of 6 probe samples" in lines[5]
    assert lines[6] == "note: Layer 'conv9' is left out of the analysis: it was never called."
    assert not any(line != line.rstrip() for line in lines)


def test_the_table_lists_at_most_six_filters_of_a_layer_and_names_a_bare_model():
    many = layer(*["anomaly"] * 9, outliers={index: [0] for index in range(9)}, map_size=(1, 1), analysed_size=(1, 1))
    text = str(AnomalyReport({"": many}, 6))
    assert "(the model)" in text
    assert "5 (1), ..." in text
    assert "6 (1)" not in text


def test_an_empty_report_prints_its_note():
    assert str(EMPTY).endswith("note: The model has no convolution: there are no filters to analyse.")
    assert "0 anomaly filters (0.0% of those with varying maps)" in str(EMPTY)
