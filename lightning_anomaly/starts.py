"""Where the mixtures start: from k-means clusterings, or from random samples."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_anomaly.backend import compiled_for, rows_at_a_time

__all__ = [
    "cluster_moments",
    "cluster_parameters",
    "first_largest",
    "kmeans",
    "kmeans_plus_plus",
    "nearest",
    "random_samples",
]

_MAX_ITER = 300  # scikit-learn's default for KMeans
_SAME = 1e-9  # relative difference that is rounding, for values of order one or larger


def first_largest(values: Tensor) -> Tensor:
    """Position of the largest value along the last axis, the first of those that are equal up to rounding.

    The same clusters found twice, numbered in another way, have values that differ by rounding. Which one is chosen
    should not depend on the order of a sum.
    """
    largest = values.amax(-1, keepdim=True)
    return (values >= largest - _SAME * largest.abs().clamp(min=1)).int().argmax(-1)


def kmeans_plus_plus(points: Tensor, n_init: int, n_clusters: int, seed: int) -> Tensor:
    """Draw starting centres by k-means++ (Arthur and Vassilvitskii, 2007).

    All filters use the same uniform random numbers, each on its own points in the order of their first coordinate, so
    that a filter's centres depend neither on the other filters nor on the order of the samples.

    Args:
        points: Points `(F, N, 2)`.
        n_init: Number of draws, S.
        n_clusters: Number of centres, K. The first k of them are a draw for k centres.
        seed: Seed of the random numbers.

    Returns:
        Centres `(F, S, K, 2)`.
    """
    uniform = _uniform(n_init, n_clusters, seed).to(points)
    if compiled_for(points, None):
        from lightning_anomaly import _compiled_starts

        threads = torch.get_num_threads()
        return torch.from_numpy(_compiled_starts.kmeans_plus_plus(points.numpy(), uniform.numpy(), threads))
    x, y = _sorted(points).permute(2, 0, 1).contiguous()[:, :, None].expand(-1, -1, n_init, -1)
    step = rows_at_a_time(n_init * points.shape[1], points)
    parts = [_draw(*part, uniform) for part in zip(torch.split(x, step), torch.split(y, step), strict=True)]
    return torch.cat(parts)


def _draw(x: Tensor, y: Tensor, uniform: Tensor) -> Tensor:
    """Centres `(F, S, K, 2)` drawn by numbers `(S, K)` from coordinates `(F, S, N)`."""
    distance = torch.ones_like(x, memory_format=torch.contiguous_format)
    centres = []
    for k in range(uniform.shape[1]):
        cumulative = distance.cumsum(2)
        target = uniform[:, k, None] * cumulative[..., -1:]
        chosen = torch.searchsorted(cumulative, target, right=True).clamp_(max=x.shape[2] - 1)
        centre = x.gather(2, chosen), y.gather(2, chosen)
        centres.append(torch.cat(centre, 2))
        squared = _squared_distances(x, y, *centre)
        distance = squared if k == 0 else torch.minimum(distance, squared, out=squared)
    return torch.stack(centres, 2)


def random_samples(points: Tensor, n_init: int, n_clusters: int, seed: int) -> Tensor:
    """Draw distinct samples as starting centres; arguments and result as in `kmeans_plus_plus`."""
    order = _uniform(n_init, points.shape[1], seed).argsort(1)[:, :n_clusters].to(points.device)
    return _sorted(points)[:, order]


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """The index of the nearest centre, the first of equals, for `(F, N, 2)` and `(F, S, K, 2)`: `(F, S, N)`."""
    x, y = points[:, None, None].unbind(4)
    cx, cy = centres[..., None, :].unbind(4)
    return _squared_distances(x, y, cx, cy).min(2).indices  # `argmin` takes twenty times as long


def kmeans(points: Tensor, centres: Tensor, *, compiled: bool | None = None) -> Tensor:
    """Lloyd's algorithm from several starts; the clustering with the smallest inertia.

    Args:
        points: Points `(F, N, 2)`.
        centres: Starts `(F, S, K, 2)`.
        compiled: See `fit_mixtures`.

    Returns:
        Labels `(F, N)` of the best start, the first of those equal up to rounding. A cluster that loses all its points
        keeps its centre.
    """
    if compiled_for(points, compiled):
        from lightning_anomaly import _compiled_starts

        threads = torch.get_num_threads()
        return torch.from_numpy(_compiled_starts.kmeans(points.numpy(), centres.numpy(), _MAX_ITER, _SAME, threads))
    filters, starts = centres.shape[:2]
    found, inertia = (
        centres.flatten(0, 1).permute(2, 1, 0).contiguous(),
        points.new_full((filters * starts,), torch.inf),
    )
    with torch.inference_mode():  # spares torch the bookkeeping of views
        _lloyd(points.transpose(1, 2).contiguous(), found, inertia)
    best = first_largest(-inertia.view(filters, starts)) + starts * torch.arange(filters, device=points.device)
    return nearest(points, found[:, :, best].permute(2, 1, 0)[:, None])[:, 0]


def _lloyd(coordinates: Tensor, found: Tensor, inertia: Tensor) -> None:
    """Move centres `(2, K, F * S)` to those of the last assignment of points `(F, 2, N)`; fill in its inertia."""
    clusters, mixtures = found.shape[1:]
    samples, starts = coordinates.shape[2], mixtures // max(1, len(coordinates))
    step = min(rows_at_a_time(clusters * samples, coordinates), mixtures)
    memory = coordinates.new_empty((3 * clusters + 3) * step * samples)  # written over and over, it stays in a cache
    todo, centres = torch.arange(mixtures, device=found.device), found.clone()
    for _ in range(_MAX_ITER):
        moved, total = torch.empty_like(centres), coordinates.new_empty(len(todo))
        for first in range(0, len(todo), step):
            part = slice(first, first + step)
            owner = todo[part] // starts
            arrays = memory[: (3 * clusters + 3) * len(owner) * samples].view(-1, len(owner), samples)
            products, member = (
                arrays[: 2 * clusters].view(2, clusters, -1, samples),
                arrays[2 * clusters : 3 * clusters],
            )
            own, others = arrays[-3:-1].view(-1, 2, samples), arrays[-1]
            points = torch.index_select(coordinates, 0, owner, out=own).transpose(0, 1)[:, None]
            torch.sub(points, centres[:, :, part, None], out=products)
            torch.addcmul(products[0].square_(), products[1], products[1], out=member)
            nearest = torch.amin(member, 0, out=others)
            torch.sum(nearest, 1, out=total[part])
            torch.le(member, nearest, out=member)  # 1 where a centre is the nearest, and 0
            torch.sub(1, member[0], out=others)
            for k in range(1, clusters):  # of centres equally near, the first
                others.sub_(member[k].mul_(others))
            count = member.sum(2)
            sums = torch.mul(points, member, out=products).sum(3)
            moved[:, :, part] = torch.where(count > 0, sums / count, centres[:, :, part])
        better = total < inertia[todo]
        found[:, :, todo], inertia[todo] = centres, total
        goes_on = better & (moved != centres).any(1).any(0)
        todo, centres = todo[goes_on], moved[:, :, goes_on]
        if not len(todo):
            break


def cluster_moments(points: Tensor, labels: Tensor, n_clusters: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sizes, means and covariances of clusters.

    Args:
        points: Points `(F, N, 2)`.
        labels: Labels `(F, S, N)` from 0 to `n_clusters - 1`.
        n_clusters: Number of clusters, K.

    Returns:
        Sizes `(F, S, K)`, means `(F, S, K, 2)` and covariances xx, xy, yy `(F, S, K, 3)`; zeros for empty clusters.
    """
    if compiled_for(points, None):
        from lightning_anomaly import _compiled_starts

        threads = torch.get_num_threads()
        moments = torch.from_numpy(
            _compiled_starts.cluster_moments(points.numpy(), labels.numpy(), n_clusters, threads)
        )
        return moments[..., 0], moments[..., 1:3], moments[..., 3:]
    x, y = points.permute(2, 0, 1).contiguous()[:, :, None]
    rows = []
    for k in range(n_clusters):
        own = (labels == k).to(points.dtype)
        count = own.sum(2)
        share = 1 / count.clamp(min=1)
        mean_x, mean_y = (own * x).sum(2) * share, (own * y).sum(2) * share
        dx, dy = (x - mean_x[..., None]).mul_(own), (y - mean_y[..., None]).mul_(own)
        products = [product.sum(2) * share for product in (dx * dx, dx * dy, dy * dy)]
        rows.append(torch.stack([count, mean_x, mean_y, *products], -1))
    moments = torch.stack(rows, 2)
    return moments[..., 0], moments[..., 1:3], moments[..., 3:]


def cluster_parameters(points: Tensor, labels: Tensor, n_components: int, reg_covar: float) -> tuple[Tensor, ...]:
    """Weights, means and precisions of the clusters of a hard clustering: one M-step.

    Args:
        points: Points `(F, N, 2)`.
        labels: Labels `(F, S, N)` from 0 to `n_components - 1`.
        n_components: Number of components, K.
        reg_covar: Added to the variances.

    Returns:
        Weights `(F, S, K)`, means `(F, S, K, 2)`, precisions `(F, S, K, 2, 2)`.
    """
    sizes, means, covariances = cluster_moments(points, labels, n_components)
    count = sizes + 10 * torch.finfo(points.dtype).eps  # as scikit-learn does, in moments too
    share = (sizes / count)[..., None]
    xx, xy, yy = (covariances * share).unbind(-1)
    xx, yy = xx + reg_covar, yy + reg_covar
    determinant = xx * yy - xy * xy
    precisions = torch.stack([yy, -xy, -xy, xx], -1).reshape(*xx.shape, 2, 2) / determinant[..., None, None]
    return count / count.sum(2, keepdim=True), means * share, precisions


def _squared_distances(x: Tensor, y: Tensor, cx: Tensor, cy: Tensor) -> Tensor:
    """Squared distances of points from centres, whose axes follow torch's rules of broadcasting."""
    squared, dy = (x - cx).square_(), y - cy
    return squared.addcmul_(dy, dy)


def _uniform(rows: int, columns: int, seed: int) -> Tensor:
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _sorted(points: Tensor) -> Tensor:
    """Points in the order of their first coordinate, equals in that of their second."""
    for axis in (1, 0):
        order = points[..., axis].argsort(dim=1, stable=True)
        points = points.gather(1, order[..., None].expand(-1, -1, 2))
    return points
