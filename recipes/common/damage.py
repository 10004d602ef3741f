"""Wrong labels and damaged images, planted so that it is known what should be found.

Functions on tensors, which do not change their arguments; random ones take a seed. Axes: `N` images, `C` channels,
`H W` pixels; images are uint8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import cycle

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_images
from torch import Generator, Tensor
from torchvision.transforms.functional import gaussian_blur

Damage = Callable[[Tensor, Generator], Tensor]

_CORRUPTIONS = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "gaussian_blur"),
    "weather": ("snow", "frost", "fog", "brightness", "spatter"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression", "saturate"),
}
_SMALLEST = 32  # pixels of a side that `imagecorruptions` takes


def with_label_noise(labels: Tensor, fraction: float, n_classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Change `round(fraction * N)` random labels int64 `(N,)` to another class; return which, too, bool `(N,)`."""
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


def _crop(images: Tensor, generator: Generator) -> Tensor:
    """Enlarge a part of each image, of about half its height and width."""
    height, width = images.shape[2:]
    tall, wide = 9 * height // 16, 9 * width // 16
    rows, columns = (torch.randint(0, room + 1, (len(images),), generator=generator).tolist()
                     for room in (height - tall, width - wide))  # fmt: skip
    parts = [image[:, y : y + tall, x : x + wide] for image, y, x in zip(images.float(), rows, columns, strict=True)]
    enlarged = F.interpolate(torch.stack(parts), size=(height, width), mode="bilinear")
    return enlarged.round().to(torch.uint8)


DAMAGES: dict[str, Damage] = {
    "noise": lambda images, rng: torch.randint(0, 256, images.shape, dtype=torch.uint8, generator=rng),
    "salt_and_pepper": _salt_and_pepper,
    "black": lambda images, rng: torch.zeros_like(images),
    "over_exposed": lambda images, rng: (images.int() * 4).clamp(max=255).to(torch.uint8),
    "blurred": lambda images, rng: gaussian_blur(images, kernel_size=[9, 9], sigma=[2.0, 2.0]),
    "inverted": lambda images, rng: 255 - images,
}
_GEOMETRY: dict[str, Damage] = {
    "quarter_turn": lambda images, rng: images.rot90(1, (2, 3)),
    "half_turn": lambda images, rng: images.rot90(2, (2, 3)),
    "upside_down": lambda images, rng: images.flip(2),
    "transposed": lambda images, rng: images.transpose(2, 3),
    "cropped": _crop,
    "shifted": lambda images, rng: images.roll((images.shape[2] // 3, images.shape[3] // 3), (2, 3)),
    "blended": lambda images, rng: ((images.int() + images.roll(1, 0)) // 2).to(torch.uint8),
}
# Kinds of damage in groups: the corruptions of ImageNet-C (Hendrycks and Dietterich, "Benchmarking Neural Network
# Robustness to Common Corruptions and Perturbations", 2019) and others.
GROUPS: dict[str, tuple[str, ...]] = {
    **_CORRUPTIONS,
    "foreign": ("other_data", "digits"),
    "geometry": tuple(name for name in _GEOMETRY if name != "blended"),
    "blended": ("blended",),
    "plain": tuple(DAMAGES),
    "photographs": ("photographs",),
}


def photographs(count: int, shape: torch.Size, seed: int) -> Tensor:
    """Cut squares out of scikit-learn's photographs, a temple and a flower, and scale them to a shape `(C, H, W)`."""
    generator = torch.Generator().manual_seed(seed)
    pictures = [torch.from_numpy(picture.copy()).permute(2, 0, 1).float() for picture in load_sample_images().images]
    found = []
    for number in range(count):
        picture = pictures[number % 2]
        side, *places = torch.rand(3, generator=generator).tolist()
        size = int(100 + 120 * side)
        top, left = (int(place * (room - size)) for place, room in zip(places, picture.shape[1:], strict=True))
        square = picture[None, :, top : top + size, left : left + size]
        small = F.interpolate(square, size=shape[1:], mode="bilinear", antialias=True)[0].round().clamp(0, 255)
        found.append(small.mean(0, keepdim=True).round() if shape[0] == 1 else small)
    return torch.stack(found).to(torch.uint8)


def damage_all(images: Tensor, foreign: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Damage images uint8 `(N, C, H, W)` in every way, or replace them by `foreign` ones; return `N` of each kind."""
    names = [name for group in _CORRUPTIONS.values() for name in group]
    recognizable = min(images.shape[2:]) >= 28  # so that there is something to corrupt
    damaged = {name: corrupt(images, name, seed) for name in names if recognizable}
    generator = torch.Generator().manual_seed(seed)
    damaged |= {name: _foreign(source, images, generator) for name, source in foreign.items()}
    damaged["photographs"] = photographs(len(images), images.shape[1:], seed)
    return damaged | {name: damage(images, generator) for name, damage in (_GEOMETRY | DAMAGES).items()}


def corrupt(images: Tensor, name: str, seed: int) -> Tensor:
    """Corrupt images uint8 `(N, C, H, W)` by one corruption of ImageNet-C, alternating between severities 3 and 5.

    Images smaller than 32x32 are extended by their last rows and columns, and cropped again. Needs the package
    `imagecorruptions-imaug`, which draws from numpy's global generator.
    """
    import imagecorruptions

    height, width = images.shape[2:]
    margins = (0, max(0, _SMALLEST - width), 0, max(0, _SMALLEST - height))
    extended = F.pad(images.float(), margins, mode="replicate").expand(-1, 3, -1, -1)
    arrays = extended.permute(0, 2, 3, 1).to(torch.uint8).contiguous().numpy()
    np.random.seed(seed)
    corrupted = [
        imagecorruptions.corrupt(array, corruption_name=name, severity=severity)
        for array, severity in zip(arrays, cycle((3, 5)), strict=False)
    ]
    result = torch.from_numpy(np.stack(corrupted)).permute(0, 3, 1, 2)[:, :, :height, :width]
    return result.float().mean(1, keepdim=True).to(torch.uint8) if images.shape[1] == 1 else result.contiguous()


def _foreign(source: Tensor, images: Tensor, generator: Generator) -> Tensor:
    """Pick as many images of `source` as there are `images`, resized to their channels and size."""
    picked = source[torch.randperm(len(source), generator=generator)[: len(images)]].float()
    if picked.shape[1] != images.shape[1]:
        picked = picked.mean(1, keepdim=True).expand(-1, images.shape[1], -1, -1)
    fitted = F.interpolate(picked, size=images.shape[2:], mode="bilinear", antialias=True)
    return fitted.round().clamp(0, 255).to(torch.uint8)
