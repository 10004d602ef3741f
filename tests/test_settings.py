"""Settings check themselves, name what is wrong, and are plain values."""

import json
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from lightning_anomaly import AnalysisSettings
from lightning_anomaly.checks import check_integer, check_one_of


@pytest.mark.parametrize(
    ("name", "smallest"), [("max_components", 2), ("n_init", 1), ("max_map_side", 1), ("seed", 0), ("max_memory_mb", 1)]
)
def test_an_integer_below_its_smallest_value_or_of_another_type_is_an_error(name, smallest):
    assert getattr(AnalysisSettings(**{name: smallest}), name) == smallest
    for value in (smallest - 1, 2.0, "3", None, True):
        with pytest.raises(ValueError, match=rf"`{name}` should be an integer of at least {smallest}\. Found"):
            AnalysisSettings(**{name: value})


def test_a_seed_that_torch_does_not_take_is_an_error():
    assert AnalysisSettings(seed=2**64 - 1).seed == 2**64 - 1
    with pytest.raises(ValueError, match=r"`seed` should be an integer below 2 \*\* 64\. Found `seed = 18446"):
        AnalysisSettings(seed=2**64)


@pytest.mark.parametrize("value", [0, -0.1, 0.51, 1, True, "0.1", None, float("nan")])
def test_a_rare_fraction_outside_0_to_half_is_an_error(value):
    with pytest.raises(ValueError, match=r"`rare_fraction` should be a number in \(0, 0\.5\]\. Found `rare_fraction ="):
        AnalysisSettings(rare_fraction=value)


def test_the_limits_of_rare_fraction_are_allowed():
    assert AnalysisSettings(rare_fraction=0.5).rare_fraction == 0.5
    for smallest in (1e-9, 1e-310):  # the inverse of the latter is infinite
        assert AnalysisSettings(rare_fraction=smallest).rare_fraction == smallest
        assert AnalysisSettings(rare_fraction=smallest).smallest_probe >= 10**9


def test_rectify_is_true_or_false():
    with pytest.raises(ValueError, match=r"`rectify` should be True or False\. Found `rectify = 1`"):
        AnalysisSettings(rectify=1)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [("rule", "index.*best"), ("engine", "auto.*numba.*torch.*sklearn")],
)
def test_an_unknown_choice_is_an_error_that_lists_the_choices(name, allowed):
    with pytest.raises(ValueError, match=rf"`{name}` should be one of \['{allowed}'\]\. Found `{name} = 'other'`"):
        AnalysisSettings(**{name: "other"})


def test_the_checks_serve_other_arguments_too():
    check_integer("probe_size", 3, 3)
    check_one_of("probe", "val", ("val", "train"))
    with pytest.raises(ValueError, match=r"`probe_size` should be an integer of at least 3\. Found `probe_size = 2`"):
        check_integer("probe_size", 2, 3)
    with pytest.raises(ValueError, match=r"`probe` should be one of \['val', 'train'\]\. Found `probe = None`"):
        check_one_of("probe", None, ("val", "train"))


def test_the_paper_s_reading_is_one_kmeans_start_up_to_8_components_and_the_best_index():
    paper = AnalysisSettings.paper()
    assert (paper.max_components, paper.n_init, paper.rule) == (8, 1, "best")
    assert paper.rectify
    assert paper.rare_fraction == 0.01


@pytest.mark.parametrize(
    ("rare_fraction", "max_components", "smallest"),
    [
        (0.01, 5, 100),
        (0.03, 5, 34),
        (0.5, 5, 10),
        (0.5, 2, 4),
        (1 / 3, 2, 4),
        (0.25, 2, 4),
        (0.07, 2, 15),
        (1 / 49, 5, 49),  # 1 / (1 / 49) is a little more than 49
    ],
)
def test_the_smallest_probe_has_room_for_a_rare_cluster_and_two_samples_a_component(
    rare_fraction, max_components, smallest
):
    settings = AnalysisSettings(rare_fraction=rare_fraction, max_components=max_components)
    assert settings.smallest_probe == smallest


def test_settings_of_numpy_s_numbers_are_plain_values():
    numbers = {"max_components": np.int64(4), "n_init": np.int32(5), "rare_fraction": np.float32(0.25)}
    settings = AnalysisSettings(rule=np.array(["best"])[0], **numbers)
    assert settings == AnalysisSettings(max_components=4, n_init=5, rare_fraction=0.25, rule="best")
    assert {type(value) for value in settings.to_dict().values()} == {int, float, bool, str}
    assert AnalysisSettings(**json.loads(json.dumps(settings.to_dict()))) == settings


def test_settings_are_frozen_and_come_back_from_plain_values():
    settings = AnalysisSettings(max_components=3, rare_fraction=0.2, seed=7)
    assert AnalysisSettings(**json.loads(json.dumps(settings.to_dict()))) == settings
    assert replace(settings, seed=8).seed == 8
    with pytest.raises(FrozenInstanceError):
        settings.seed = 1
