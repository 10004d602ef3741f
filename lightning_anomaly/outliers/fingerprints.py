"""What tells images from each other: a hash of all values, and small gray pictures, also of what is inside a frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lightning_anomaly.images.image_source import image_hashes, scaled
from lightning_anomaly.network.features import join_known_tensors

SIDE = 32  # of a look (pixels)
_GRAY = 0.299, 0.587, 0.114  # weights of red, green and blue (ITU-R BT.601), as in other software that saves gray
_ROWS = 256  # images described at once
_PLAIN = 0.02  # range of the shades in a frame of one color, relative to that in its image


class Fingerprints(NamedTuple):
    """What tells N images from each other."""

    hashes: Tensor  # of all their values, integers of 64 bits `(N,)`
    looks: Tensor | None  # in gray and half precision, reduced to `(N, 32, 32)`; None for signals and volumes

    @classmethod
    def of(cls, images: Tensor) -> Fingerprints:
        """Take the fingerprints of images `(N, ...)`."""
        hashes = torch.tensor(image_hashes(images), dtype=torch.int64, device="cpu")
        if images.ndim != 4:
            return cls(hashes, None)
        looks = functional.adaptive_avg_pool2d(scaled(images).float(), SIDE).cpu()
        looks = torch.einsum("nchw,c->nhw", looks, torch.tensor(_GRAY)) if looks.shape[1] == 3 else looks.mean(1)
        return cls(hashes, looks.clamp(-6e4, 6e4).half())

    @staticmethod
    def join(parts: Sequence[Fingerprints]) -> Fingerprints:
        """Join parts; grays that a part lacks become None."""
        hashes, looks = zip(*parts, strict=True)
        return Fingerprints(torch.cat(hashes), join_known_tensors(looks))


def in_eight_ways(looks: Tensor) -> Tensor:
    """Turn and mirror grays `(N, n, n)`; return `(N, 8, n, n)`."""
    ways = looks, looks.flip(2), looks.mT, looks.rot90(1, (1, 2))
    return torch.stack([*ways, *(way.flip(1, 2) for way in ways)], 1)


def inside_frames(looks: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return which of the chosen grays `(n,)` have a frame of one color `(F,)`, and boxes `(n + F, 4)`.

    Boxes are center and size in both directions, relative to the image: of whole images, then inside the frames.
    """
    boxes = list[Tensor]()
    for images in torch.split(chosen, _ROWS):
        seen = looks[images].float()
        edge = torch.cat([seen[:, [0, -1]], seen.mT[:, [0, -1]]], 1).flatten(1)
        low, high = edge.aminmax(dim=1)
        most = _PLAIN * (seen.amax((1, 2)) - seen.amin((1, 2)))
        other = (seen - edge.mean(1)[:, None, None]).abs() > most[:, None, None]
        lines = torch.stack([other.any(1), other.any(2)], 1).int()
        start, end = lines.argmax(2) + 1, SIDE - 1 - lines.flip(2).argmax(2)  # without lines that are partly frame
        inside = torch.cat([(start + end) / SIDE - 1, (end - start) / SIDE], 1)
        boxes.append(
            inside.where((high - low <= most)[:, None] & (inside[:, 2:] >= 0.5).all(1, keepdim=True), torch.nan)
        )
    joined = torch.cat(boxes)
    framed = joined[:, 0].isfinite().nonzero()[:, 0]
    whole = torch.tensor([0.0, 0.0, 1.0, 1.0], device="cpu").expand(len(chosen), -1)
    return framed, torch.cat([whole, joined[framed]])


def _shown(looks: Tensor, boxes: Tensor) -> Tensor:
    """Return what grays `(n, 32, 32)` show in boxes `(n, 4)`, see `inside_frames`."""
    looks, inside = looks.float(), boxes[:, 2] < 1
    if inside.any():
        warp = torch.cat([boxes[inside, 2:].diag_embed(), boxes[inside, :2, None]], 2)
        grid = functional.affine_grid(warp, [len(warp), 1, SIDE, SIDE], align_corners=False)
        looks[inside] = functional.grid_sample(looks[inside, None], grid, align_corners=False)[:, 0]
    return looks


def coarse_looks(looks: Tensor, chosen: Tensor, boxes: Tensor) -> Tensor:
    """Reduce chosen grays `(N,)` to 8x8 pixels, less their mean and their own, scaled to norm 1."""
    small = torch.empty(len(chosen), 8, 8, device="cpu")
    for part, images, box in zip(*(torch.split(tensor, _ROWS) for tensor in (small, chosen, boxes)), strict=True):
        part[:] = functional.adaptive_avg_pool2d(_shown(looks[images], box), 8)
    small -= in_eight_ways(small.mean(0, keepdim=True)).mean(1)
    small -= small.mean((1, 2), keepdim=True)
    return functional.normalize(small.flatten(1)).view(-1, 8, 8)


def look_details(looks: Tensor, chosen: Tensor, boxes: Tensor) -> Tensor:
    """Return details `(N, 32, 32)` of chosen grays `(N,)`, in half precision: means of 3x3 pixels less those of 9x9."""
    details = torch.empty(len(chosen), SIDE, SIDE, dtype=torch.half, device="cpu")
    for part, images, box in zip(*(torch.split(tensor, _ROWS) for tensor in (details, chosen, boxes)), strict=True):
        seen = _shown(looks[images], box)
        near, far = (functional.avg_pool2d(seen, n, 1, n // 2, count_include_pad=False) for n in (3, 9))
        part[:] = centered(near - far)
    return details


def centered(details: Tensor) -> Tensor:
    """Center details `(N, n, n)` and scale them to norm 1."""
    details = details - details.mean((1, 2), keepdim=True)
    return functional.normalize(details.flatten(1)).view_as(details)
