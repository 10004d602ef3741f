"""`analyze` finds planted outliers, leaves the model unchanged, and has the properties of `helpers/properties.py`."""

from dataclasses import replace

import properties
import pytest
import torch
import zoo
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from lightning_anomaly import AnalysisSettings, analyze
from lightning_anomaly.filters.analyze import analyze_maps
from lightning_anomaly.filters.pca import reduce_maps
from lightning_anomaly.network.layer_maps import MapCapture
from lightning_anomaly.network.layers import select_layers

DEFAULT = AnalysisSettings(rectify=False)
PAPER = replace(AnalysisSettings.paper(), rectify=False)
PROBE = torch.randn(120, 1, 8, 8, generator=torch.Generator().manual_seed(0))

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.fixture(scope="session")
def real(trained) -> Tensor:
    """Maps of four filters of the trained network's second convolution, float64."""
    taken = MapCapture(select_layers(trained.model, ["2"]), rectify=True)
    with torch.no_grad(), taken:
        trained.model(trained.probe)
    return taken.maps["2"].maps[:160, :4].double()


@pytest.fixture(params=["sparse", "real"])
def case(request, real: Tensor) -> tuple[Tensor, AnalysisSettings]:
    return real if request.param == "real" else zoo.maps("sparse", 4, 110, (5, 5)), DEFAULT


def test_filters_are_independent_and_permutations_only_permute(case):
    properties.assert_filters_are_independent(*case)
    properties.assert_permuting_filters_permutes_verdicts(*case)
    properties.assert_permuting_samples_permutes_labels(*case)


def test_permuting_samples_permutes_labels_even_of_maps_with_three_values():
    values = torch.rand(3, 20, 1, 1, dtype=torch.float64)
    maps = values[torch.tensor([0] * 300 + [1] * 208 + [2] * 4)]
    properties.assert_permuting_samples_permutes_labels(maps, DEFAULT)


@pytest.mark.parametrize(("scale", "shift"), [(1e-10, 3.0), (7.0, -1000.0), (1e10, 0.0)])
def test_scaling_and_shifting_change_nothing(case, scale, shift):
    properties.assert_scaling_and_shifting_change_nothing(*case, scale, shift)


@pytest.mark.parametrize("side", [1000, 3])
def test_batches_and_random_numbers_drawn_elsewhere_do_not_change_a_report(case, side):
    maps, settings = case
    reports = []
    for batch in (1000, 7, 1):
        reports.append(zoo.analyzed(zoo.captured(maps, batch=batch, max_map_side=side), settings))
        torch.rand(3)
    for other in reports[1:]:
        properties.assert_same(other, reports[0])


def test_layers_are_analyzed_independently():
    layers = {kind: zoo.captured(zoo.maps(kind, 4, 60, (4, 4))) for kind in zoo.KINDS}
    layers["dead"] = zoo.captured(torch.ones(60, 3, 4, 4, dtype=torch.float64))
    settings = replace(DEFAULT, n_init=3)
    report = analyze_maps(layers, settings)
    assert list(report.layers) == list(layers)
    for name, layer in layers.items():
        properties.assert_same(report.layers[name], zoo.analyzed(layer, settings))


def test_threads_and_the_memory_bound_do_not_change_a_report():
    layer, reports = zoo.captured(zoo.maps("sparse", 140, 300, (6, 6)), batch=100), []
    for threads, memory in ((1, 256), (2, 256), (2, 4)):
        torch.set_num_threads(threads)
        try:
            reports.append(zoo.analyzed(layer, replace(DEFAULT, n_init=2, max_memory_mb=memory)))
        finally:
            torch.set_num_threads(1)
    for other in reports[1:]:
        properties.assert_same(other, reports[0])


def test_filters_are_analyzed_in_batches_that_fit_into_the_memory(monkeypatch):
    layer, sizes = zoo.captured(zoo.maps("sparse", 140, 300, (6, 6))), dict[int, list[int]]()
    for memory in (256, 4):
        batches = sizes[memory] = []
        monkeypatch.setattr(
            "lightning_anomaly.filters.analyze.reduce_maps",
            lambda maps, engine, batches=batches: batches.append(8 * maps.numel()) or reduce_maps(maps, engine),
        )
        zoo.analyzed(layer, replace(DEFAULT, n_init=1, max_memory_mb=memory))
    assert max(sizes[4]) < 4e6 < max(sizes[256])
    assert sum(sizes[4]) == sum(sizes[256])


def test_only_layers_that_are_as_last_time_keep_their_results():
    names, known = ["same", "maps", "extremes"], {}
    layers = {name: zoo.captured(zoo.maps("sparse", 4, 60, (4, 4), seed)) for seed, name in enumerate(names)}
    first = analyze_maps(layers, replace(DEFAULT, n_init=1), known=known)
    layers["maps"] = zoo.captured(zoo.maps("sparse", 4, 60, (4, 4), seed=9))
    layers["extremes"] = replace(layers["extremes"], extremes=[2 * values for values in layers["extremes"].extremes])
    again = analyze_maps(layers, replace(DEFAULT, n_init=1), known=known)
    assert [again.layers[name] is layer for name, layer in first.layers.items()] == [True, False, False]


@pytest.mark.parametrize("settings", [AnalysisSettings(), PAPER], ids=["default", "paper"])
def test_a_report_of_a_trained_network_is_scikit_learn_s(trained, settings, monkeypatch):
    fit, fitted = GaussianMixture.fit_predict, []
    monkeypatch.setattr(GaussianMixture, "fit_predict", lambda self, points: fitted.append(1) or fit(self, points))
    ours = analyze(trained.model, trained.probe[:120], settings=settings)
    assert not fitted
    theirs = analyze(trained.model, trained.probe[:120], settings=replace(settings, engine="sklearn"))
    assert fitted
    assert theirs.count > 0
    assert ours.anomaly_filters == theirs.anomaly_filters
    assert list(ours.layers) == list(theirs.layers) == ["0", "2", "6"]
    for name, layer in ours.layers.items():
        expected = theirs.layers[name]
        properties.assert_same(layer, expected, [*properties.DECISIONS, "sparsity"])
        torch.testing.assert_close(layer.calinski_harabasz, expected.calinski_harabasz, rtol=1e-6, atol=0)
        torch.testing.assert_close(layer.points, expected.points, rtol=0, atol=1e-5)
        torch.testing.assert_close(layer.explained, expected.explained, rtol=1e-9, atol=0)


MARKED = {0: [17, 180], 1: [33], 2: [5, 90, 250]}  # the samples of each mark


def test_over_exposed_images_are_the_outliers_of_a_trained_network(trained):
    report = analyze(trained.model, trained.probe)
    assert report.count > 10
    votes = report.votes
    assert sorted(range(len(votes)), key=votes.__getitem__)[-3:] == sorted(trained.damaged, key=votes.__getitem__)
    clean = analyze(trained.model, trained.probe[[i for i in range(400) if i not in trained.damaged]])
    assert clean.count < report.count / 3


def planted_probe() -> Tensor:
    """Images with a bar in one of three places in channel 0, and on some of them a mark in channel 1, 2 or 3."""
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(300, 4, 6, 6)
    for place in range(3):
        images[place::3, 0, 2 * place] = 1
    images[:, 0] += 0.1 * torch.randn(300, 6, 6, generator=generator)
    for mark, marked in MARKED.items():
        images[marked, 1 + mark] = 1 + 0.3 * torch.rand(len(marked), 6, 6, generator=generator)
    return images


def planted_network() -> nn.Module:
    """Filters 0, 2, 4 see the bars; 1, 3, 5 see a mark, and the bars faintly; 6 is constant; 7, 8 are not finite."""
    conv = nn.Conv2d(4, 9, 3, padding=1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        conv.weight.zero_()
        conv.bias.fill_(0.1)
        conv.weight[:6, 0] = torch.rand(6, 3, 3, generator=generator)
        for mark, index in enumerate((1, 3, 5)):
            conv.weight[index, 0] *= 0.1
            conv.weight[index, 1 + mark] = torch.rand(3, 3, generator=generator) + 0.5
        conv.weight[7, 0, 1, 1] = torch.nan
        conv.bias[8] = torch.inf
    return nn.Sequential(conv, nn.ReLU())


@pytest.mark.parametrize(("rule", "engine"), [("votes", "numba"), ("best", "numba"), ("votes", "sklearn")])
@pytest.mark.filterwarnings("ignore:Layer '0'. 2 of 9 filters have NaN")
def test_exactly_the_planted_filters_and_samples_are_reported(rule, engine):
    settings = AnalysisSettings(rule=rule, engine=engine, rare_fraction=0.01)
    report = analyze(planted_network(), planted_probe(), settings=settings)
    layer = report.layers["0"]
    assert report.anomaly_filters == {"0": [1, 3, 5]}
    assert [layer.outliers_of(index) for index in (1, 3, 5)] == list(MARKED.values())
    assert report.dead_filters == {"0": [6]}
    assert report.layers["0"].filters("nonfinite") == [7, 8]
    assert layer.filters("normal") == [0, 2, 4]
    assert layer.n_components[[0, 2, 4]].tolist() == [3, 3, 3]
    assert report.fraction == 0.5
    assert {sample for sample, votes in enumerate(report.votes) if votes} == {5, 17, 33, 90, 180, 250}
    assert (layer.n_components[6:] == 0).all()
    assert not layer.outliers[6:].any()
    properties.assert_finite(layer)


@pytest.mark.parametrize("sign", [1, -1], ids=["largest", "smallest"])
def test_a_sample_with_one_extreme_value_is_isolated(sign):
    """The mean, the standard deviation and the other extreme of its map are ordinary."""
    identity = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(identity.weight)
    images = torch.rand(200, 1, 8, 8)
    images[:, :, :4] -= 5 + 10 * torch.rand(200, 1, 1, 1)  # most of a map's standard deviation
    images[:, :, 7, 7] += 1
    images[7, :, 7, 7] = 6
    report = analyze(identity, sign * images, settings=AnalysisSettings(rectify=False, max_map_side=1))
    assert report.layers[""].isolated.nonzero().tolist() == [[0, 7]]


def test_a_report_has_map_sizes_sample_count_and_settings():
    report = analyze(nn.Conv2d(1, 2, 3), torch.randn(120, 1, 22, 12), settings=AnalysisSettings(max_components=3))
    layer = report.layers[""]
    assert (layer.map_size, layer.analyzed_size) == ((20, 10), (7, 5))
    assert report.n_samples == 120
    assert AnalysisSettings(**report.settings) == AnalysisSettings(max_components=3)


def test_images_and_maps_are_kept_on_request_alone():
    kept = analyze(conv := nn.Conv2d(1, 2, 3), PROBE, keep_images=True)
    assert kept.images.shape == (120, 8, 8, 1)
    assert kept.maps[""].maps.shape == (2, 120, 6, 6)
    plain = analyze(conv, PROBE)
    assert (plain.images, plain.maps) == (None, {})


def test_too_few_samples_give_a_note():
    settings, conv = AnalysisSettings(rare_fraction=0.01), nn.Conv2d(1, 2, 3)
    with pytest.warns(UserWarning, match="99 samples.* at least 100 are .*`rare_fraction = 0.01` and `max_comp.* = 5`"):
        report = analyze(conv, PROBE[:99], settings=settings)
    assert list(report.notes) == ["few samples"]
    assert analyze(conv, PROBE[:100], settings=settings).notes == {}
