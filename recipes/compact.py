"""What removing masked filters for good gains: `python -m recipes.compact`, on VGG-11 and ResNet-18.

Masks random filters of every convolution, compacts the network, and times both in turns on the CPU, with one thread.
Untrained weights will do: how long a network takes does not depend on them.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn
from torchvision import models

from lightning_anomaly.pruning.compact import compact
from lightning_anomaly.pruning.mask import mask_filters
from recipes.common.networks import NETWORKS
from recipes.common.options import one_sentence_errors

_TORCHVISION = {"vgg11": models.vgg11, "vgg11_bn": models.vgg11_bn, "resnet18": models.resnet18}


@dataclass(frozen=True)
class Gain:
    """Masked and removed filters; parameters and seconds of a pass, before and after; how far outputs are apart."""

    masked: int
    removed: int
    parameters: tuple[int, int]
    seconds: tuple[float, float]
    difference: float


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--networks", nargs="+", default=["vgg11", "resnet18"], choices=[*NETWORKS, *_TORCHVISION], help="which ones"
    )
    parser.add_argument("--fraction", type=float, default=0.3, help="of each layer's filters, default: %(default)s")
    parser.add_argument("--side", type=int, default=64, help="of an image (pixels), default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=15, help="timed passes of each, default: %(default)s")
    return parser.parse_args(arguments)


def build(name: str) -> nn.Module:
    """A network by its name, for 10 classes, with random weights."""
    torch.manual_seed(0)
    model: nn.Module = NETWORKS[name](3, 10, 0.0) if name in NETWORKS else _TORCHVISION[name](num_classes=10)
    return model.eval()


def random_filters(model: nn.Module, fraction: float) -> dict[str, list[int]]:
    """As many random filters of each convolution."""
    generator = torch.Generator().manual_seed(0)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    counts = {name: layer.out_channels for name, layer in layers.items()}
    return {
        name: torch.randperm(count, generator=generator)[: int(fraction * count)].tolist()
        for name, count in counts.items()
    }


def time_in_turns(pair: tuple[nn.Module, nn.Module], images: Tensor, repeats: int) -> tuple[float, float]:
    """The median time of a forward pass of each of two models, which take turns (seconds)."""
    seconds: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for repeat in range(repeats + 1):
            for model, taken in zip(pair, seconds, strict=True):
                start = time.perf_counter()
                model(images)
                if repeat:  # the first pass also sets things up
                    taken.append(time.perf_counter() - start)
    return median(seconds[0]), median(seconds[1])


def measure(name: str, options: argparse.Namespace) -> Gain:
    """Mask, compact and time one network."""
    images = torch.randn(options.batch_size, 3, options.side, options.side, generator=torch.Generator().manual_seed(0))
    model = build(name)
    mask = mask_filters(model, random_filters(model, options.fraction), example_input=images[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of filters that stay, which the table counts
        smaller = compact(model, images[:1])
    filters = [sum(m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d)) for net in (model, smaller)]
    sizes = [sum(parameter.numel() for parameter in net.parameters()) for net in (model, smaller)]
    with torch.no_grad():
        before, after = model(images), smaller(images)
    return Gain(
        masked=sum(map(len, mask.masked.values())),
        removed=filters[0] - filters[1],
        parameters=(sizes[0], sizes[1]),
        seconds=time_in_turns((model, smaller), images, options.repeats),
        difference=((before - after).abs().max() / before.abs().max()).item(),
    )


def run(options: argparse.Namespace) -> dict[str, Gain]:
    """Measure the networks and print a table."""
    torch.set_num_threads(1)
    gains = {name: measure(name, options) for name in options.networks}
    size = f"{options.batch_size} images of {options.side}x{options.side} pixels"
    print(f"{options.fraction:.0%} of each layer's filters masked; {size}; one thread")
    for name, gain in gains.items():
        (before, after), (slow, fast) = gain.parameters, gain.seconds
        print(
            f"{name}: {gain.removed} of {gain.masked} masked filters removed, {before:,} -> {after:,} parameters "
            f"({after / before - 1:+.0%}), {1000 * slow:.1f} -> {1000 * fast:.1f} ms ({fast / slow - 1:+.0%}), "
            f"outputs differ by at most {gain.difference:.1g} of the largest"
        )
    return gains


if __name__ == "__main__":
    one_sentence_errors(run, parse)
