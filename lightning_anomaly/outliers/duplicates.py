"""Find identical images, and near duplicates: the same image scaled, cropped, turned, mirrored or saved again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lightning_anomaly._internal.threads import torch_in_threads
from lightning_anomaly.images.image_source import image_hashes, scaled
from lightning_anomaly.network.features import join_known_tensors

SIDE = 32  # of a look (pixels)
_GRAY = 0.299, 0.587, 0.114  # weights of red, green and blue (ITU-R BT.601), as in other software that saves gray
_ROWS, _BLOCK = 256, 1024  # images described at once, or compared with so many others
_PAIRS = 128  # candidates that are aligned at once, so that they stay in the cache
_EXACT = 30_000  # images up to which each is compared with all others
_SPACING, _CELLS = 128, 9  # one image of so many is the center of a cell, and each is in so many cells
_CANDIDATES = 16  # of each image, which may have one copy less
_STEPS = {16: 4, SIDE: 3}  # that align candidates, at each resolution (pixels)
_INSIDE = 0.6  # share of both images that must be in the part that is aligned
# What makes a copy was chosen on planted ones: docs/results/duplicates.md.
_ALIKE = 0.6  # smallest similarity of candidates, in coarse looks
_NEXT = 0.5  # smallest correlation of details that counts: the next image is taken to have it
_RATIO = 0.25  # largest ratio of the distance of a copy to that of the next image, where distances are 1 - correlation
_ROUNDING = 2e-5  # of a correlation


class DuplicateGroup(NamedTuple):
    """An image and its copies.

    Attributes:
        positions: Their positions in the data set, in order: near duplicates are copies of the first one.
        identical: Whether all of them are identical.
        reference: Images of the reference among them: names of files, or else positions.
        correlations: How well the details of each, in `positions` and then in `reference`, agree with the first one's:
            1 if they are identical, at least 0.875 in near duplicates.
    """

    positions: list[int]
    identical: bool
    reference: list[str | int]
    correlations: Sequence[float] = ()


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
        """Join parts; looks that a part lacks become None."""
        hashes, looks = zip(*parts, strict=True)
        return Fingerprints(torch.cat(hashes), join_known_tensors(looks))


def find_duplicates(
    fingerprints: Fingerprints, images: Tensor | None = None
) -> tuple[list[tuple[list[int], bool, list[float]]], str]:
    """Group images of equal hashes, and images with their near duplicates, which need looks.

    The `images` to compare are an index into the fingerprints `(n,)`, by default all. Candidates are alike in coarse
    looks, turned or mirrored; then their details are compared, once one is zoomed and shifted. A copy is far closer to
    its original than the next image that is no copy is (Lowe, "Distinctive image features from scale-invariant
    keypoints", 2004), seen from both. All in a group are copies of its first image. Images that are identical and have
    near duplicates are in two groups.

    Returns:
        Groups of places in the index, whether all in them are identical, and the correlation of each with the first:
        those of identical images before the others, each in the order of their first images; and, if near duplicates
        may be missing because most images are too alike to tell, a sentence that says so.
    """
    images = torch.arange(len(fingerprints.hashes), device="cpu") if images is None else images
    _, first, kind = np.unique(fingerprints.hashes[images].numpy(), return_index=True, return_inverse=True)
    order = first.argsort()
    first, kind = first[order], order.argsort()[kind]  # kinds of images, in the order of their first ones
    places = np.split(kind.argsort(kind="stable"), np.bincount(kind).cumsum()[:-1])
    identical = [(same.tolist(), True, [1.0] * len(same)) for same in places if len(same) > 1]
    if len(first) < 2 or fingerprints.looks is None:
        return identical, ""
    chosen = images[first]
    coarse = _coarse_looks(fingerprints.looks, chosen)
    pairs = _duplicate_candidates(coarse)
    correlation = _correlations(_look_details(fingerprints.looks, chosen), coarse, pairs)
    close = correlation > _NEXT
    groups, undecided = _copy_groups(len(first), pairs[:, close].numpy(), correlation[close].numpy())
    near = [sorted((place, value) for image, value in group for place in places[image].tolist()) for group in groups]
    found = [([place for place, _ in group], False, [value for _, value in group]) for group in near]
    many = 2 * undecided > len(first)
    problem = f"Near duplicates may be missing: {undecided:,} of {len(first):,} images are too alike to tell."
    return [*identical, *found], problem if many else ""


def _in_eight_ways(looks: Tensor) -> Tensor:
    """Turn and mirror looks `(N, n, n)`; return `(N, 8, n, n)`."""
    ways = looks, looks.flip(2), looks.mT, looks.rot90(1, (1, 2))
    return torch.stack([*ways, *(way.flip(1, 2) for way in ways)], 1)


def _coarse_looks(looks: Tensor, chosen: Tensor) -> Tensor:
    """Reduce the chosen looks `(N,)` to 8x8 pixels, center them by the mean look and their own, and scale to norm 1."""
    small = torch.empty(len(chosen), 8, 8, device="cpu")
    for part, images in zip(torch.split(small, _ROWS), torch.split(chosen, _ROWS), strict=True):
        part[:] = functional.adaptive_avg_pool2d(looks[images].float(), 8)
    small -= _in_eight_ways(small.mean(0, keepdim=True)).mean(1)
    small -= small.mean((1, 2), keepdim=True)
    return functional.normalize(small.flatten(1)).view(-1, 8, 8)


def _similarity(coarse: Tensor, others: Tensor) -> Tensor:
    """Return how alike coarse looks `(n, 8, 8)` and others `(m, 8, 8)` are, turned or mirrored as fits, `(n, m)`."""
    ways = _in_eight_ways(others).flatten(2).unbind(1)
    return reduce(torch.maximum, (coarse.flatten(1) @ way.T for way in ways))


def _candidate_cells(coarse: Tensor) -> Sequence[Tensor]:
    """Return the cells in which candidates are sought: all images `(N, 8, 8)`, or those that are like the same images.

    Many images are each in the cells of the few centers that they are most like; centers are evenly spaced images.
    """
    if len(coarse) <= _EXACT:
        return [torch.arange(len(coarse), device="cpu")]
    centers = coarse[::_SPACING]
    near = [*torch_in_threads(lambda rows: _similarity(rows, centers).topk(_CELLS).indices, torch.split(coarse, _ROWS))]
    places = torch.cat(near).flatten()
    return torch.split(places.argsort(stable=True) // _CELLS, places.bincount(minlength=len(centers)).tolist())


def _duplicate_candidates(coarse: Tensor) -> Tensor:
    """Pair each image `(N, 8, 8)` with those that are most alike, turned or mirrored; return pairs `(2, P)`."""

    def nearest(block: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        rows, cell = block
        found = list[tuple[Tensor, Tensor]]()
        for columns in torch.split(cell, _BLOCK):
            alike = _similarity(coarse[rows], coarse[columns]).masked_fill_(rows[:, None] == columns, -1)
            near = alike.topk(min(_CANDIDATES, len(columns)))
            found.append((near.values, columns[near.indices]))
        similar, others = (torch.cat(part, 1) for part in zip(*found, strict=True))
        similar, place = similar.topk(min(_CANDIDATES, similar.shape[1]))
        return rows, similar, others.gather(1, place)

    best = coarse.new_full((len(coarse), _CANDIDATES), _ALIKE)
    candidates = torch.full(best.shape, -1, device="cpu")
    blocks = [(rows, cell) for cell in _candidate_cells(coarse) for rows in torch.split(cell, _ROWS)]
    for rows, similar, others in torch_in_threads(nearest, blocks):
        similar, (others, order) = torch.cat([best[rows], similar], 1), torch.cat([candidates[rows], others], 1).sort(1)
        similar = similar.gather(1, order)
        similar[:, 1:][others[:, 1:] == others[:, :-1]] = -1  # as two images may share several cells
        best[rows], place = similar.topk(_CANDIDATES)
        candidates[rows] = others.gather(1, place)
    images = torch.arange(len(coarse), device="cpu")[:, None]
    numbers = torch.minimum(images, candidates).mul_(len(coarse)).add_(torch.maximum(images, candidates))
    pairs = np.unique(numbers[best > _ALIKE].numpy())
    return torch.from_numpy(np.stack(np.divmod(pairs, len(coarse))))


def _look_details(looks: Tensor, chosen: Tensor) -> Tensor:
    """Subtract the mean of 9x9 pixels of the chosen looks `(N,)` from that of 3x3; return `(N, 32, 32)`.

    Details are centered and scaled to norm 1, in half precision.
    """
    details = torch.empty(len(chosen), SIDE, SIDE, dtype=torch.half, device="cpu")
    for part, images in zip(torch.split(details, _ROWS), torch.split(chosen, _ROWS), strict=True):
        seen = looks[images].float()
        near, far = (functional.avg_pool2d(seen, n, 1, n // 2, count_include_pad=False) for n in (3, 9))
        part[:] = _centered(near - far)
    return details


def _centered(details: Tensor) -> Tensor:
    """Center details `(N, n, n)` and scale them to norm 1."""
    details = details - details.mean((1, 2), keepdim=True)
    return functional.normalize(details.flatten(1)).view_as(details)


def _correlations(details: Tensor, coarse: Tensor, pairs: Tensor) -> Tensor:
    """Correlate the details of pairs `(2, P)`, the second laid as its coarse look is most alike; return `(P,)`."""
    ways = _in_eight_ways(torch.arange(SIDE**2, device="cpu").view(1, SIDE, SIDE)).flatten(2)[0]

    def of(part: Tensor) -> Tensor:
        left, right = part
        way = (_in_eight_ways(coarse[right]) * coarse[left][:, None]).sum((2, 3)).argmax(1)
        first = details[left].float()
        second = details[right].flatten(1).gather(1, ways[way]).view_as(first).float()
        found, warp = (first * second).sum((1, 2)), coarse.new_zeros(len(left), 4)
        chosen = torch.arange(len(left), device="cpu")
        for side, steps in _STEPS.items():
            moved, fixed = (_centered(functional.adaptive_avg_pool2d(d[chosen], side)) for d in (first, second))
            aligned, warp = _align(moved, fixed, warp, steps)
            near = aligned >= _NEXT
            aligned, warp, chosen = aligned[near], warp[near], chosen[near]
        found[chosen] = found[chosen].maximum(aligned)
        return found

    return torch.cat([*torch_in_threads(of, torch.split(pairs, _PAIRS, 1))]).clamp(max=1)  # rounding


def _align(moved: Tensor, fixed: Tensor, warp: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Align details `(P, n, n)` with others in Gauss-Newton steps; return the best correlations and their warps.

    A warp `(P, 4)` is the zoom, less 1, and the shift in both directions.
    """
    side = moved.shape[2]
    down, right = torch.gradient(moved, spacing=2 / side, dim=(1, 2))
    layers = torch.stack([moved, right, down], 1)
    x = ((torch.arange(side, device="cpu") + 0.5) * 2 / side - 1).expand(side, side)
    place = torch.stack([x, x.T], -1)
    best, best_warp = torch.full_like(warp[:, 0], -1), warp
    for step in range(steps + 1):
        grid = (1 + warp[:, None, None, :2]) * place + warp[:, None, None, 2:]
        inside = (grid.abs().amax(-1) <= 1 - 1 / side).float().flatten(1)
        count = inside.sum(1, keepdim=True).clamp(min=1)
        values, right, down = functional.grid_sample(layers, grid, align_corners=False).flatten(2).unbind(1)
        centered = ((v - (v * inside).sum(1, keepdim=True) / count) * inside for v in (values, fixed.flatten(1)))
        here, there = (v / (v.norm(dim=1, keepdim=True) + 1e-3) for v in centered)
        found = (here * there).sum(1)
        share = torch.minimum(count[:, 0] / side**2, (1 + warp[:, :2]).prod(1))
        better = (found > best) & (share > _INSIDE)
        best, best_warp = torch.where(better, found, best), torch.where(better[:, None], warp, best_warp)
        if step < steps:
            slopes = torch.stack([right * x.flatten(), down * x.T.flatten(), right, down], 1)
            normal = slopes @ slopes.mT
            normal = normal + (0.01 * normal.diagonal(dim1=1, dim2=2) + 1e-4).diag_embed()
            warp = warp + torch.linalg.solve(normal, (slopes @ (there - here)[..., None])[..., 0]).clamp(-0.2, 0.2)
    return best, best_warp


def _copy_groups(count: int, pairs: np.ndarray, correlation: np.ndarray) -> tuple[list[list[tuple[int, float]]], int]:
    """Group each image that is no copy of an earlier one with its copies, and count images that are too alike to tell.

    Pairs are `(2, P)`, their correlations above `_NEXT` `(P,)`. Copies of an image are its nearest ones up to the last
    that is far closer than the next.
    """
    (one, other), distance = np.concatenate([pairs, pairs[::-1]], 1), np.tile(1 - correlation, 2)
    order = np.lexsort((distance, one))
    one, other, distance = one[order], other[order], distance[order]
    rank = np.arange(len(one)) - np.searchsorted(one, one)
    nearest, known = np.full((count, _CANDIDATES), 1 - _NEXT), rank < _CANDIDATES
    nearest[one[known], rank[known]] = distance[known]
    far_closer = nearest[:, :-1] + _ROUNDING < _RATIO * nearest[:, 1:]
    copies = (far_closer * np.arange(1, _CANDIDATES)).max(1)
    close = rank < copies[one]
    one, other, distance = one[close], other[close], distance[close]
    both = np.isin(other * count + one, one * count + other)
    one, other, values = one[both], other[both], 1 - distance[both]
    starts = np.flatnonzero(np.diff(one, prepend=-1))
    taken, groups = np.zeros(count, dtype=bool), list[list[tuple[int, float]]]()
    parts = zip(one[starts], np.split(other, starts[1:]), np.split(values, starts[1:]), strict=False)
    for image, others, found in parts:
        free = ~taken[others]
        if not taken[image] and free.any():
            taken[[image, *others[free]]] = True
            groups.append([(int(image), 1.0), *zip(others[free].tolist(), found[free].tolist(), strict=True)])
    return groups, int(((nearest[:, 0] < _RATIO * (1 - _NEXT)) & ~taken).sum())
