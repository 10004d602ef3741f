"""Which filters react to a sample."""

import pytest
import torch
from reports import layer

from lightning_anomaly.filters.reactions import find_reactions

APART = torch.zeros(3, 6, dtype=torch.bool)
APART[0, 4], APART[1, :2] = True, True
LAYERS = {
    "conv1": layer("normal", "anomaly", "dead", outliers={1: [2, 5]}, samples=6, isolated=APART),
    "conv3": layer("anomaly", "anomaly", outliers={0: [5], 1: [5, 0]}, samples=6),
}


def test_filters_that_isolate_a_sample_react_before_those_with_it_in_a_rare_cluster():
    """Each kind by descending distance from the filter's mean."""
    found = find_reactions(LAYERS, 6)
    assert [reaction[:3] for reaction in found[0]] == [("conv1", 1, True), ("conv3", 1, False)]
    assert found[3] == []
    distances = [LAYERS[name].points[index, 5].norm().item() for name, index, *_ in found[5]]
    assert distances == sorted(distances, reverse=True) == pytest.approx([reaction.distance for reaction in found[5]])
