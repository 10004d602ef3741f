"""Masked filters leave no constant behind in the networks that people use, as an experiment of its own finds."""

import copy
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torchvision
from torch import Tensor, nn

from lightning_anomaly.pruning.mask import FilterMask, mask_filters

SLOW = ["resnet18", "vgg16_bn", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "mnasnet0_5", "densenet121"]
SLOW += ["convnext_tiny", "squeezenet1_0", "googlenet", "regnet_y_400mf"]
NETWORKS = ["shufflenet_v2_x0_5", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
IMAGES = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def network(name: str) -> nn.Module:
    """With norms that make something else of zeros than zeros."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
        model = torchvision.models.get_model(name, weights=None, num_classes=4, **options)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
                nn.init.normal_(module.running_mean, std=0.2)
    return model.eval()


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}


@contextmanager
def noise_for(model: nn.Module, filters: dict[str, list[int]]) -> Iterator[None]:
    """Each filter of a convolution, but these, gives noise: what is constant then depends on these filters alone.

    A convolution in groups, which may have nothing but zeros to work on, is left as it is.
    """
    hooks = []
    for name, conv in convolutions(model).items():
        if conv.groups == 1:
            noisy = torch.ones(1, conv.out_channels, 1, 1, dtype=torch.bool)
            noisy[:, filters.get(name, [])] = False
            hook = lambda _, args, output, noisy=noisy: torch.where(noisy, 5 * torch.randn_like(output), output)  # noqa: E731
            hooks.append(conv.register_forward_hook(hook))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        yield
    for hook in hooks:
        hook.remove()


def constant_and_zero(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Of each norm's channels, whether the input is constant and whether the output is exactly 0."""
    found = {}

    def look(name: str, given: Tensor, output: Tensor) -> None:
        given, output = given.transpose(0, 1).flatten(1), output.transpose(0, 1).flatten(1)
        found[name] = ((given == given[:, :1]).all(1), (output == 0).all(1))

    hooks = [
        module.register_forward_hook(lambda _, args, output, name=name: look(name, args[0], output))
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    with torch.no_grad():
        model(IMAGES)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_a_norm_channel_is_0_if_and_only_if_it_depends_on_masked_filters_alone(name: str) -> None:
    model, draw = network(name), random.Random(0)
    sizes = {layer: conv.out_channels for layer, conv in convolutions(model).items()}
    filters = {layer: sorted(draw.sample(range(size), size // 3)) for layer, size in sizes.items()}
    before = copy.deepcopy(model.state_dict())
    with warnings.catch_warnings():
        if name == "convnext_tiny":
            warnings.filterwarnings("ignore", r"Masked filters feed .* 'features\.0\.1' \(LayerNorm2d")
        mask = mask_filters(model, filters, example_input=IMAGES[:2])
    mask_state, count = mask.state_dict(), mask.parameter_count
    behind = 0
    for training in (False, True):
        probe = copy.deepcopy(model).train(training)
        with noise_for(probe, filters):
            found = constant_and_zero(probe)
        for layer, (constant, zero) in found.items():
            assert torch.equal(constant, zero), layer
            behind += int(zero.sum())
    assert behind > 0 or name in ("convnext_tiny", "squeezenet1_0")  # which have no such norm
    mask.restore()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    again = FilterMask.from_state_dict(model, mask_state)
    assert again.parameter_count == count
