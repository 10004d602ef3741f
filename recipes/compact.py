"""Remove masked filters for good and measure the gain: `python compact.py` (needs torchvision and Torch-Pruning).

Masks a random 30% of the filters of every convolution in VGG-11 and ResNet-18, removes them, and times the models
before and after, in turns, on one thread. Weights are untrained, as the time of a forward pass does not depend on them.
"""

import copy
from statistics import median

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer
from torch_pruning import DependencyGraph, prune_conv_out_channels
from torchvision.models import resnet18, vgg11

from lightning_anomaly.pruning import mask_filters


def without_masked(model: nn.Module, images: Tensor) -> nn.Module:
    """Copy a model without the filters that are zero, as `mask_filters` and `AnomalyPruneCallback` leave them.

    Their BatchNorm channels and the weights of later layers go with them. A filter stays if its map is added to that
    of another filter (residual connections) or meets one in a depthwise convolution. The copy is in evaluation mode,
    and nothing in it is frozen. Raises an AssertionError if its outputs for the images `(N, C, H, W)` differ, as
    behind a sigmoid, which makes 0.5 of a masked filter's 0. Save it as a whole: `torch.save(smaller, "smaller.pt")`.
    """
    smaller = copy.deepcopy(model).eval().requires_grad_(True)  # Torch-Pruning follows gradients
    with torch.inference_mode():
        expected = smaller(images)
    graph = DependencyGraph().build_dependency(smaller, example_inputs=images[:1], verbose=False)
    for conv in [module for module in smaller.modules() if isinstance(module, nn.Conv2d) and module.groups == 1]:
        if filters := zero_filters(conv):
            for item in graph.get_pruning_group(conv, prune_conv_out_channels, filters).items:
                layer = item.dep.target.module
                if isinstance(layer, nn.Conv2d) and graph.is_out_channel_pruning_fn(item.dep.handler):
                    zero = zero_filters(layer)
                    free = {root for root, index in zip(item.root_idxs, item.idxs, strict=True) if index in zero}
                    filters = sorted(free.intersection(filters))
        if filters:
            graph.get_pruning_group(conv, prune_conv_out_channels, filters).prune()
    with torch.inference_mode():
        torch.testing.assert_close(smaller(images), expected, rtol=1e-3, atol=1e-3)
    return smaller


def zero_filters(conv: nn.Conv2d) -> list[int]:
    """Find the filters whose weight and bias are 0."""
    rows = [conv.weight.flatten(1)] if conv.bias is None else [conv.weight.flatten(1), conv.bias[:, None]]
    return [index for index, row in enumerate(torch.cat(rows, 1)) if not row.any()]


def main(model: nn.Module, images: Tensor, fraction: float = 0.3) -> None:
    """Mask, remove, and compare."""
    counts = {name: module.out_channels for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    filters = {name: torch.randperm(count)[: int(fraction * count)].tolist() for name, count in counts.items()}
    mask_filters(model.eval(), filters, example_input=images[:1])
    smaller = without_masked(model, images)
    before, after = (sum(weights.numel() for weights in net.parameters()) for net in (model, smaller))
    timers = [Timer("net(images)", globals={"net": net, "images": images}) for net in (model, smaller)]
    with torch.inference_mode():
        rounds = [[timer.timeit(1).median for timer in timers] for _ in range(15)]  # they take turns
    slow, fast = (median(times) for times in zip(*rounds, strict=True))
    print(f"{type(model).__name__}: {before:,} -> {after:,} parameters ({after / before - 1:+.0%})", end=", ")
    print(f"{1000 * slow:.1f} -> {1000 * fast:.1f} ms ({fast / slow - 1:+.0%})")


if __name__ == "__main__":
    torch.manual_seed(0)
    for network in (vgg11, resnet18):
        main(network(num_classes=10), torch.randn(16, 3, 64, 64))
