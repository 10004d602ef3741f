"""Labels changed and images damaged on purpose, so that there is something true to find.

Functions on tensors; they change nothing they are given. What is random takes a seed and draws from a
generator of its own. Axes: `N` images, `C` channels, `H W` pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torchvision.transforms.functional import gaussian_blur


def with_label_noise(labels: Tensor, fraction: float, n_classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Give `round(fraction * N)` of the labels int64 `(N,)`, picked at random, one of the other classes at random.

    Returns:
        The noisy labels int64 `(N,)` and which of them are changed, bool `(N,)`.
    """
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randperm(len(labels), generator=generator)[: round(fraction * len(labels))]
    noisy, changed = labels.clone(), torch.zeros(len(labels), dtype=torch.bool)
    noisy[picked] = (labels[picked] + torch.randint(1, n_classes, picked.shape, generator=generator)) % n_classes
    changed[picked] = True
    return noisy, changed


def _salt_and_pepper(images: Tensor, generator: Generator) -> Tensor:
    """Blacken 1/8 of the pixels and whiten another 1/8, in all channels."""
    dice = torch.rand(images[:, :1].shape, generator=generator)
    return images.masked_fill(dice < 1 / 8, 0).masked_fill(dice > 7 / 8, 255)


# Ways to damage images uint8 `(N, C, H, W)`. `plant_damage` knows one more, "foreign", which needs other images.
DAMAGES: dict[str, Callable[[Tensor, Generator], Tensor]] = {
    "noise": lambda images, rng: torch.randint(0, 256, images.shape, dtype=torch.uint8, generator=rng),
    "salt_and_pepper": _salt_and_pepper,
    "black": lambda images, rng: torch.zeros_like(images),
    "over_exposed": lambda images, rng: (images.int() * 4).clamp(max=255).to(torch.uint8),
    "saturated": lambda images, rng: (images >= 128).to(torch.uint8) * 255,
    "white": lambda images, rng: torch.full_like(images, 255),
    "blurred": lambda images, rng: gaussian_blur(images, kernel_size=[9, 9], sigma=[2.0, 2.0]),
    "inverted": lambda images, rng: 255 - images,
}


def over_range(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Images uint8 `(N, C, H, W)` at four times their brightness, not clipped, normalised like all others: float32.

    What happens when a picture with another range of values, a 10-bit scan say, slips in among the 8-bit ones.
    """
    return (4 * images.float() / 255 - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)


def plant_damage(
    images: Tensor, count: int, kinds: Sequence[str], seed: int, foreign: Tensor | None = None
) -> tuple[Tensor, dict[str, list[int]]]:
    """Damage `count` of the images uint8 `(N, C, H, W)`, picked at random, with each kind in turn.

    Args:
        images: What to damage; a copy is returned.
        count: How many images to damage, 0 to `N`.
        kinds: Keys of `DAMAGES`, or "foreign" to put an image of another data set in the place.
        seed: Seed of the draw.
        foreign: Images of that data set, uint8 `(M, C', H', W')`; they are fitted to `C`, `H` and `W`.

    Returns:
        The images and, by kind, the sorted positions of the damaged ones.
    """
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randperm(len(images), generator=generator)[:count]
    planted = {kind: picked[place :: len(kinds)].sort().values for place, kind in enumerate(kinds)}
    damaged = images.clone()
    for kind, places in planted.items():
        if kind == "foreign":
            assert foreign is not None
            damaged[places] = _foreign(foreign, images[places], generator)
        elif len(places):
            damaged[places] = DAMAGES[kind](images[places], generator)
    return damaged, {kind: places.tolist() for kind, places in planted.items()}


def _foreign(source: Tensor, images: Tensor, generator: Generator) -> Tensor:
    """Pick as many images of `source` as there are `images`, fitted to their channels and size."""
    picked = source[torch.randperm(len(source), generator=generator)[: len(images)]].float()
    if picked.shape[1] != images.shape[1]:
        picked = picked.mean(1, keepdim=True).expand(-1, images.shape[1], -1, -1)
    fitted = F.interpolate(picked, size=images.shape[2:], mode="bilinear", antialias=True)
    return fitted.round().clamp(0, 255).to(torch.uint8)
