"""Masked filters leave no constant channels in common networks, by an independent experiment."""

import copy
import random
from functools import partial
from typing import Any

import pytest
import torch
import torchvision
from functional import lived_in
from torch import Tensor, nn

from lightning_anomaly.pruning import mask_filters

SLOW = ["resnet18", "mobilenet_v3_small", "efficientnet_b0", "densenet121", "googlenet", "regnet_y_400mf"]
NETWORKS = ["shufflenet_v2_x0_5", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
IMAGES = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def noise_but_for(filters: list[int], module: nn.Module, args: Any, output: Tensor) -> Tensor:
    noise = 5 * torch.randn_like(output)
    noise[:, filters] = output[:, filters]
    return noise


def constant_and_zero(model: nn.Module, filters: dict[str, list[int]]) -> dict[str, tuple[Tensor, Tensor]]:
    """Test whether the input of each norm channel is constant, and whether its output is exactly 0.

    All other filters of a convolution give noise, so that constant inputs depend on these filters alone. Grouped
    convolutions, whose inputs may all be zeros, are unchanged.
    """
    results = {}

    def look(name: str, module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        inputs, output = args[0].transpose(0, 1).flatten(1), output.transpose(0, 1).flatten(1)
        results[name] = ((inputs == inputs[:, :1]).all(1), (output == 0).all(1))

    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(partial(look, name))
        elif name in filters and module.groups == 1:
            module.register_forward_hook(partial(noise_but_for, filters[name]))
    with torch.no_grad():
        model(IMAGES)
    return results


@pytest.mark.parametrize("name", NETWORKS)
def test_a_norm_channel_is_0_if_and_only_if_it_depends_only_on_masked_filters(name: str) -> None:
    torch.manual_seed(0)
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    model, draw = lived_in(torchvision.models.get_model(name, num_classes=4, **options)).eval(), random.Random(0)
    sizes = {layer: conv.out_channels for layer, conv in model.named_modules() if isinstance(conv, nn.Conv2d)}
    filters = {layer: sorted(draw.sample(range(size), size // 3)) for layer, size in sizes.items()}
    mask_filters(model, filters, example_input=IMAGES[:2])
    behind = 0
    for training in (False, True):
        found = constant_and_zero(copy.deepcopy(model).train(training), filters)
        for layer, (constant, zero) in found.items():
            assert torch.equal(constant, zero), layer
            behind += int(zero.sum())
    assert behind > 0
