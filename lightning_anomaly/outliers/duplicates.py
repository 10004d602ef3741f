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
from lightning_anomaly.outliers.fingerprints import (
    SIDE,
    Fingerprints,
    centered,
    coarse_and_details,
    in_eight_ways,
    inside_frames,
)

_ROWS, _BLOCK = 256, 1024  # images compared at once with so many others
_PAIRS = 128  # candidates that are aligned at once, so that they stay in the cache
_EXACT = 30_000  # images up to which each is compared with all others
_SPACING, _CELLS = 128, 9  # one image of so many is the center of a cell, and each is in so many cells
_CANDIDATES = 16  # of each image; twice as many for those whose candidates are all copies, and again
_MORE = 2**17  # of these at once, at most
_STEPS = {16: 4, SIDE: 3}  # that align candidates, at each resolution (pixels)
_INSIDE = 0.6  # share of both images that must be in the part that is aligned
# What makes a copy was chosen on planted ones: docs/results/duplicates.md.
_ALIKE = 0.6  # smallest similarity of candidates, in coarse grays
_NEXT = 0.5  # smallest correlation of details that counts: the next image is taken to have it
_RATIO = 0.25  # largest ratio of the distance of a copy to that of the next image, where distances are 1 - correlation
_ROUNDING = 2e-5  # of a correlation


class DuplicateGroup(NamedTuple):
    """An image and its copies."""

    positions: list[int]  # in the data set, in order: near duplicates are copies of the first one
    identical: bool  # whether all of them are
    reference: list[str | int]  # images of the reference among them: names of files, or else positions
    correlations: Sequence[float] = ()  # of the details of all these with the first one's, at least 0.875


def find_duplicates(
    fingerprints: Fingerprints, images: Tensor | None = None
) -> tuple[list[tuple[list[int], bool, list[float]]], str]:
    """Group images of equal hashes, and images with their near duplicates, which need grays.

    The `images` `(n,)` are an index into the fingerprints, by default all. A copy is far closer to its original than
    the next image that is no copy (Lowe, "Distinctive image features from scale-invariant keypoints", 2004), seen from
    both. Return groups of places in the index, whether all in them are identical, and correlations with the first, of
    which all are copies; and a sentence if near duplicates may be missing. Identical images with near duplicates are in
    two groups.
    """
    images = torch.arange(len(fingerprints.hashes), device="cpu") if images is None else images
    _, first, kind = np.unique(fingerprints.hashes[images].numpy(), return_index=True, return_inverse=True)
    order = first.argsort()
    first, kind = first[order], order.argsort()[kind]  # kinds of images, in the order of their first ones
    places = np.split(kind.argsort(kind="stable"), np.bincount(kind).cumsum()[:-1])
    identical = [(same.tolist(), True, [1.0] * len(same)) for same in places if len(same) > 1]
    if len(first) < 2 or fingerprints.grays is None:
        return identical, ""
    framed, boxes = inside_frames(fingerprints.grays, images[first])
    shown = torch.cat([torch.arange(len(first), device="cpu"), framed])  # whole, and inside a frame
    views = coarse_and_details(fingerprints.grays, images[first][shown], boxes)
    pairs, correlation, crowded = _close_pairs(*views)
    groups, undecided = _copy_groups(shown.numpy(), pairs, correlation, crowded)
    near = [sorted((place, value) for image, value in group for place in places[image].tolist()) for group in groups]
    copies = [([place for place, _ in group], False, [value for _, value in group]) for group in near]
    many = 2 * undecided > len(first) or crowded.any()
    problem = f"Near duplicates may be missing: {undecided:,} of {len(first):,} images are too alike to tell."
    return [*identical, *copies], problem if many else ""


def _similarity(coarse: Tensor, others: Tensor) -> Tensor:
    """Return how alike coarse grays `(n, 8, 8)` and others `(m, 8, 8)` are, turned or mirrored as fits, `(n, m)`."""
    ways = in_eight_ways(others).flatten(2).unbind(1)
    return reduce(torch.maximum, (coarse.flatten(1) @ way.T for way in ways))


def _candidate_cells(coarse: Tensor) -> Sequence[Tensor]:
    """Return the cells in which candidates are sought: all images `(N, 8, 8)`, or those like the same ones."""
    if len(coarse) <= _EXACT:
        return [torch.arange(len(coarse), device="cpu")]
    centers = coarse[::_SPACING]
    near = [*torch_in_threads(lambda rows: _similarity(rows, centers).topk(_CELLS).indices, torch.split(coarse, _ROWS))]
    places = torch.cat(near).flatten()
    return torch.split(places.argsort(stable=True) // _CELLS, places.bincount(minlength=len(centers)).tolist())


def _close_pairs(coarse: Tensor, details: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find pairs `(2, P)` of N images that are alike, their correlations `(P,)`, and crowded images `(N,)`.

    Those have so many copies that the next image, which is none, is not among the pairs.
    """
    count, cells, numbers = _CANDIDATES, _candidate_cells(coarse), np.zeros(0, dtype=np.int64)
    crowded, correlation = torch.ones(len(coarse), dtype=torch.bool, device="cpu"), np.zeros(0, dtype=np.float32)
    while crowded.any():
        new = np.setdiff1d(_duplicate_candidates(coarse, cells, crowded, count), numbers, assume_unique=True)
        numbers = np.concatenate([numbers, new])
        known = _correlations(details, coarse, torch.from_numpy(np.stack(np.divmod(new, len(coarse)))))
        correlation = np.concatenate([correlation, known.numpy()])
        pairs = np.stack(np.divmod(numbers, len(coarse)))
        copies = np.bincount(pairs[:, 1 - correlation < _RATIO * (1 - _NEXT)].flatten(), minlength=len(coarse))
        crowded, count = torch.from_numpy(copies >= count), 2 * count
        if 2 * crowded.sum() > len(coarse) or count * crowded.sum() > _MORE:
            break
    close = correlation > _NEXT
    return pairs[:, close], correlation[close], crowded.numpy()


def _duplicate_candidates(coarse: Tensor, cells: Sequence[Tensor], chosen: Tensor, count: int) -> np.ndarray:
    """Pair each of the chosen images `(N,)` with the `count` most alike: N times the first plus the second place."""

    def nearest(block: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        rows, cell = block
        best = list[tuple[Tensor, Tensor]]()
        for columns in torch.split(cell, _BLOCK):
            alike = _similarity(coarse[rows], coarse[columns]).masked_fill_(rows[:, None] == columns, -1)
            near = alike.topk(min(count, len(columns)))
            best.append((near.values, columns[near.indices]))
        similar, others = (torch.cat(part, 1) for part in zip(*best, strict=True))
        similar, place = similar.topk(min(count, similar.shape[1]))
        return rows, similar, others.gather(1, place)

    images, places = chosen.nonzero(), chosen.cumsum(0) - 1
    best = coarse.new_full((len(images), count), _ALIKE)
    candidates = torch.full(best.shape, -1, device="cpu")
    blocks = [(rows, cell) for cell in cells for rows in torch.split(cell[chosen[cell]], _ROWS)]
    for rows, similar, others in torch_in_threads(nearest, blocks):
        rows = places[rows]
        similar, (others, order) = torch.cat([best[rows], similar], 1), torch.cat([candidates[rows], others], 1).sort(1)
        similar = similar.gather(1, order)
        similar[:, 1:][others[:, 1:] == others[:, :-1]] = -1  # as two images may share several cells
        best[rows], place = similar.topk(count)
        candidates[rows] = others.gather(1, place)
    numbers = torch.minimum(images, candidates).mul_(len(coarse)).add_(torch.maximum(images, candidates))
    return np.unique(numbers[best > _ALIKE].numpy())


def _correlations(details: Tensor, coarse: Tensor, pairs: Tensor) -> Tensor:
    """Correlate the details of pairs `(2, P)`, the second laid as its coarse gray is most alike; return `(P,)`."""
    ways = in_eight_ways(torch.arange(SIDE**2, device="cpu").view(1, SIDE, SIDE)).flatten(2)[0]

    def of(part: Tensor) -> Tensor:
        left, right = part
        way = (in_eight_ways(coarse[right]) * coarse[left][:, None]).sum((2, 3)).argmax(1)
        first = details[left].float()
        second = details[right].flatten(1).gather(1, ways[way]).view_as(first).float()
        correlation, warp = (first * second).sum((1, 2)), coarse.new_zeros(len(left), 4)
        chosen = torch.arange(len(left), device="cpu")
        for side, steps in _STEPS.items():
            moved, fixed = (centered(functional.adaptive_avg_pool2d(d[chosen], side)) for d in (first, second))
            aligned, warp = _align(moved, fixed, warp, steps)
            near = aligned >= _NEXT
            aligned, warp, chosen = aligned[near], warp[near], chosen[near]
        correlation[chosen] = correlation[chosen].maximum(aligned)
        return correlation

    return torch.cat([*torch_in_threads(of, torch.split(pairs, _PAIRS, 1))]).clamp(max=1)  # rounding


def _align(moved: Tensor, fixed: Tensor, warp: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Align details `(P, n, n)` with others in Gauss-Newton steps; return the best correlations and warps `(P, 4)`.

    A warp is the zoom, less 1, and the shift in both directions.
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
        correlation = (here * there).sum(1)
        share = torch.minimum(count[:, 0] / side**2, (1 + warp[:, :2]).prod(1))
        better = (correlation > best) & (share > _INSIDE)
        best, best_warp = torch.where(better, correlation, best), torch.where(better[:, None], warp, best_warp)
        if step < steps:
            slopes = torch.stack([right * x.flatten(), down * x.T.flatten(), right, down], 1)
            normal = slopes @ slopes.mT
            normal = normal + (0.01 * normal.diagonal(dim1=1, dim2=2) + 1e-4).diag_embed()
            warp = warp + torch.linalg.solve(normal, (slopes @ (there - here)[..., None])[..., 0]).clamp(-0.2, 0.2)
    return best, best_warp


def _copy_groups(
    shown: np.ndarray, pairs: np.ndarray, correlation: np.ndarray, crowded: np.ndarray
) -> tuple[list[list[tuple[int, float]]], int]:
    """Group each image that is no copy of an earlier one with its copies, and count images that are too alike to tell.

    `pairs` `(2, P)` are of rows that show the images `shown` `(N,)`; see `_close_pairs`.
    """
    count, pairs, distance = shown.max() + 1, np.sort(shown[pairs], 0), 1 - correlation
    order = np.lexsort((distance, *pairs))
    pairs, distance = pairs[:, order], distance[order]
    known = (np.diff(pairs, prepend=-1) != 0).any(0) & (pairs[0] != pairs[1])  # once, at its nearest
    pairs, distance = pairs[:, known], distance[known]
    (one, other), distance = np.concatenate([pairs, pairs[::-1]], 1), np.tile(distance, 2)
    order = np.lexsort((distance, one))
    one, other, distance = one[order], other[order], distance[order]
    starts = np.flatnonzero(np.diff(one, prepend=-1))
    unknown_next = np.isin(one, shown[crowded])
    following = np.append(distance[1:], 1 - _NEXT)
    ends = np.append(starts[1:], len(one))[: len(starts)] - 1
    following[ends] = np.where(unknown_next[ends], distance[ends], 1 - _NEXT)
    rank = np.arange(len(one)) - np.searchsorted(one, one)
    copies, nearest = np.zeros(count, dtype=int), np.full(count, 1 - _NEXT)
    np.maximum.at(copies, one, (distance + _ROUNDING < _RATIO * following) * (rank + 1))
    nearest[one[starts]] = distance[starts]
    close = rank < copies[one]
    one, other, distance = one[close], other[close], distance[close]
    both = np.isin(other * count + one, one * count + other)
    one, other, values = one[both], other[both], 1 - distance[both]
    starts = np.flatnonzero(np.diff(one, prepend=-1))
    taken, groups = np.zeros(count, dtype=bool), list[list[tuple[int, float]]]()
    parts = zip(one[starts], np.split(other, starts[1:]), np.split(values, starts[1:]), strict=False)
    for image, others, alike in parts:
        free = ~taken[others]
        if not taken[image] and free.any():
            taken[[image, *others[free]]] = True
            groups.append([(int(image), 1.0), *zip(others[free].tolist(), alike[free].tolist(), strict=True)])
    return groups, int(((nearest < _RATIO * (1 - _NEXT)) & ~taken).sum())
