"""What tells the images of one kind from those of another is found, and the rest is not."""

import math
import re
import warnings
from fractions import Fraction

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from lightning_anomaly import two_sample_test
from lightning_anomaly.two_sample.comparison import _compare
from lightning_anomaly.two_sample.rank_test import random_divisions
from recipes.common.networks import build
from recipes.experiments.measures.two_sample import compare, responses

RNG = torch.Generator().manual_seed(0)
IMAGES = torch.randn(150, 1, 9, 9, generator=RNG)


class Pair(nn.Module):
    """Two filters, of which the second one sees how bright an image is, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(2)
        self.drop = nn.Dropout(0.5)
        self.idle = nn.Conv2d(1, 1, 1)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.drop(self.norm(self.conv(images)))


@pytest.mark.parametrize(
    ("n_train", "n_val", "active"), [(100, 1000, 54), (100, 1000, 55), (300, 300, 9), (300, 300, 10)]
)
def test_silent_filters_are_no_false_alarms_whatever_the_sizes(n_train: int, n_val: int, active: int) -> None:
    values = torch.zeros(3000, n_train + n_val)
    for row in values:
        row[torch.randperm(len(row), generator=RNG)[:active]] = torch.rand(active, generator=RNG)
    found, _ = _compare(values, n_train, torch.zeros(n_train + n_val, 0, dtype=torch.bool), 0.01)
    rate = (found.p_value <= 0.01).double().mean().item()
    assert rate <= 0.01 + 4 * math.sqrt(0.01 / 3000)
    assert found.live.all() == (active * min(n_train, n_val) >= 5 * (n_train + n_val))
    assert found.live.any() == found.live.all()


def test_a_model_that_is_one_layer_is_named_and_any_number_is_a_significance() -> None:
    conv = nn.Conv2d(1, 2, 1)
    nn.init.ones_(conv.weight)
    report = two_sample_test(conv, IMAGES[:70] + 2, IMAGES[70:], significance=Fraction(1, 100))  # type: ignore[arg-type]
    assert report.where == "in units of the model (100%)"
    assert (report.significance, type(report.significance)) == (0.01, float)


def test_the_filter_that_responds_otherwise_is_found_and_no_other() -> None:
    train, val = IMAGES[:70], IMAGES[70:]
    with pytest.warns(UserWarning, match="'idle' is left out"):
        report = two_sample_test(Pair(), train + 1, val)
    assert report.filters == {"conv": [1]}
    assert (report.count, report.fraction, report.n_train, report.n_val) == (1, 1.0, 70, 80)  # filter 0 is not live
    expected = roc_auc_score([True] * 70 + [False] * 80, torch.cat([train + 1, val]).relu().amax((1, 2, 3)))
    assert report.layers["conv"].auc.tolist() == pytest.approx([0.5, expected])
    alike = two_sample_test(Pair(), train, val, layers=["conv"])
    assert alike.filters == {}
    assert alike.fraction == 0
    assert alike.layers["conv"].p_value[1] > 0.01
    assert two_sample_test(Pair(), train, val, layers=["conv"], significance=1.0).count == 1


def test_the_share_is_compared_with_those_of_the_same_images_divided_otherwise() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 30, 3))
    images = IMAGES.clone()
    images[:70] *= torch.linspace(1, 1.6, 70)[:, None, None, None]
    report = two_sample_test(network, images[:70], images[70:], significance=0.3)
    divisions = random_divisions(70, 150)
    for column in range(12):
        first = divisions[:, column]
        other = two_sample_test(network, images[first], images[~first], significance=0.3)
        assert report.chance[column].item() == other.fraction
    assert len(report.chance) == 999
    assert len(set(report.chance[:12].tolist())) > 3
    assert report.p_value == (1 + int((report.chance >= report.fraction).sum())) / 1000
    assert two_sample_test(network, images[:70] * 3, images[70:]).p_value == 0.001


def test_a_report_is_a_table_and_sums_over_layers() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3))
    report = two_sample_test(network, IMAGES[:70] * 3, IMAGES[70:])
    told = {name: len(filters) for name, filters in report.filters.items()}
    assert report.count == sum(told.values()) > 0
    live = {name: int(layer.live.sum()) for name, layer in report.layers.items()}
    assert report.fraction == report.count / sum(live.values())
    assert report.fraction_in(["2", "absent"]) == told.get("2", 0) / live["2"]
    assert report.fraction_in([]) == 0
    for text in (str(report), repr(report)):
        assert re.search(rf"^0 +4 +{live['0']} +{told['0']} +{told['0'] / live['0']:.3f} ", text, flags=re.MULTILINE)
        assert f"{report.count} filters" in text
        assert f"images from the 80 validation images; {100 * report.p_value:.1f}% of random divisions" in text
    assert report._repr_html_().startswith("<table>")


@pytest.mark.parametrize("name", ["lenet5", pytest.param("vgg11_bn", marks=pytest.mark.slow)])
def test_the_recipe_counts_the_same_filters(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build(name, 1, 10).eval()
    images = nn.functional.interpolate(torch.cat([IMAGES[:70] * 1.3, IMAGES[70:]]), size=32)
    values, _ = responses(network, images)
    layers, by_chance = compare(values, 70)
    found = layers["max"]
    report = two_sample_test(network, images[:70], images[70:], layers=list(found))  # of VGG-11 the BatchNorms
    for layer, compared in report.layers.items():
        assert found[layer]["live"] == int(compared.live.sum())
        assert found[layer]["count"] == len(report.filters.get(layer, []))
        assert found[layer]["auc"] == pytest.approx(compared.auc[compared.live].mean().item())
    assert report.count > 0
    assert by_chance["p max fraction"] == report.p_value


def test_filters_with_nan_are_not_judged_and_the_others_are() -> None:
    model = Pair()
    with torch.no_grad():
        model.conv.weight[0] = torch.nan
    with (
        pytest.warns(UserWarning, match="Layer 'conv': 1 of 2 filters have NaN or infinite values"),
        pytest.warns(UserWarning, match="The output is not compared: it is NaN for 80 of 80 samples"),
    ):
        report = two_sample_test(model, IMAGES[:70] + 1, IMAGES[70:], layers=["conv"])
    assert report.layers["conv"].live.tolist() == [False, True]
    assert report.filters == {"conv": [1]}


BRIGHT, DARK = IMAGES.abs() + 0.1, -IMAGES.abs()  # the filter of `Pair` responds to the one kind alone


@pytest.mark.parametrize(
    ("n_train", "n_val", "significance"), [(9, 9, 0.01), (8, 100, 1e-6), (100, 2, 0.01), (1, 1, 1e-6)]
)
def test_too_few_images_are_said_with_how_many_are_enough(n_train: int, n_val: int, significance: float) -> None:
    options = {"layers": ["conv"], "significance": significance}
    with pytest.warns(
        UserWarning, match=rf"`train_inputs` and `val_inputs` hold {n_train} and {n_val} images"
    ) as caught:
        report = two_sample_test(Pair(), BRIGHT[:n_train], DARK[:n_val], **options)
    (note,) = report.notes.values()
    assert [str(warning.message) for warning in caught] == [note]
    assert f"note: {note}" in str(report)
    assert report.filters == {}
    enough = int(re.search(r"at least (\d+) of each\.$", note)[1])
    told = two_sample_test(Pair(), BRIGHT[:enough], DARK[:enough], **options)  # without a word: warnings are errors
    assert told.filters == {"conv": [1]}
    assert told.layers["conv"].p_value[1] <= significance
    assert told.p_value <= max(significance, 0.001)  # of one filter, which chance finds as often
    with pytest.warns(UserWarning, match=rf"give at least {enough} of each"):
        assert two_sample_test(Pair(), BRIGHT[: enough - 1], DARK[: enough - 1], **options).notes


def test_filters_that_are_silent_on_nearly_all_images_are_said_with_how_many_are_enough() -> None:
    images = torch.where(torch.arange(300)[:, None, None, None] % 25 == 0, BRIGHT.repeat(2, 1, 1, 1), -1.0)
    with pytest.warns(UserWarning, match="None of the 2 filters responds to enough of the 50 training and 50 valid"):
        report = two_sample_test(Pair(), images[:50], images[50:100], layers=["conv"])
    (note,) = report.notes.values()
    assert not report.layers["conv"].live.any()
    enough = int(re.search(r"give at least (\d+) of each\.$", note)[1])
    assert enough == 125
    told = two_sample_test(Pair(), images[:enough], images[enough : 2 * enough], layers=["conv"])
    assert told.layers["conv"].live.tolist() == [False, True]
    with pytest.warns(UserWarning, match=r"None of the 2 filters responds .* to be judged: name other `layers`\.$"):
        two_sample_test(Pair(), DARK[:50], DARK[50:100], layers=["conv"])


def test_filters_of_which_none_is_finite_are_not_called_silent() -> None:
    model = Pair()
    torch.nn.init.constant_(model.conv.weight, torch.nan)
    with (
        pytest.warns(UserWarning, match="The output is not compared: it is NaN"),
        pytest.warns(UserWarning, match="Layer 'conv': 2 of 2 filters have NaN"),
    ):
        report = two_sample_test(model, IMAGES[:70], IMAGES[70:], layers=["conv"])
    assert set(report.notes) == {"output", "conv nonfinite"}


def test_maps_of_two_sizes_are_not_compared() -> None:
    with pytest.warns(
        UserWarning, match=r"'conv' is left out.*: the size of its maps is \(9, 9\) for training images and"
    ):
        report = two_sample_test(Pair(), (IMAGES[:70],), (IMAGES[70:, :, :8],), layers=["conv"])
    assert report.layers == {}


def test_a_model_that_does_not_tell_how_many_samples_it_was_given_is_no_error() -> None:
    class Scores(nn.Linear):
        def forward(self, x: Tensor):
            return {"scores": super().forward(x)}

    with (
        pytest.warns(UserWarning, match="The model has no convolution"),
        pytest.warns(UserWarning, match="The output is not compared: it is a dict"),
    ):
        report = two_sample_test(Scores(9, 2), (IMAGES[:70],), (IMAGES[70:],))
    assert set(report.notes) == {"output", "no layers"}
    assert report.where == "nowhere"


def test_samples_that_come_in_parts_are_not_counted_as_so_many_samples() -> None:
    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 3, 1)

        def forward(self, clips: Tensor) -> Tensor:
            return self.conv(clips.flatten(0, 1))

    clips = IMAGES[:, None].expand(-1, 4, -1, -1, -1)
    with (
        pytest.warns(UserWarning, match="is left out of the analysis: it gave 320 maps where the samples are 80"),
        pytest.warns(UserWarning, match="The output is not compared: it has 320 samples where the inputs have 80"),
    ):
        report = two_sample_test(Frames(), clips[:70], clips[70:])
    assert report.layers == {}


def test_an_increasing_affine_norm_behind_a_convolution_changes_nothing_if_it_is_the_layer() -> None:
    conv, norm = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6)
    with torch.no_grad():
        norm.running_var.uniform_(0.5, 2)
        norm.bias.fill_(100.0)  # nothing is rectified away
        conv.bias.fill_(100.0)
    bare = two_sample_test(conv, IMAGES[:70] * 1.2, IMAGES[70:])
    normed = two_sample_test(nn.Sequential(conv, norm), IMAGES[:70] * 1.2, IMAGES[70:], layers=["1"])
    torch.testing.assert_close(normed.layers["1"].auc, bare.layers[""].auc, rtol=0, atol=1e-3)


def test_precision_and_three_axes_are_taken_as_they_are() -> None:
    model = nn.Conv3d(1, 3, 1).bfloat16()
    train, val = (torch.randn(count, 1, 2, 3, 4, generator=RNG).bfloat16() for count in (20, 30))
    report = two_sample_test(model, train + 4, val)
    assert report.layers[""].live.shape == (3,)
    assert (report.n_train, report.n_val) == (20, 30)


def test_chance_is_counted_in_whole_numbers_whatever_the_default_type() -> None:
    conv = nn.Conv2d(1, 600, 1)
    expected = two_sample_test(conv, IMAGES[:70], IMAGES[70:], significance=0.5).chance
    assert expected.max() > 0.9  # many of the 600, all of which see the same pixels
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # as Lightning does for "bf16-true"
    try:
        found = two_sample_test(conv, IMAGES[:70], IMAGES[70:], significance=0.5).chance
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(found, expected)


def test_inputs_may_be_the_arguments_of_a_call() -> None:
    parts = IMAGES[:70] + 1, IMAGES[70:]
    plain = two_sample_test(Pair(), *parts, layers=["conv"])
    for wrapped in ([(part,) for part in parts], [{"images": part} for part in parts]):
        report = two_sample_test(Pair(), *wrapped, layers=["conv"])
        assert torch.equal(report.layers["conv"].p_value, plain.layers["conv"].p_value)


def test_the_model_and_the_random_state_are_left_as_they_were() -> None:
    model = Pair().train()
    model.norm.eval()
    flags = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    two_sample_test(model, IMAGES[:70], IMAGES[70:], layers=["conv"])
    with pytest.raises(RuntimeError):
        two_sample_test(model, IMAGES[:70], (torch.zeros(5, 3, 9, 9),), layers=["conv"])
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_without_convolutions_gives_an_empty_report_and_a_warning() -> None:
    with pytest.warns(UserWarning, match="no convolution, so there are no filters to analyse"):
        report = two_sample_test(nn.Linear(3, 2), torch.rand(20, 3), torch.rand(30, 3))
    assert (report.count, report.fraction, report.p_value, report.filters) == (0, 0.0, 1.0, {})
    assert "note: The model has no convolution" in str(report)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_inputs": IMAGES[:0]}, r"`train_inputs` should hold samples. Found shape \(0, 1, 9, 9\)"),
        ({"val_inputs": None}, r"`val_inputs` should be a tensor .* Found NoneType"),
        ({"model": "last.ckpt"}, r"`model` should be a torch.nn.Module. Found 'last.ckpt'"),
        ({"val_inputs": IMAGES.numpy()}, r"`val_inputs` should be a tensor .* Found ndarray"),
        (
            {"train_inputs": IMAGES[:, :, :8]},
            r"`train_inputs` and `val_inputs` should hold images of the same shape. Found \(1, 8, 9\) and \(1, 9, 9\)",
        ),
        ({"significance": 0}, r"`significance` should be a number in \(0, 1\]. Found `significance = 0`"),
        ({"layers": ["absent"]}, r"`layers` should name layers of the model. Found \['absent'\]"),
    ],
)
def test_bad_arguments_are_named(changed: dict, message: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=message):
            two_sample_test(**{"model": Pair(), "train_inputs": IMAGES, "val_inputs": IMAGES, **changed})
