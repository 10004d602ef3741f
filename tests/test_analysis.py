"""From a model and a probe to a report: the planted is found, the rest is left alone, the properties hold."""

import contextlib
import re
import warnings
from collections import UserList
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import properties
import pytest
import torch
import zoo
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_anomaly import AnalysisSettings, analyze, two_sample_test
from lightning_anomaly.analysis import analyze_maps, analyze_share, join_shares
from lightning_anomaly.capture.hooks import MapCapture, evaluating
from lightning_anomaly.capture.layers import select_layers
from lightning_anomaly.capture.maps import LayerMaps
from lightning_anomaly.capture.probe import run
from lightning_anomaly.clustering import choice
from lightning_anomaly.clustering.engines import _torch_em
from lightning_anomaly.report import AnomalyReport, LayerReport

DEFAULT = AnalysisSettings(rectify=False)
PAPER = replace(AnalysisSettings.paper(), rectify=False)
READINGS = pytest.mark.parametrize("settings", [DEFAULT, PAPER], ids=["default", "paper"])
KINDS = pytest.mark.parametrize("kind", [*zoo.KINDS, "real"])


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """The networks and probes that a test makes are the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def analyse(settings: AnalysisSettings) -> Callable[[LayerMaps], LayerReport]:
    return lambda layer: zoo.analysed(layer, settings)


@pytest.fixture(scope="session")
def real(trained) -> Tensor:
    """Maps of the trained network's second convolution, float64, some of its filters."""
    taken = MapCapture(select_layers(trained.model, ["2"]), rectify=True)
    with torch.no_grad(), taken:
        trained.model(trained.probe)
    return taken.maps["2"].maps[:160, :4].double()


@pytest.fixture
def maps(kind: str, real: Tensor) -> Tensor:
    return real if kind == "real" else zoo.maps(kind, 4, 110, (5, 5))


# properties


@KINDS
@READINGS
def test_filters_do_not_see_each_other(maps, settings, engine_name):
    settings = replace(settings, engine=engine_name)
    properties.assert_filters_do_not_see_each_other(analyse(settings), zoo.captured, maps)


def test_filters_do_not_see_each_other_with_two_threads(two_threads, engine_name):
    maps = zoo.maps("skewed", 3, 150, (4, 4))
    settings = replace(DEFAULT, n_init=2, max_components=3, engine=engine_name)
    properties.assert_filters_do_not_see_each_other(analyse(settings), zoo.captured, maps)


@KINDS
@READINGS
def test_permuting_filters_permutes_verdicts(maps, settings, engine_name):
    settings = replace(settings, engine=engine_name)
    properties.assert_permuting_filters_permutes_verdicts(analyse(settings), zoo.captured, maps)


@KINDS
@READINGS
def test_permuting_samples_permutes_labels(maps, settings, engine_name):
    settings = replace(settings, engine=engine_name)
    properties.assert_permuting_samples_permutes_labels(analyse(settings), zoo.captured, maps)


@READINGS
def test_permuting_samples_permutes_labels_where_only_a_few_maps_differ(settings, engine_name):
    kinds = torch.rand(3, 20, 1, 1, dtype=torch.float64)
    maps = kinds[torch.tensor([0] * 300 + [1] * 208 + [2] * 4)]
    settings = replace(settings, engine=engine_name)
    properties.assert_permuting_samples_permutes_labels(analyse(settings), zoo.captured, maps)


@KINDS
@pytest.mark.parametrize("scale", [1e-10, 1e-3, 7.0, 1e10])
@pytest.mark.parametrize("shift", [0.0, 3.0, -1000.0])
def test_scaling_and_shifting_change_nothing(maps, scale, shift):
    properties.assert_scaling_and_shifting_change_nothing(analyse(DEFAULT), zoo.captured, maps, scale, shift)


@KINDS
@READINGS
def test_same_seed_same_report(maps, settings, engine_name):
    settings = replace(settings, engine=engine_name)
    properties.assert_same_seed_same_report(analyse(settings), zoo.captured(maps))


def test_another_seed_is_another_draw():
    layer = zoo.captured(zoo.maps("skewed", 8, 120, (5, 5)))
    first, second = (zoo.analysed(layer, replace(PAPER, seed=seed)) for seed in (0, 1))
    assert not torch.equal(first.labels, second.labels)


@KINDS
@READINGS
def test_chunk_size_changes_nothing(maps, settings, engine_name, monkeypatch):
    settings = replace(settings, engine=engine_name)

    def with_chunks(size: int) -> Callable[[LayerMaps], LayerReport]:
        def run(layer: LayerMaps) -> LayerReport:
            monkeypatch.setattr(_torch_em, "_CHUNK_BYTES", size)
            return zoo.analysed(layer, replace(settings, max_memory_mb=1))

        return run

    properties.assert_chunk_size_changes_nothing([analyse(settings), *map(with_chunks, (1, 2**24))], zoo.captured(maps))


@KINDS
def test_the_split_into_batches_changes_nothing(maps):
    for side in (1000, 3):
        properties.assert_batch_split_changes_nothing(
            analyse(DEFAULT), [zoo.captured(maps, batch=batch, max_map_side=side) for batch in (1000, 64, 7, 1)]
        )


@KINDS
@READINGS
def test_every_report_is_finite(maps, settings):
    properties.assert_finite(zoo.analysed(zoo.captured(maps), settings))


# engines


@pytest.mark.parametrize("settings", [DEFAULT, replace(DEFAULT, rectify=False), PAPER], ids=["default", "raw", "paper"])
def test_every_engine_gives_the_same_report_of_a_trained_network(trained, settings, no_processes):
    theirs = analyze(trained.model, trained.probe[:120], settings=replace(settings, engine="sklearn"))
    assert theirs.count > 0
    for engine in ("auto", "torch"):
        ours = analyze(trained.model, trained.probe[:120], settings=replace(settings, engine=engine))
        assert_same_reports(ours, theirs)


def assert_same_reports(ours: AnomalyReport, theirs: AnomalyReport) -> None:
    assert ours.anomaly_filters == theirs.anomaly_filters
    assert list(ours.layers) == list(theirs.layers) == ["0", "2", "6"]
    for name, own in ours.layers.items():
        other = theirs.layers[name]
        properties.assert_same(own, other, ["n_components", "labels", "outliers", "smallest_share", "sparsity"])
        torch.testing.assert_close(own.calinski_harabasz, other.calinski_harabasz, rtol=1e-6, atol=0)
        torch.testing.assert_close(own.points, other.points, rtol=0, atol=1e-5)
        torch.testing.assert_close(own.explained, other.explained, rtol=1e-9, atol=0)


@pytest.mark.parametrize("together", [1, 6, 1000])
def test_layers_clustered_together_are_as_one_at_a_time(monkeypatch, engine_name, together):
    monkeypatch.setattr(choice, "_TOGETHER", together)
    layers = {kind: zoo.captured(zoo.maps(kind, 4, 60, (4, 4))) for kind in zoo.KINDS}
    layers["dead"] = zoo.captured(torch.ones(60, 3, 4, 4, dtype=torch.float64))
    settings = replace(DEFAULT, n_init=3, engine=engine_name)
    report = analyze_maps(layers, settings)
    assert list(report.layers) == list(layers)
    for name, layer in layers.items():
        properties.assert_same(report.layers[name], zoo.analysed(layer, settings))


def test_the_processes_of_the_sklearn_engine_give_what_its_loop_gives(monkeypatch):
    layer, settings = zoo.captured(zoo.maps("skewed", 3, 60, (3, 3))), AnalysisSettings(engine="sklearn")
    parallel = zoo.analysed(layer, settings)
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    properties.assert_same(zoo.analysed(layer, settings), parallel)


def test_over_exposed_images_are_what_the_trained_network_s_outliers_are(trained):
    report = analyze(trained.model, trained.probe)
    assert report.count > 10
    votes = report.outlier_samples
    assert sorted(range(len(votes)), key=votes.__getitem__)[-3:] == sorted(trained.damaged, key=votes.__getitem__)
    clean = analyze(trained.model, trained.probe[[i for i in range(400) if i not in trained.damaged]])
    assert clean.count < report.count / 3


# planted truth

MARKED = {0: [17, 180], 1: [33], 2: [5, 90, 250]}  # which samples which mark is on


def planted_probe(samples: int = 300) -> Tensor:
    """Images with a bar in one of three places, in channel 0, and for some samples a mark in channels 1 to 3."""
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(samples, 4, 6, 6)
    for place in range(3):
        images[place::3, 0, 2 * place] = 1
    images[:, 0] += 0.1 * torch.randn(samples, 6, 6, generator=generator)
    for mark, marked in MARKED.items():
        images[marked, 1 + mark] = 1 + 0.3 * torch.rand(len(marked), 6, 6, generator=generator)
    return images


def planted_network() -> nn.Module:
    """Filters 0, 2, 4: the bars. 1, 3, 5: a mark, and faintly the bars. 6: constant; 7, 8: not finite."""
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


@pytest.mark.parametrize("engine", ["auto", "torch", "sklearn"])
@pytest.mark.parametrize("rule", ["index", "vote", "best"])
def test_exactly_the_planted_filters_and_samples_are_reported(rule, engine, no_processes):
    settings = AnalysisSettings(rule=rule, engine=engine, rare_fraction=0.01)
    with pytest.warns(
        UserWarning, match=r"Layer '0': 2 of 9 filters have NaN or infinite values in their maps and are"
    ):
        report = analyze(planted_network(), planted_probe(), settings=settings)
    layer = report.layers["0"]
    assert report.anomaly_filters == {"0": [1, 3, 5]}
    assert [layer.outliers_of(index) for index in (1, 3, 5)] == list(MARKED.values())
    assert report.dead_filters == {"0": [6]}
    assert report.nonfinite_filters == {"0": [7, 8]}
    assert layer.filters("normal") == [0, 2, 4]
    assert layer.n_components[[0, 2, 4]].tolist() == [3, 3, 3]
    assert report.fraction == 0.5
    assert {sample for sample, votes in enumerate(report.outlier_samples) if votes} == {5, 17, 33, 90, 180, 250}
    assert (layer.n_components[6:] == 0).all()
    assert not layer.outliers[6:].any()
    properties.assert_finite(layer)


@pytest.mark.parametrize("sign", [1, -1], ids=["largest", "smallest"])
def test_a_sample_that_one_extreme_value_alone_sets_apart_is_isolated(sign):
    """Neither the mean of its map nor the standard deviation is out of the ordinary, nor the other extreme."""
    identity = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(identity.weight)
    images = torch.rand(200, 1, 8, 8)
    images[:, :, :4] -= 5 + 10 * torch.rand(200, 1, 1, 1)  # most of a map's standard deviation
    images[:, :, 7, 7] += 1
    images[7, :, 7, 7] = 6
    report = analyze(identity, sign * images, settings=AnalysisSettings(rectify=False, max_map_side=1))
    assert report.isolated == {"": [0]}
    assert report.layers[""].isolated.nonzero().tolist() == [[0, 7]]


def test_a_mark_on_more_samples_than_are_rare_is_not_reported():
    images = planted_probe()
    images[:, 1:] = 0
    images[::10, 1] = 1
    with pytest.warns(UserWarning, match="NaN or infinite"):
        report = analyze(planted_network(), images)
    assert 1 not in report.anomaly_filters.get("0", [])


# the model is left alone


class Busy(nn.Module):
    """Frozen normalisation, dropout, random numbers in the forward pass, and a failure on demand."""

    def __init__(self, fails_at: int = -1) -> None:
        super().__init__()
        self.conv, self.norm, self.frozen = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.drop = nn.Dropout()
        self.frozen.eval()
        self.calls, self.fails_at = UserList(), fails_at  # a number or a list would be given back

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        hidden = self.conv(x + 0 * torch.rand(1))
        if len(self.calls) == self.fails_at:
            raise RuntimeError("out of order")
        return self.drop(self.frozen(self.norm(hidden)))


def state_of(model: nn.Module) -> tuple:
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    flags = [module.training for module in model.modules()]
    values = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    return hooks, flags, values, gradients, torch.get_rng_state()


def assert_same_state(found: tuple, expected: tuple) -> None:
    assert found[:2] == expected[:2]
    assert found[2].keys() == expected[2].keys()
    assert all(torch.equal(found[2][name], value) for name, value in expected[2].items())
    assert len(found[3]) == len(expected[3])
    assert all(map(torch.equal, found[3], expected[3]))
    assert torch.equal(found[4], expected[4])


@pytest.mark.parametrize("fails_at", [-1, 3, 4])
def test_the_model_and_the_random_state_are_as_before_also_after_an_exception(fails_at):
    model = Busy(fails_at)
    inputs = torch.randn(150, 1, 8, 8)
    model(inputs[:4]).sum().backward()
    model.train()
    model.frozen.eval()
    before = state_of(model)
    if fails_at < 0:
        analyze(model, inputs)
    else:
        with pytest.raises(RuntimeError, match="out of order"):
            analyze(model, inputs)
    assert list(model.calls) == [4, 50, 50, 50][: None if fails_at < 0 else fails_at]
    assert_same_state(state_of(model), before)


class Elsewhere(nn.Module):
    """Lives on the device without memory and notes where its arguments are."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, device="meta"))
        self.devices = UserList()

    def forward(self, x, more=None):
        self.devices += [x.device.type, *(entry.device.type for entry in (more or []))]


@pytest.mark.parametrize("kind", ["tensor", "tuple", "dict"])
def test_the_probe_goes_to_the_device_of_the_model(kind):
    x = torch.ones(3, 1, 8, 8)
    inputs, expected = {"tensor": (x, 1), "tuple": ((x, [x, x]), 3), "dict": ({"x": x, "more": [x]}, 2)}[kind]
    model = Elsewhere()
    run(model, inputs, MapCapture({}))
    assert list(model.devices) == ["meta"] * expected


class Normalising(nn.Module):
    """Changes what it is given in place."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, x):
        return self.conv(x.sub_(0.5).div_(0.2))


@pytest.mark.parametrize("given", [lambda x: x, lambda x: (x,), lambda x: {"x": x}], ids=["tensor", "tuple", "dict"])
def test_a_model_may_change_its_inputs_in_place_and_those_of_the_caller_stay(given):
    inputs = torch.rand(120, 1, 8, 8)
    before = inputs.clone()
    analyze(Normalising(), given(inputs))
    two_sample_test(Normalising(), given(inputs), given(inputs))
    assert torch.equal(inputs, before)


def test_the_probe_s_batches_do_not_matter_and_evaluation_is_what_is_analysed():
    model = Busy()
    inputs = torch.randn(150, 1, 8, 8)
    report = analyze(model, inputs)
    taken = MapCapture(select_layers(model))
    with evaluating(model), torch.no_grad(), taken:
        model.conv(inputs)
    alone = analyze_maps(taken.maps, AnalysisSettings())
    properties.assert_same(report.layers["conv"], alone.layers["conv"], ["n_components", "labels", "outliers"])


class Observing(nn.Module):
    """Its buffers change in evaluation too: in place, as others, in shape; one is a cache of the last batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("average", torch.zeros(()))
        self.register_buffer("largest", torch.zeros(0))
        self.register_buffer("grid", torch.zeros(0), persistent=False)
        self.fails = False

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.average = 0.9 * self.average + x.mean()
        self.largest.resize_(2).copy_(torch.stack([x.max(), x.min()]))
        self.grid = torch.arange(len(x))
        if self.fails:
            raise KeyError("stop")
        return self.conv(x)


@pytest.mark.parametrize("fails", [True, False])
def test_buffers_that_change_in_evaluation_too_are_given_back(fails):
    model = Observing()
    model(PROBE[:5])
    tensors, before = dict(model.named_buffers()), {name: t.clone() for name, t in model.state_dict().items()}
    model.fails = fails
    with pytest.raises(KeyError) if fails else contextlib.nullcontext():
        analyze(model, 3 * PROBE)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(getattr(model, name) is tensor for name, tensor in tensors.items())
    assert len(model.grid) == 5


@pytest.mark.parametrize(
    "buffer",
    [None, torch.eye(3).to_sparse(), torch.tensor(torch.nan), torch.zeros(2, device="meta")],
    ids=["none", "sparse", "nan", "meta"],
)
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is:DeprecationWarning")
def test_buffers_of_any_kind_are_no_obstacle(buffer):
    model = nn.Sequential(Observing(), nn.LazyBatchNorm2d(), torch.jit.script(nn.BatchNorm2d(2)))
    model.register_buffer("other", buffer)
    assert analyze(model, PROBE).layers
    assert model[0].calls == 0
    assert model[1].num_features == 2


# inputs


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, first: Tensor, second: Tensor | None = None) -> Tensor:
        return self.conv(first if second is None else first + second)


def test_inputs_may_be_a_tensor_a_tuple_of_arguments_or_a_dict_of_keyword_arguments():
    model, images, other = Both(), torch.randn(2, 110, 1, 6, 6)[0], torch.zeros(110, 1, 6, 6)
    reports = [
        analyze(model, inputs).to_dict()["layers"]["conv"]["labels"]
        for inputs in (images, (images,), (images, other), {"first": images, "second": other}, {"first": images})
    ]
    assert all(labels == reports[0] for labels in reports)


@pytest.mark.parametrize("inputs", [torch.zeros(0, 1, 8, 8), torch.tensor(1.0)])
def test_inputs_without_samples_are_an_error_that_says_their_shape(inputs):
    with pytest.raises(ValueError, match=r"`inputs` should hold samples\. Found shape \((0, 1, 8, 8)?\)\."):
        analyze(nn.Conv2d(1, 1, 1), inputs)


@pytest.mark.parametrize(
    "inputs",
    [np.zeros((30, 1, 8, 8)), TensorDataset(torch.zeros(3, 1, 8, 8)), None, "images.png", [torch.zeros(30, 1, 8, 8)]],
    ids=["array", "data set", "None", "path", "list"],
)
def test_inputs_that_are_neither_a_tensor_nor_arguments_are_an_error(inputs):
    with pytest.raises(ValueError, match=rf"`inputs` should be a tensor .* Found {type(inputs).__name__}"):
        analyze(nn.Conv2d(1, 1, 1), inputs)


@pytest.mark.parametrize("inputs", [(), {}])
def test_no_arguments_are_no_samples(inputs):
    with pytest.raises(ValueError, match=rf"`inputs` should hold samples\. Found {re.escape(str(inputs))}\."):
        analyze(nn.Conv2d(1, 1, 1), inputs)


@pytest.mark.parametrize(
    ("model", "found"),
    [
        ("last.ckpt", r"'last\.ckpt'"),
        (Path("last.ckpt"), "a PosixPath"),
        (nn.Conv2d(1, 1, 1).state_dict(), "a OrderedDict"),
        (lambda images: images, "a function"),
        (nn.Flatten, "<class 'torch.nn.modules.flatten.Flatten'>"),
        (None, "a NoneType"),
    ],
    ids=["name of a file", "path", "state_dict", "function", "class", "None"],
)
def test_a_model_that_is_none_is_an_error_that_says_how_to_get_one(model, found):
    message = (
        rf"^Parameter `model` should be a torch\.nn\.Module\. Found {found}: build the model and load the weights of a "
        r"checkpoint with `model\.load_state_dict`; `python -m lightning_anomaly CHECKPOINT` does both\.$"
    )
    with pytest.raises(ValueError, match=message):
        analyze(model, PROBE)


def test_a_model_without_weights_is_an_error_that_says_so():
    message = (
        r"^Parameter `model` should have weights\. Found it on the meta device, which has none: build it elsewhere, or "
        r"call `model\.to_empty\(device='cpu'\)` and load its weights\.$"
    )
    with pytest.raises(ValueError, match=message):
        analyze(nn.Conv2d(1, 1, 1, device="meta"), PROBE)


class Words(nn.Module):
    """Takes integers, for an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.conv = nn.Embedding(10, 4), nn.Conv1d(4, 3, 3)

    def forward(self, words: Tensor) -> Tensor:
        return self.conv(self.embedding(words).transpose(1, 2))


class Bytes(nn.Module):
    """Converts its images itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images.float() / 255)


def test_models_that_take_integers_are_analysed():
    assert analyze(Words(), torch.randint(10, (120, 6))).layers["conv"].map_size == (4,)
    assert analyze(Bytes(), torch.randint(255, (120, 1, 8, 8), dtype=torch.uint8)).layers["conv"].map_size == (6, 6)


def test_a_failure_that_has_another_reason_than_the_type_stays_what_it_is():
    with pytest.raises(RuntimeError, match="to have 1 channels"):
        analyze(Bytes(), torch.zeros(120, 2, 8, 8, dtype=torch.uint8))
    with pytest.raises(RuntimeError, match="should be the same"):  # no conversion of the inputs would help
        analyze(Bytes().half(), torch.zeros(120, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(RuntimeError, match="indices"):
        analyze(Words(), torch.zeros(120, 6))


def test_settings_of_another_kind_are_an_error():
    with pytest.raises(ValueError, match=r"`settings` should be an AnalysisSettings or None\. Found {'seed': 1}\."):
        analyze(nn.Conv2d(1, 1, 1), PROBE, settings={"seed": 1})


@pytest.mark.parametrize("layers", [3, "conv", [0], [nn.Flatten()]], ids=str)
def test_layers_that_are_no_list_of_names_are_an_error(layers):
    with pytest.raises(ValueError, match=r"`layers` should be a list of layer names or None\. Found "):
        analyze(nn.Conv2d(1, 1, 1), PROBE, layers=layers)


def test_a_layer_that_does_not_exist_is_an_error_before_the_model_runs():
    model = Busy()
    with pytest.raises(ValueError, match=r"`layers` should name layers of the model\. Found \['other'\].*\['conv'\]"):
        analyze(model, torch.randn(4, 1, 8, 8), layers=["other"])
    assert not model.calls


# what cannot be analysed is a note, and each note is one warning


def notes_of(model: nn.Module, inputs, **options) -> dict[str, str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = analyze(model, inputs, **options)
    assert [str(warning.message) for warning in caught] == list(report.notes.values())
    assert all(warning.filename == __file__ for warning in caught)
    assert all(torch.isfinite(torch.tensor(value)) for value in report.metrics().values())
    return dict(report.notes)


PROBE = torch.randn(120, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_model_without_convolution_gives_an_empty_report_and_one_warning():
    notes = notes_of(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), PROBE)
    assert notes["no layers"].startswith(
        "The model has no convolution, so there are no filters to analyse: name layers"
    )


def test_a_layer_that_is_never_called_is_left_out_with_a_note():
    model = Both()
    model.unused = nn.Conv2d(1, 1, 1)
    assert notes_of(model, PROBE) == {
        "unused left out": "Layer 'unused' is left out of the analysis: it was never called."
    }


def test_layers_that_are_left_out_for_the_same_reason_are_one_warning():
    model = Both()
    model.unused = nn.ModuleList(nn.Conv2d(1, 1, 1) for _ in range(7))
    likewise = ", ".join(f"'unused.{index}'" for index in range(1, 6))
    with pytest.warns(UserWarning, match="left out") as caught:
        report = analyze(model, PROBE)
    assert [str(warning.message) for warning in caught] == [
        f"Layer 'unused.0' is left out of the analysis: it was never called. Likewise {likewise} and 1 more."
    ]
    assert len(report.notes) == 7


def test_a_layer_with_an_output_that_is_no_map_is_left_out_with_a_note():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(0, 3))
    assert notes_of(model, PROBE, layers=["0", "1"]) == {
        "1 left out": "Layer '1' is left out of the analysis: "
        "its output has shape (4320,), not (samples, filters, ...)."
    }


def test_a_layer_that_sees_another_number_of_samples_is_left_out_with_a_note():
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3)

        def forward(self, x: Tensor) -> None:
            self.a(x)
            self.b(torch.cat([x, x]))
            self.c(x)

    assert notes_of(Patches(), PROBE) == {
        "b left out": "Layer 'b' is left out of the analysis: it gave 240 maps where most layers gave 120."
    }


def test_samples_that_are_parts_of_those_given_are_said():
    model = nn.Sequential(nn.Flatten(0, 1), nn.Unflatten(0, (-1, 1)), nn.Conv2d(1, 2, 3))
    films = torch.randn(40, 3, 8, 8)
    assert notes_of(model, films) == {
        "samples": "The layers give 120 maps for the 40 samples of `inputs`, such as those of patches or frames: the "
        "samples of the report are these, and not those of `inputs`."
    }
    assert notes_of(model, (films,)) == {}


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3))


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        ([17], "Sample 17 of the probe gives"),
        ([17, 40], "Samples 17, 40 of the probe give"),
        ([3, 17, 40, 70, 99, 110, 111], "Samples 3, 17, 40, 70, 99 and 2 more of the probe give"),
    ],
    ids=str,
)
def test_samples_with_nan_are_named_once_whatever_the_number_of_layers(broken, named):
    inputs = PROBE.clone()
    inputs[broken] = torch.nan
    it = "it" if len(broken) == 1 else "them"
    assert notes_of(two_layers(), inputs) == {
        "nonfinite samples": f"{named} NaN or infinite values in 2 of 2 layers, so that 5 of 5 filters are not "
        f"analysed: leave {it} out."
    }


def test_samples_that_break_some_of_the_layers_are_named_with_their_number():
    class Overflows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            large = self.first(x).abs().amax((1, 2, 3), keepdim=True) > 1e3
            return self.second(torch.where(large, torch.inf, self.first(x)))

    inputs = PROBE.clone()
    inputs[5] *= 1e6
    assert notes_of(Overflows(), inputs) == {
        "nonfinite samples": "Sample 5 of the probe gives NaN or infinite values in 1 of 2 layers, so that 2 of 5 "
        "filters are not analysed: leave it out."
    }


def test_weights_with_nan_are_no_fault_of_the_samples():
    model, inputs = two_layers(), PROBE.clone()
    with torch.no_grad():
        model[2].weight[1] = torch.nan
    note = "Layer '2': 1 of 2 filters have NaN or infinite values in their maps and are not analysed."
    assert notes_of(model, inputs) == {"2 nonfinite": note}
    inputs[17] = torch.nan
    assert notes_of(model, inputs) == {
        "0 nonfinite": "Layer '0': 3 of 3 filters have NaN or infinite values in their maps of sample 17 and are not "
        "analysed.",
        "2 nonfinite": note.replace("1 of 2", "2 of 2"),
    }


def test_too_few_samples_are_said():
    settings = AnalysisSettings(rare_fraction=0.01)
    notes = notes_of(nn.Conv2d(1, 2, 3), PROBE[:99], settings=settings)
    assert list(notes) == ["few samples"]
    assert notes["few samples"] == (
        "The probe has 99 samples; at least 100 are needed before a cluster can be rare with `rare_fraction = 0.01` "
        "and `max_components = 5`."
    )
    assert notes_of(nn.Conv2d(1, 2, 3), PROBE[:100], settings=settings) == {}


@pytest.mark.parametrize("samples", [1, 2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("rule", ["index", "vote", "best"])
def test_even_a_handful_of_samples_gives_a_report(samples, rule):
    for rare_fraction in (0.01, 0.5):
        settings = AnalysisSettings(rule=rule, rare_fraction=rare_fraction)
        with pytest.warns(UserWarning, match=f"The probe has {samples} samples?; at least"):
            report = analyze(nn.Conv2d(1, 3, 3), PROBE[:samples], settings=settings)
        properties.assert_finite(report.layers[""])
        assert report.outlier_samples == report.layers[""].outliers.sum(0).tolist()
        if samples == 1:
            assert report.layers[""].verdicts == ("dead",) * 3
        if samples == 2:
            assert report.layers[""].n_components.tolist() == [0, 0, 0]


def test_layers_of_a_script_module_are_said_to_be_skipped():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(nn.Sequential(nn.Conv2d(1, 3, 3)))
    assert list(notes_of(scripted, PROBE)) == ["scripted"]
    assert notes_of(scripted, PROBE)["scripted"].startswith("Convolutions in ScriptModules are skipped")


def test_a_report_says_what_was_analysed_and_how():
    report = analyze(nn.Conv2d(1, 2, 3), torch.randn(120, 1, 22, 12), settings=AnalysisSettings(max_components=3))
    layer = report.layers[""]
    assert (layer.map_size, layer.analysed_size) == ((20, 10), (7, 5))
    assert report.n_samples == 120
    assert AnalysisSettings(**report.settings) == AnalysisSettings(max_components=3)
    assert report.notes == {}
    assert "20x10 pooled to 7x5" in str(report)


def test_maps_of_one_pixel_are_analysed():
    inputs = torch.randn(120, 3, 1, 1)
    inputs[40] = 50
    conv = nn.Conv2d(3, 4, 1)
    nn.init.uniform_(conv.weight, 0.5, 1)
    report = analyze(conv, inputs, settings=DEFAULT)
    assert report.count == 4
    assert report.layers[""].analysed_size == (1, 1)
    assert all(40 in report.layers[""].outliers_of(index) for index in range(4))


def test_every_filter_dead_gives_a_report():
    conv = nn.Conv2d(1, 3, 3)
    nn.init.zeros_(conv.weight)
    report = analyze(conv, PROBE)
    assert report.layers[""].verdicts == ("dead",) * 3
    assert (report.count, report.fraction) == (0, 0.0)
    properties.assert_finite(report.layers[""])


@pytest.mark.parametrize("cuts", [(3,), (0, 2, 6)], ids=["two shares", "one without filters"])
def test_shares_of_the_filters_join_to_the_report_of_all(cuts: tuple[int, ...]) -> None:
    values = zoo.maps("sparse", 6, 100, (4, 4)).float()
    values[:, 1] = 0
    values[7, 4] = torch.nan
    layers = {"first": zoo.captured(values), "second": zoo.captured(values[:, :1])}
    bounds = [0, *cuts, 6]
    shares = []
    for first, last in pairwise(bounds):
        own = {}
        for name, layer in layers.items():
            assert layer.zeros is not None
            maps, zeros = layer.maps[:, first:last], layer.zeros[first:last]
            statistics = layer.statistics if first == 0 < last else []  # who scores the samples has those of all
            own[name] = LayerMaps([maps], layer.count, layer.size, zeros, statistics=statistics)
        shares.append(analyze_share(own, DEFAULT))
    expected = analyze_maps(layers, DEFAULT, {"from": "the caller"})
    joined = join_shares(shares, DEFAULT, {"from": "the caller"})
    assert repr(joined.to_dict()) == repr(expected.to_dict())  # nan is nan
    assert len(joined.notes) == 2  # the caller's, and one on what is not finite
