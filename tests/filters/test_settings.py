"""Settings are validated on construction and are plain values."""

from dataclasses import FrozenInstanceError, asdict, replace

import numpy as np
import pytest

from lightning_anomaly import AnalysisSettings

SMALLEST = {"max_components": 2, "n_init": 1, "max_map_side": 1, "seed": 0, "max_memory_mb": 1}


def test_values_at_the_limits_are_valid():
    assert asdict(AnalysisSettings(**SMALLEST)).items() >= SMALLEST.items()
    assert AnalysisSettings(seed=2**64 - 1, max_components=255).seed == 2**64 - 1
    assert AnalysisSettings(rare_fraction=0.5).rare_fraction == 0.5


def test_paper_settings_have_one_start_8_components_and_the_best_index():
    expected = AnalysisSettings(max_components=8, n_init=1, rule="best", rare_fraction=0.01, rectify=True)
    assert AnalysisSettings.paper() == expected
    assert AnalysisSettings().smallest_probe == 50  # a cluster is rare at 2%


@pytest.mark.parametrize(
    ("rare_fraction", "max_components", "smallest"),
    [(0.01, 5, 100), (0.03, 5, 34), (0.5, 5, 10), (0.5, 2, 4), (1 / 49, 5, 49)],  # 1 / (1 / 49) is more than 49
)
def test_the_smallest_probe_allows_a_rare_cluster_and_two_samples_per_component(
    rare_fraction, max_components, smallest
):
    settings = AnalysisSettings(rare_fraction=rare_fraction, max_components=max_components)
    assert settings.smallest_probe == smallest


def test_settings_are_frozen_plain_values_even_from_numpy_numbers():
    numbers = {"max_components": np.int64(4), "n_init": np.int32(5), "rare_fraction": np.float32(0.25)}
    settings = AnalysisSettings(rule=np.array(["best"])[0], **numbers)
    assert settings == AnalysisSettings(max_components=4, n_init=5, rare_fraction=0.25, rule="best")
    assert {type(value) for value in asdict(settings).values()} == {int, float, bool, str}
    assert replace(settings, seed=8).seed == 8
    with pytest.raises(FrozenInstanceError):
        settings.seed = 1
