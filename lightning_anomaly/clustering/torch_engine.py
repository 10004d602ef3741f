"""Plain torch on all filters at once, on the device of the maps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_anomaly.clustering.engine import (
    EMPTY,
    KMEANS_ITERATIONS,
    SAME,
    Engine,
    MixtureFit,
    Parameters,
    precision_factors,
)


class TorchEngine(Engine):
    """Runs batched operations."""

    def kmeans_plus_plus(self, points: Tensor, uniform: Tensor) -> Tensor:
        """See `Engine`."""
        for axis in (1, 0):
            order = points[..., axis].argsort(dim=1, stable=True)
            points = points.gather(1, order[..., None].expand(-1, -1, 2))
        return torch.stack([_draw(points, numbers) for numbers in uniform], 1)

    def kmeans(self, points: Tensor, centres: Tensor) -> Tensor:
        """See `Engine`."""
        best = points.new_full(points.shape[:1], torch.inf)
        labels = points.new_zeros(points.shape[:2], dtype=torch.int64)
        for start in centres.unbind(1):
            new_labels, inertia = _lloyd(points, start)
            better = inertia + SAME * inertia.clamp(min=1) < best
            best, labels = torch.where(better, inertia, best), torch.where(better[:, None], new_labels, labels)
        return labels

    def em(self, points: Tensor, start: Parameters, max_iter: int, tol: float, reg_covar: float) -> MixtureFit:
        """See `Engine`."""
        weights, means, factors = (part.clone() for part in start)
        bound = points.new_full((len(points),), -torch.inf)
        n_iter = torch.zeros_like(bound, dtype=torch.int64)
        converged = torch.zeros_like(bound, dtype=torch.bool)
        todo = torch.arange(len(points), device=points.device)  # mixtures that have not converged
        for iteration in range(1, max_iter + 1):
            if not len(todo):
                break
            moving = points[todo]
            log_joint = _log_joint(moving, weights[todo], means[todo], factors[todo])
            log_density = log_joint.logsumexp(1)
            resp = (log_joint - log_density[:, None]).exp()
            weights[todo], means[todo], factors[todo] = _m_step(moving, resp, reg_covar)
            value = log_density.mean(1)
            done = (value - bound[todo]).abs() < tol
            bound[todo], n_iter[todo], converged[todo] = value, iteration, done
            todo = todo[~done]
        labels = _log_joint(points, weights, means, factors).max(1).indices
        return MixtureFit(weights, means, factors, bound, labels, n_iter, converged)

    def device(self, maps: torch.device) -> torch.device:
        """See `Engine`: the device of the maps, unless it lacks doubles or cumulative sums."""
        deterministic = torch.are_deterministic_algorithms_enabled()  # forbids cumulative sums on a GPU
        return torch.device("cpu") if deterministic or maps.type == "mps" else maps


def _draw(points: Tensor, uniform: Tensor) -> Tensor:
    """Draw centres `(F, K, 2)` in proportion to the squared distance of points from the nearest centre so far."""
    distance = torch.ones_like(points[..., 0])
    centres: list[Tensor] = []
    for number in uniform:
        cumulative = distance.cumsum(1)
        place = torch.searchsorted(cumulative, number * cumulative[:, -1:], right=True)
        centre = points.gather(1, place.clamp(max=points.shape[1] - 1)[..., None].expand(-1, -1, 2))
        squared = (points - centre).square().sum(2)
        distance = torch.minimum(distance, squared) if centres else squared
        centres.append(centre)
    return torch.cat(centres, 1)


def _lloyd(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Compute labels `(F, N)` and inertia `(F,)` of k-means clusterings from centres `(F, K, 2)`."""
    labels = points.new_zeros(points.shape[:2], dtype=torch.int64)
    inertia = points.new_full(points.shape[:1], torch.inf)
    todo = torch.arange(len(points), device=points.device)  # filters that have not converged
    for _ in range(KMEANS_ITERATIONS):
        if not len(todo):
            break
        moving = points[todo]
        distance, nearest = (moving[:, None] - centres[:, :, None]).square().sum(3).min(1)
        total = distance.sum(1)
        falls = total < inertia[todo]
        labels[todo], inertia[todo] = nearest, total
        member = (nearest[:, None] == torch.arange(centres.shape[1], device=points.device)[:, None]).to(points)
        count = member.sum(2)[..., None]
        moved = torch.where(count > 0, member @ moving / count, centres)
        goes_on = falls & (moved != centres).flatten(1).any(1)
        todo, centres = todo[goes_on], moved[goes_on]
    return labels, inertia


def _log_joint(points: Tensor, weights: Tensor, means: Tensor, factors: Tensor) -> Tensor:
    """Compute the logarithms of weight times density, `log pi_k N(x | mu_k, Sigma_k)` `(F, K, N)`."""
    u11, u12, u22 = factors[..., None].unbind(2)
    dx, dy = (points[:, None] - means[:, :, None]).unbind(3)
    squared = (u11 * dx).square() + (u12 * dx + u22 * dy).square()
    return (weights[..., None] * u11 * u22).log() - math.log(2 * math.pi) - squared / 2


def _m_step(points: Tensor, resp: Tensor, reg_covar: float) -> Parameters:
    """Compute parameters from responsibilities `(F, K, N)`."""
    count = resp.sum(2) + EMPTY
    means = resp @ points / count[..., None]
    dx, dy = (points[:, None] - means[:, :, None]).unbind(3)
    xx, xy, yy = ((resp * product).sum(2) / count for product in (dx * dx, dx * dy, dy * dy))
    return count / count.sum(1, keepdim=True), means, precision_factors(xx, xy, yy, reg_covar)
