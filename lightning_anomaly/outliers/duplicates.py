"""Find identical images, and near duplicates: the same image scaled, cropped, turned, mirrored or saved again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from itertools import combinations_with_replacement, islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lightning_anomaly._internal.threads import torch_in_threads
from lightning_anomaly.images.source import image_hashes, scaled
from lightning_anomaly.network.features import join_known

_SIDE = 32  # of a look (pixels)
_BLOCK = 2048  # images that are compared with as many others at once
_BLOCKS = 8  # pairs of blocks that are compared before candidates are counted
_PAIRS = 128  # candidates that are aligned at once, so that they stay in the cache
_PARTNERS = 20  # candidates for each image, on average, up to which near duplicates are sought
_MOST = 100_000  # images among which near duplicates are sought, as the time grows with their square
_STEPS = {16: 4, _SIDE: 3}  # that align candidates, at each resolution (pixels)
# What makes a copy was chosen on planted ones: docs/results/duplicates.md.
_ALIKE = 0.5  # smallest product of similarities of candidates, in features and in coarse looks,
_SAME_LOOK = 0.9  # or similarity of their coarse looks
_CERTAIN = 0.95  # smallest correlation of the details of copies,
_COPY = 0.65  # or product of this correlation and the similarity of features
_ALMOST = 0.6  # smallest correlation of images that are almost copies
_INSIDE = 0.6  # share of an image that must lie inside the one it is aligned with


class DuplicateGroup(NamedTuple):
    """An image and its copies.

    Attributes:
        positions: Their positions in the data set, in order: near duplicates are copies of the first one.
        identical: Whether all of them are identical.
        reference: Images of the reference among them: names of files, or else positions.
        correlations: How well the details of each, in `positions` and then in `reference`, agree with the first one's:
            1 if they are identical, at least 0.65 in near duplicates.
    """

    positions: list[int]
    identical: bool
    reference: list[str | int]
    correlations: Sequence[float] = ()


class Fingerprints(NamedTuple):
    """What tells N images from each other.

    Attributes:
        hashes: Hashes of all their values, integers of 64 bits `(N,)`.
        looks: The images in gray, reduced to 32x32 pixels, in half precision `(N, 32, 32)`; None for signals and
            volumes.
        features: A network's features of them, scaled to norm 1, in half precision `(N, D)`; None if there are none.
    """

    hashes: Tensor
    looks: Tensor | None
    features: Tensor | None

    @classmethod
    def of(cls, images: Tensor, features: Tensor | None) -> Fingerprints:
        """Take the fingerprints of images `(N, ...)` and of a network's features of them."""
        hashes = torch.tensor(image_hashes(images), dtype=torch.int64, device="cpu")
        looks = None
        if images.ndim == 4:
            looks = functional.adaptive_avg_pool2d(scaled(images).float().mean(1), _SIDE).cpu()
            looks = looks.clamp(-6e4, 6e4).half()
        if features is not None:
            features = functional.normalize(features.float()).half().nan_to_num_().cpu()
        return cls(hashes, looks, features)

    @staticmethod
    def join(parts: Sequence[Fingerprints]) -> Fingerprints:
        """Join parts; what a part lacks becomes None."""
        hashes, looks, features = zip(*parts, strict=True)
        return Fingerprints(torch.cat(hashes), join_known(looks), join_known(features))


def find_duplicates(
    fingerprints: Fingerprints, images: Tensor | None = None
) -> tuple[list[tuple[list[int], bool, list[float]]], str]:
    """Group images of equal hashes, and images with their near duplicates, which need features and looks.

    The `images` to compare are an index into the fingerprints `(n,)`, by default all. Candidates are alike in features
    and in coarse looks, turned or mirrored. Copies agree in details too, once one is zoomed and shifted. All in a group
    are copies of its first image. Where most groups have as many (almost) copies outside as inside, near duplicates are
    not listed. Images that are identical and have near duplicates are in two groups.

    Returns:
        Groups of places in the index, whether all in them are identical, and the correlation of each with the first:
        those of identical images before the others, each in the order of their first images; and, if near duplicates
        are not listed, a sentence that says so.
    """
    images = torch.arange(len(fingerprints.hashes), device="cpu") if images is None else images
    _, first, kind = np.unique(fingerprints.hashes[images].numpy(), return_index=True, return_inverse=True)
    order = first.argsort()
    first, kind = first[order], order.argsort()[kind]  # kinds of images, in the order of their first ones
    places = np.split(kind.argsort(kind="stable"), np.bincount(kind).cumsum()[:-1])
    identical = [(same.tolist(), True, [1.0] * len(same)) for same in places if len(same) > 1]
    if len(first) > _MOST:
        return identical, f"Near duplicates are sought among up to {_MOST:,} images: there are {len(first):,}."
    if len(first) < 2 or fingerprints.features is None or fingerprints.looks is None:
        return identical, ""
    looks = fingerprints.looks[images[first]]
    coarse = _coarse(looks)
    pairs = _candidates(fingerprints.features, coarse, images[first])
    groups = None if pairs is None else _groups(len(first), *pairs, _correlations(looks, coarse, *pairs))
    if groups is None:
        return identical, "Near duplicates are not listed, as too many images are too alike to tell."
    near = [sorted((place, value) for image, value in group for place in places[image].tolist()) for group in groups]
    return [*identical, *(([place for place, _ in group], False, [value for _, value in group]) for group in near)], ""


def _in_eight_ways(looks: Tensor) -> Tensor:
    """Turn and mirror looks `(N, n, n)`; return `(N, 8, n, n)`."""
    ways = looks, looks.flip(2), looks.mT, looks.rot90(1, (1, 2))
    return torch.stack([*ways, *(way.flip(1, 2) for way in ways)], 1)


def _coarse(looks: Tensor) -> Tensor:
    """Reduce looks to 8x8 pixels, centered by the mean look and by their own mean, and scaled to norm 1."""
    small = functional.adaptive_avg_pool2d(looks.float(), 8)
    small = (small - _in_eight_ways(small.mean(0, keepdim=True)).mean(1)).flatten(1)
    return functional.normalize(small - small.mean(1, keepdim=True)).view(-1, 8, 8)


def _candidates(features: Tensor, coarse: Tensor, images: Tensor) -> tuple[Tensor, Tensor] | None:
    """Find pairs that may be copies, an index `(2, P)`, and the similarity of their features; None if too many are.

    Features are those of all images `(N, D)`, coarse looks those of the n that `images` selects.
    """
    mean = sum(features[part].float().sum(0) for part in torch.split(images, _BLOCK)) / len(images)

    def centered(chosen: Tensor | slice) -> Tensor:
        return features[images[chosen]].float().sub_(mean)

    def near(block: tuple[int, int]) -> tuple[Tensor, Tensor]:
        rows, columns = (slice(start, start + _BLOCK) for start in block)
        ways = _in_eight_ways(coarse[columns]).flatten(2).unbind(1)
        alike = reduce(torch.maximum, (coarse[rows].flatten(1) @ way.T for way in ways))
        row, column = ((alike.triu_(1) if block[0] == block[1] else alike) > _ALIKE).nonzero().unbind(1)
        found = torch.stack([row + rows.start, column + columns.start])
        if 50 * len(row) > alike.numel():
            similar = (functional.normalize(centered(rows)) @ functional.normalize(centered(columns)).T)[row, column]
        else:
            some = torch.split(found, _PAIRS, 1)
            similar = torch.cat([functional.cosine_similarity(centered(a), centered(b)) for a, b in some])
        chosen = (alike[row, column] * similar > _ALIKE) | (alike[row, column] > _SAME_LOOK)
        return found[:, chosen], similar[chosen]

    blocks, parts = combinations_with_replacement(range(0, len(images), _BLOCK), 2), list[tuple[Tensor, Tensor]]()
    while some_blocks := list(islice(blocks, _BLOCKS)):
        parts += torch_in_threads(near, some_blocks)
        if sum(len(similar) for _, similar in parts) > _PARTNERS * len(images):
            return None
    pairs, similar = zip(*parts, strict=True)
    return torch.cat(pairs, 1), torch.cat(similar)


def _correlations(looks: Tensor, coarse: Tensor, pairs: Tensor, similar: Tensor) -> Tensor:
    """Correlate the details of pairs `(2, P)`, the second laid as its coarse look is most alike; return `(P,)`."""
    details, ways = dict[int, Tensor](), dict[int, Tensor]()
    for side in _STEPS:
        small = (functional.adaptive_avg_pool2d(part.float(), side) for part in torch.split(looks, _BLOCK))
        details[side] = torch.cat([_details(part) for part in small])
        ways[side] = _in_eight_ways(torch.arange(side**2, device="cpu").view(1, side, side)).flatten(2)[0]

    def of(part: tuple[Tensor, Tensor]) -> Tensor:
        (left, right), similar = part
        way = (_in_eight_ways(coarse[right]) * coarse[left][:, None]).sum((2, 3)).argmax(1)

        def laid(side: int, chosen: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
            second = details[side][right[chosen]].gather(1, ways[side][way[chosen]])
            return details[side][left[chosen]].float(), second.float()

        first, second = laid(_SIDE)
        found = (first * second).sum(1)
        doubtful = ((similar >= _COPY) & (found < _CERTAIN) & (found * similar < _COPY)).nonzero()[:, 0]
        warp = found.new_zeros(len(doubtful), 4)
        for side, steps in _STEPS.items():
            aligned, warp = _aligned(*laid(side, doubtful), warp, steps)
            near = aligned >= _ALMOST
            aligned, warp, doubtful = aligned[near], warp[near], doubtful[near]
        found[doubtful] = found[doubtful].maximum(aligned)
        return found

    parts = zip(torch.split(pairs, _PAIRS, 1), torch.split(similar, _PAIRS), strict=True)
    return torch.cat([*torch_in_threads(of, parts)]).clamp(max=1)  # rounding


def _details(looks: Tensor) -> Tensor:
    """Subtract the mean around each pixel, center, and scale to norm 1; return `(N, pixels)` in half precision."""
    details = (looks - functional.avg_pool2d(looks[:, None], 7, 1, 3, count_include_pad=False)[:, 0]).flatten(1)
    return functional.normalize(details - details.mean(1, keepdim=True)).half()


def _aligned(moved: Tensor, fixed: Tensor, warp: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Align details `(P, pixels)` with others in Gauss-Newton steps; return the best correlations and their warps.

    A warp `(P, 4)` is the zoom, less 1, and the shift in both directions.
    """
    side = math.isqrt(moved.shape[1])
    images = moved.view(-1, side, side)
    down, right = torch.gradient(images, spacing=2 / side, dim=(1, 2))
    layers = torch.stack([images, right, down], 1)
    x = ((torch.arange(side, device="cpu") + 0.5) * 2 / side - 1).expand(side, side)
    place = torch.stack([x, x.T], -1)
    best, best_warp = torch.full_like(warp[:, 0], -1), warp
    for step in range(steps + 1):
        grid = (1 + warp[:, None, None, :2]) * place + warp[:, None, None, 2:]
        inside = (grid.abs().amax(-1) <= 1 - 1 / side).float().flatten(1)
        count = inside.sum(1, keepdim=True).clamp(min=1)
        values, right, down = functional.grid_sample(layers, grid, align_corners=False).flatten(2).unbind(1)
        centered = ((v - (v * inside).sum(1, keepdim=True) / count) * inside for v in (values, fixed))
        here, there = (v / (v.norm(dim=1, keepdim=True) + 1e-3) for v in centered)
        found = (here * there).sum(1)
        better = (found > best) & (count[:, 0] > _INSIDE * side**2)
        best, best_warp = torch.where(better, found, best), torch.where(better[:, None], warp, best_warp)
        if step < steps:
            slopes = torch.stack([right * x.flatten(), down * x.T.flatten(), right, down], 1)
            normal = slopes @ slopes.mT
            normal = normal + (0.01 * normal.diagonal(dim1=1, dim2=2) + 1e-4).diag_embed()
            warp = warp + torch.linalg.solve(normal, (slopes @ (there - here)[..., None])[..., 0]).clamp(-0.2, 0.2)
    return best, best_warp


def _groups(count: int, pairs: Tensor, similar: Tensor, correlation: Tensor) -> list[list[tuple[int, float]]] | None:
    """Group each image that is no copy of an earlier one with its copies; None if they are too alike to tell."""
    copies = (correlation >= _CERTAIN) | (correlation * similar >= _COPY)
    ends, values = pairs[:, copies].numpy(), correlation[copies].numpy()
    order = np.lexsort(ends[::-1])
    (left, right), values = ends[:, order], values[order]
    starts = np.flatnonzero(np.diff(left, prepend=-1))
    group, groups = np.full(count, -1), list[list[tuple[int, float]]]()
    parts = zip(left[starts], np.split(right, starts[1:]), np.split(values, starts[1:]), strict=False)
    for image, others, found in parts:
        free = group[others] < 0
        if group[image] < 0 and free.any():
            group[[image, *others[free]]] = len(groups)
            groups.append([(int(image), 1.0), *zip(others[free].tolist(), found[free].tolist(), strict=True)])
    known = pairs[:, copies | (correlation >= _ALMOST)].numpy()
    inside, other = np.concatenate([known, known[::-1]], 1)
    outside = (group[inside] >= 0) & (group[inside] != group[other])
    outsiders = np.unique(group[inside][outside] * count + other[outside]) // count
    numbers = np.bincount(outsiders, minlength=len(groups))
    doubtful = sum(number >= len(members) - 1 for number, members in zip(numbers, groups, strict=True))
    return None if 2 * doubtful > len(groups) else groups
