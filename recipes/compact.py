"""Remove masked filters for good and measure the gain: `python compact.py` (needs torchvision and Torch-Pruning).

Masks a random 30% of the filters of every convolution in VGG-11 and ResNet-18, compacts both, and times the models
before and after, in turns, on one thread. Weights are untrained, as the time of a forward pass does not depend on them.
"""

import time
import warnings
from statistics import median

import torch
from torch import Tensor, nn
from torchvision.models import resnet18, vgg11

from lightning_anomaly.pruning import compact, mask_filters


def random_filters(model: nn.Module, fraction: float) -> dict[str, list[int]]:
    """Choose a random fraction of the filters of each convolution."""
    counts = {name: module.out_channels for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    return {name: torch.randperm(count)[: int(fraction * count)].tolist() for name, count in counts.items()}


def time_in_turns(models: list[nn.Module], images: Tensor, repeats: int) -> list[float]:
    """Return the median time (milliseconds) of a forward pass of each model; the models take turns."""
    times: list[list[float]] = [[] for _ in models]
    with torch.inference_mode():
        for _ in range(repeats + 1):
            for model, durations in zip(models, times, strict=True):
                start = time.perf_counter()
                model(images)
                durations.append(1000 * (time.perf_counter() - start))
    return [median(durations[1:]) for durations in times]  # without the first pass, which also allocates memory


def main(model: nn.Module, images: Tensor, fraction: float = 0.3, repeats: int = 15) -> nn.Module:
    """Mask, compact, compare, and return the smaller model."""
    model.eval()
    mask_filters(model, random_filters(model, fraction), example_input=images[:1])
    smaller = compact(model, images[:1])
    with torch.inference_mode():
        torch.testing.assert_close(smaller(images), model(images), rtol=1e-3, atol=1e-3)
    before, after = (sum(weights.numel() for weights in network.parameters()) for network in (model, smaller))
    slow, fast = time_in_turns([model, smaller], images, repeats)
    print(f"{type(model).__name__}: {before:,} -> {after:,} parameters ({after / before - 1:+.0%})", end=", ")
    print(f"{slow:.1f} -> {fast:.1f} ms ({fast / slow - 1:+.0%})")
    return smaller


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=UserWarning)  # names the filters of shortcuts, which stay
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for network in (vgg11, resnet18):
        main(network(num_classes=10), torch.randn(16, 3, 64, 64))
