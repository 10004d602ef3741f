"""Remove masked filters for good and see what is gained: `python compact.py` (needs torchvision and Torch-Pruning).

Masks 30% of the filters of every convolution at random in VGG-11 and ResNet-18, compacts both, and times them before
and after, in turns, on one thread. Untrained weights will do: the time of a forward pass does not depend on them.
"""

import time
import warnings
from statistics import median

import torch
from torch import Tensor, nn
from torchvision.models import resnet18, vgg11

from lightning_anomaly.pruning import compact, mask_filters


def random_filters(model: nn.Module, fraction: float) -> dict[str, list[int]]:
    """Choose this fraction of the filters of each convolution."""
    counts = {name: module.out_channels for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    return {name: torch.randperm(count)[: int(fraction * count)].tolist() for name, count in counts.items()}


def time_in_turns(models: list[nn.Module], images: Tensor, repeats: int) -> list[float]:
    """Return the median time of a forward pass of each model, which take turns (milliseconds)."""
    times: list[list[float]] = [[] for _ in models]
    with torch.inference_mode():
        for _ in range(repeats + 1):
            for model, own in zip(models, times, strict=True):
                start = time.perf_counter()
                model(images)
                own.append(1000 * (time.perf_counter() - start))
    return [median(own[1:]) for own in times]  # the first pass also sets things up


def main(model: nn.Module, images: Tensor, fraction: float = 0.3, repeats: int = 15) -> nn.Module:
    """Mask, compact, compare, and return the smaller model."""
    model.eval()
    mask_filters(model, random_filters(model, fraction), example_input=images[:1])
    smaller = compact(model, images[:1])
    with torch.inference_mode():
        torch.testing.assert_close(smaller(images), model(images), rtol=1e-3, atol=1e-3)
    before, after = (sum(parameter.numel() for parameter in each.parameters()) for each in (model, smaller))
    slow, fast = time_in_turns([model, smaller], images, repeats)
    print(f"{type(model).__name__}: {before:,} -> {after:,} parameters ({after / before - 1:+.0%})", end=", ")
    print(f"{slow:.1f} -> {fast:.1f} ms ({fast / slow - 1:+.0%})")
    return smaller


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=UserWarning)  # which filters of shortcuts have to stay
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for network in (vgg11, resnet18):
        main(network(num_classes=10), torch.randn(16, 3, 64, 64))
