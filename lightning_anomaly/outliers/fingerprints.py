"""What tells images from each other: a hash of all values, and small gray pictures, also of what is inside a frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lightning_anomaly.images.image_source import image_hashes, scaled
from lightning_anomaly.network.features import join_known_tensors

SIDE = 32  # of a gray picture (pixels)
_GRAY = 0.299, 0.587, 0.114  # weights of red, green and blue (ITU-R BT.601), as in other software that saves gray
_ROWS = 256  # images described at once
_PLAIN = 0.02  # range of the shades in a frame of one color, relative to that in its image


class Fingerprints(NamedTuple):
    """What tells N images from each other."""

    hashes: Tensor  # of all their values, integers of 64 bits `(N,)`
    grays: Tensor | None  # in gray and half precision, reduced to `(N, 32, 32)`; None for signals and volumes

    @classmethod
    def of(cls, images: Tensor) -> Fingerprints:
        """Take the fingerprints of images `(N, ...)`."""
        hashes = torch.tensor(image_hashes(images), dtype=torch.int64, device="cpu")
        if images.ndim != 4:
            return cls(hashes, None)
        grays = functional.adaptive_avg_pool2d(scaled(images).float(), SIDE).cpu()
        grays = torch.einsum("nchw,c->nhw", grays, torch.tensor(_GRAY)) if grays.shape[1] == 3 else grays.mean(1)
        return cls(hashes, grays.clamp(-6e4, 6e4).half())

    @staticmethod
    def join(parts: Sequence[Fingerprints]) -> Fingerprints:
        """Join parts; grays that a part lacks become None."""
        hashes, grays = zip(*parts, strict=True)
        return Fingerprints(torch.cat(hashes), join_known_tensors(grays))


def in_eight_ways(grays: Tensor) -> Tensor:
    """Turn and mirror grays `(N, n, n)`; return `(N, 8, n, n)`."""
    ways = grays, grays.flip(2), grays.mT, grays.rot90(1, (1, 2))
    return torch.stack([*ways, *(way.flip(1, 2) for way in ways)], 1)


def inside_frames(grays: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return which of the chosen grays `(n,)` have a frame of one color `(F,)`, and boxes `(n + F, 4)`.

    Boxes are center and size in both directions, relative to the image: of whole images, then inside the frames.
    """
    boxes = list[Tensor]()
    for images in torch.split(chosen, _ROWS):
        seen = grays[images].float()
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


def coarse_and_details(grays: Tensor, chosen: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Reduce what N chosen grays show in boxes to `(N, 8, 8)` of norm 1, and to details `(N, 32, 32)`.

    Details are means of 3x3 pixels less those of 9x9, in half precision.
    """
    coarse = torch.empty(len(chosen), 8, 8, device="cpu")
    details = torch.empty(len(chosen), SIDE, SIDE, dtype=torch.half, device="cpu")
    blocks = zip(*(torch.split(tensor, _ROWS) for tensor in (coarse, details, chosen, boxes)), strict=True)
    for small, sharp, images, box in blocks:
        shown, inside = grays[images].float(), box[:, 2] < 1
        if inside.any():
            warp = torch.cat([box[inside, 2:].diag_embed(), box[inside, :2, None]], 2)
            grid = functional.affine_grid(warp, [len(warp), 1, SIDE, SIDE], align_corners=False)
            shown[inside] = functional.grid_sample(shown[inside, None], grid, align_corners=False)[:, 0]
        small[:] = functional.adaptive_avg_pool2d(shown, 8)
        near, far = (functional.avg_pool2d(shown, n, 1, n // 2, count_include_pad=False) for n in (3, 9))
        sharp[:] = centered(near - far)
    coarse -= in_eight_ways(coarse.mean(0, keepdim=True)).mean(1)
    return centered(coarse), details


def centered(details: Tensor) -> Tensor:
    """Center details `(N, n, n)` and scale them to norm 1."""
    details = details - details.mean((1, 2), keepdim=True)
    return functional.normalize(details.flatten(1)).view_as(details)
