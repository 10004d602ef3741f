"""The networks of the experiments."""

import pytest
import torch

from recipes.common.networks import build


@pytest.mark.parametrize(
    ("name", "filters"), [("lenet5", 22), ("alexnet", 1152), ("simple_cnn", 160), ("resnet18", 4800)]
)
def test_networks_take_small_images(name: str, filters: int) -> None:
    network = build(name, 1, 7, 0.5)
    assert network(torch.rand(2, 1, 28, 28)).shape == (2, 7)
    assert sum(part.out_channels for part in network.modules() if isinstance(part, torch.nn.Conv2d)) == filters
    assert {part.p for part in network if isinstance(part, torch.nn.Dropout)} == {0.5}
