"""A layer's record survives JSON, and can be divided and joined."""

import json
import math
from dataclasses import replace

import pytest
import torch
from properties import assert_same
from reports import layer

from lightning_anomaly.filters.layer_report import join_layers, layer_from_dict, layer_to_dict, select_filters

LAYER = layer("normal", "anomaly", "dead", outliers={1: [2, 5]}, samples=6, map_size=(32, 16))
BROKEN = replace(LAYER, nonfinite=torch.arange(6) == 3)
ODD = layer("nonfinite", samples=3, map_size=(), calinski_harabasz=torch.tensor([math.inf]).double())
ODD.points[0, 1] = torch.tensor([-math.inf, math.nan])
NO_POINTS = layer("normal", samples=4, points=torch.zeros(1, 0, 2), labels=torch.zeros(1, 0, dtype=torch.uint8))


@pytest.mark.parametrize("original", [LAYER, ODD, NO_POINTS], ids=["layer", "infinite values", "no points"])
def test_a_layer_survives_json(original):
    values = json.loads(json.dumps(layer_to_dict(original), allow_nan=False))
    assert_same(layer_from_dict(values), original)
    assert values["labels"] == original.labels.tolist()


def test_joined_parts_are_the_layer_and_have_the_broken_samples_of_each_part():
    parts = select_filters(LAYER, torch.tensor([0])), select_filters(BROKEN, torch.tensor([1, 2]))
    assert_same(join_layers(parts), BROKEN)


def test_a_layer_lists_its_filters_by_verdict_and_their_outliers():
    assert [LAYER.filters(verdict) for verdict in ("normal", "anomaly", "nonfinite")] == [[0], [1], []]
    assert [LAYER.outliers_of(index) for index in (0, 1)] == [[], [2, 5]]
    assert replace(LAYER, isolated=LAYER.outliers).isolated_filters == [1]
