"""The loops of `kmeans.py` in torch: many filters at a time, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_anomaly.clustering.engines.base import KMEANS_ITERATIONS
from lightning_anomaly.clustering.threads import ranges, rows_at_a_time, torch_in_threads
from lightning_anomaly.clustering.ties import CLOSE, first_largest, in_order, nearest

__all__ = ["cluster_moments", "kmeans", "kmeans_plus_plus"]


def kmeans_plus_plus(points: Tensor, uniform: Tensor) -> Tensor:
    """See `Engine`."""

    def draw(points: Tensor) -> Tensor:
        x, y = points.permute(2, 0, 1).contiguous()[:, :, None].expand(-1, -1, len(uniform), -1)
        step = rows_at_a_time(len(uniform) * points.shape[1], points)
        return torch.cat(
            [_draw(*part, uniform) for part in zip(torch.split(x, step), torch.split(y, step), strict=True)]
        )

    return torch.cat(torch_in_threads(draw, *ranges(in_order(points)), like=points))


def _draw(x: Tensor, y: Tensor, uniform: Tensor) -> Tensor:
    distance = torch.ones_like(x, memory_format=torch.contiguous_format)
    centres = []
    for k in range(uniform.shape[1]):
        cumulative = distance.cumsum(2)
        target = uniform[:, k, None] * cumulative[..., -1:]
        chosen = torch.searchsorted(cumulative, target, right=True).clamp_(max=x.shape[2] - 1)
        cx, cy = x.gather(2, chosen), y.gather(2, chosen)
        centres.append(torch.cat([cx, cy], 2))
        squared, dy = (x - cx).square_(), y - cy
        squared.addcmul_(dy, dy)
        distance = squared if k == 0 else torch.minimum(distance, squared, out=squared)
    return torch.stack(centres, 2)


def kmeans(points: Tensor, centres: Tensor) -> Tensor:
    """See `Engine`."""

    def cluster(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
        coordinates = points.permute(2, 0, 1).contiguous()
        found = centres.flatten(0, 1).permute(2, 1, 0).contiguous()
        todo = torch.arange(found.shape[2], device=found.device)
        with torch.inference_mode():  # spares torch the bookkeeping of views
            # Most of the way in half the time; then those that may be the best go on from there.
            rough, inertia = _lloyd(coordinates.float(), found.float(), todo)
            own = inertia.view(centres.shape[:2])
            todo = todo[(own <= CLOSE * own.amin(1, keepdim=True)).flatten()]
            found, inertia = _lloyd(coordinates, rough.double(), todo)
        return found.permute(2, 1, 0).reshape(centres.shape), inertia.view(centres.shape[:2])

    parts = torch_in_threads(cluster, *ranges(points, centres), like=points)
    found, inertia = (torch.cat(part) for part in zip(*parts, strict=True))
    best = first_largest(-inertia)[:, None, None, None].expand(-1, 1, *found.shape[2:])
    return nearest(points, found.gather(1, best))[:, 0]


def _lloyd(coordinates: Tensor, centres: Tensor, todo: Tensor) -> tuple[Tensor, Tensor]:
    """Centres `(2, K, F * S)` of the last assignment of points `(2, F, N)` and its inertia, infinite if not `todo`."""
    _, filters, samples = coordinates.shape
    clusters, mixtures = centres.shape[1:]
    found, inertia = centres.clone(), centres.new_full((mixtures,), torch.inf)
    starts = mixtures // max(1, filters)
    step = max(1, min(rows_at_a_time(clusters * samples, coordinates), mixtures))
    memory = coordinates.new_empty((2 * clusters + 3) * step * samples)  # written over and over, it stays in a cache
    centres = centres[:, :, todo]
    for _ in range(KMEANS_ITERATIONS):
        if not len(todo):
            break
        sums, count = torch.empty_like(centres), torch.empty_like(centres[0])
        total = coordinates.new_empty(len(todo))
        for owner, *part in zip(
            torch.split(todo // starts, step),
            torch.split(centres[..., None], step, 2),
            torch.split(sums, step, 2),
            torch.split(count, step, 1),
            torch.split(total, step),
            strict=True,
        ):
            _assign(coordinates, owner, memory, *part)
        moved = torch.where(count > 0, sums / count, centres)
        better = total < inertia[todo]
        found[:, :, todo], inertia[todo] = centres, total
        goes_on = better & (moved != centres).any(1).any(0)
        todo, centres = todo[goes_on], moved[:, :, goes_on]
    return found, inertia


def _assign(
    coordinates: Tensor, owner: Tensor, memory: Tensor, centres: Tensor, sums: Tensor, count: Tensor, total: Tensor
) -> None:
    """Fill in sums `(2, K, B)` and count `(K, B)` of the samples nearest to centres `(2, K, B, 1)`, and the inertia."""
    clusters, rows, samples = centres.shape[1], len(owner), coordinates.shape[2]
    arrays = memory[: (2 * clusters + 3) * rows * samples].view(-1, rows, samples)
    member, product, own, others = arrays.split_with_sizes([clusters, clusters, 2, 1])
    x, y = torch.index_select(coordinates, 1, owner, out=own)
    others = others[0]
    torch.sub(x, centres[0], out=member).square_()
    torch.sub(y, centres[1], out=product)
    member.addcmul_(product, product)
    smallest = torch.amin(member, 0, out=others)
    torch.sum(smallest, 1, out=total)
    torch.le(member, smallest, out=member)  # 1 where a centre is the nearest, and 0
    torch.sum(member, 2, out=count)
    if owner.device.type != "cpu" or count.sum() > rows * samples:  # of centres equally near, the first
        torch.sub(1, member[0], out=others)
        for k in range(1, clusters):
            others.sub_(member[k].mul_(others))
        torch.sum(member, 2, out=count)
    torch.sum(torch.mul(x, member, out=product), 2, out=sums[0])
    torch.sum(member.mul_(y), 2, out=sums[1])


def cluster_moments(points: Tensor, labels: Tensor, clusters: int) -> Tensor:
    """See `Engine`."""

    def moments(points: Tensor, labels: Tensor) -> list[Tensor]:
        step = rows_at_a_time(4 * labels[:1].numel(), points)
        parts = zip(torch.split(points, step), torch.split(labels, step), strict=True)
        with torch.inference_mode():
            return [_moments(*part, clusters) for part in parts]

    found = torch_in_threads(moments, *ranges(points, labels), like=points)
    return torch.cat([part for parts in found for part in parts])


def _moments(points: Tensor, labels: Tensor, clusters: int) -> Tensor:
    x, y = points.permute(2, 0, 1).contiguous()[:, :, None]
    numbers = labels.to(points.dtype)
    own, dx, dy, product = (torch.empty_like(numbers) for _ in range(4))
    found = points.new_empty(6, clusters, *labels.shape[:2])
    for k, (count, mean_x, mean_y, xx, xy, yy) in enumerate(found.unbind(1)):
        torch.eq(numbers, k, out=own)
        torch.sum(own, 2, out=count)
        share = 1 / count.clamp(min=1)
        torch.sum(torch.mul(own, x, out=dx), 2, out=mean_x).mul_(share)
        torch.sum(torch.mul(own, y, out=dy), 2, out=mean_y).mul_(share)
        torch.sub(x, mean_x[..., None], out=dx).mul_(own)
        torch.sub(y, mean_y[..., None], out=dy).mul_(own)
        for out, a, b in ((xx, dx, dx), (xy, dx, dy), (yy, dy, dy)):
            torch.sum(torch.mul(a, b, out=product), 2, out=out).mul_(share)
    return found.permute(2, 3, 1, 0)
