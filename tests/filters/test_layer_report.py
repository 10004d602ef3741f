"""A layer can be divided and joined, and lists its filters."""

from dataclasses import replace

import torch
from properties import assert_same
from reports import layer

from lightning_anomaly.filters.layer_report import join_layers, select_filters

LAYER = layer("normal", "anomaly", "dead", outliers={1: [2, 5]}, samples=6, map_size=(32, 16))
BROKEN = replace(LAYER, nonfinite=torch.arange(6) == 3)


def test_joined_parts_are_the_layer_and_have_the_broken_samples_of_each_part():
    parts = select_filters(LAYER, torch.tensor([0])), select_filters(BROKEN, torch.tensor([1, 2]))
    assert_same(join_layers(parts), BROKEN)


def test_a_layer_lists_its_filters_by_verdict_and_their_outliers():
    assert [LAYER.filters(verdict) for verdict in ("normal", "anomaly", "nonfinite")] == [[0], [1], []]
    assert [LAYER.outliers_of(index) for index in (0, 1)] == [[], [2, 5]]
    assert replace(LAYER, isolated=LAYER.outliers).isolated_filters == [1]
