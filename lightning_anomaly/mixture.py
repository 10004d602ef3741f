"""Gaussian mixtures of every filter at once: batched expectation maximisation with full covariances in the plane."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from lightning_anomaly.backend import compiled_for

__all__ = ["MixtureFit", "fit_mixtures"]

_LOG_2PI = math.log(2 * math.pi)
_CHUNK_BYTES = 2**18  # one array of a chunk; a handful of them should stay in a core's cache
_CHECK_EVERY = 4  # iterations between two looks at who has converged


@dataclass(frozen=True)
class MixtureFit:
    """Fitted mixtures, F filters with S starts each, in scikit-learn's words.

    Attributes:
        weights: Shares of the components `(F, S, K)`.
        means: Centres `(F, S, K, 2)`.
        covariances: Full covariance matrices `(F, S, K, 2, 2)`.
        lower_bound: Mean log-likelihood of a sample under the mixture before the last M-step (nats) `(F, S)`.
        labels: Most probable component of each sample under the fitted mixture `(F, S, N)`.
        n_iter: Iterations done `(F, S)`.
        converged: Whether the last change of the lower bound was below `tol` `(F, S)`.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor
    lower_bound: Tensor
    labels: Tensor
    n_iter: Tensor
    converged: Tensor


def fit_mixtures(
    points: Tensor,
    weights: Tensor,
    means: Tensor,
    precisions: Tensor,
    *,
    max_iter: int = 100,
    tol: float = 1e-3,
    reg_covar: float = 1e-6,
    compiled: bool | None = None,
) -> MixtureFit:
    r"""Fit Gaussian mixtures by expectation maximisation, step by step what scikit-learn's `GaussianMixture` does.

    The E-step works on residuals that each component whitens, `y = U^T (x - mu)` with `U U^T` its precision; the M-step
    sums their first and second moments and transforms those back. Whitened residuals are of order one wherever the
    component matters, so a tight cluster far out loses no digits, unlike with sums of squared coordinates.

    Args:
        points: Points `(F, N, 2)`, float64 or float32, in units in which `reg_covar` is small.
        weights: Weights to start from `(F, S, K)`.
        means: Means to start from `(F, S, K, 2)`.
        precisions: Inverse covariances to start from `(F, S, K, 2, 2)`.
        max_iter: Largest number of iterations.
        tol: A mixture has converged when its lower bound changes by less than this (nats).
        reg_covar: Added to the variances (squared units of the points).
        compiled: Whether numba's loop runs instead of torch's: None decides by what is installed and where the points
            are. Both do the same arithmetic, up to the order of sums.

    Returns:
        The fit. A mixture's result does not depend on the others.

    Raises:
        ValueError: If shapes do not fit each other, or `compiled` is True where it cannot be.

    Examples:
        >>> points = torch.tensor([[[-1.0, 0], [-1, 1], [1, 0], [1, 1]]], dtype=torch.float64)
        >>> start = torch.tensor([[[[-1.0, 0], [1, 0]]]], dtype=torch.float64)
        >>> fit = fit_mixtures(points, torch.full((1, 1, 2), 0.5).double(), start, torch.eye(2).expand(1, 1, 2, 2, 2))
        >>> fit.labels.tolist()
        [[[0, 0, 1, 1]]]
    """
    filters, samples = points.shape[:2]
    starts, components = weights.shape[1:] if weights.ndim == 3 else (0, 0)
    expected = [(filters, samples, 2)] + [(filters, starts, components, *rest) for rest in ((), (2,), (2, 2))]
    found = [tuple(tensor.shape) for tensor in (points, weights, means, precisions)]
    if found != expected:
        raise ValueError(
            "Parameters `points`, `weights`, `means` and `precisions` should have shapes (F, N, 2), (F, S, K), "
            f"(F, S, K, 2) and (F, S, K, 2, 2). Found {found}."
        )
    # U is upper triangular: the last coordinate's precision is its last entry squared.
    p11, p12, p22 = precisions[..., 0, 0], precisions[..., 0, 1], precisions[..., 1, 1]
    u22 = p22.sqrt()
    u12 = p12 / u22
    factors = torch.stack([(p11 - u12 * u12).sqrt(), u12, u22], 3).to(points.dtype)
    w, mu, u = (tensor.flatten(0, 1).to(points.dtype).clone() for tensor in (weights, means, factors))
    if compiled_for(points, compiled):
        from lightning_anomaly import _compiled

        threads = torch.get_num_threads()
        fitted = _compiled.em(points.numpy(), w.numpy(), mu.numpy(), u.numpy(), max_iter, tol, reg_covar, threads)
        result = tuple(map(torch.from_numpy, fitted))
    else:
        result = _em(points, w, mu, u, max_iter, tol, reg_covar)
    by_filter = [tensor.reshape(filters, starts, *tensor.shape[1:]) for tensor in result]
    fitted_weights, fitted_means, fitted_factors, bound, labels, n_iter, converged = by_filter
    return MixtureFit(fitted_weights, fitted_means, _covariances(fitted_factors), bound, labels, n_iter, converged)


def _covariances(factors: Tensor) -> Tensor:
    """Covariances `(..., 2, 2)` of factors `(..., 3)` of the precisions."""
    l11, l21, l22 = _inverse(factors)
    xx, xy, yy = l11 * l11, l11 * l21, l21 * l21 + l22 * l22
    return torch.stack([xx, xy, xy, yy], -1).reshape(*xx.shape, 2, 2)


def _inverse(factors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The lower triangular L = inverse of U transposed: `l11`, `l21`, `l22`. The covariance is `L L^T`."""
    u11, u12, u22 = factors.unbind(-1)
    return 1 / u11, -u12 / (u11 * u22), 1 / u22


def _em(
    points: Tensor, weights: Tensor, means: Tensor, factors: Tensor, max_iter: int, tol: float, reg: float
) -> tuple[Tensor, ...]:
    """EM of all mixtures `(F * S, ...)`, in chunks that fit into a cache; those that have converged leave it."""
    mixtures, components = weights.shape
    samples, starts = points.shape[1], mixtures // max(1, len(points))
    bound = points.new_empty(mixtures)
    n_iter = torch.zeros(mixtures, dtype=torch.int64, device=points.device)
    converged = torch.zeros(mixtures, dtype=torch.bool, device=points.device)
    labels = torch.empty(mixtures, samples, dtype=torch.int64, device=points.device)
    coordinates = points.transpose(1, 2).contiguous()
    size = max(1, _CHUNK_BYTES // (8 * samples * components)) if points.device.type == "cpu" else mixtures
    for first in range(0, mixtures, max(1, size)):
        todo = torch.arange(first, min(first + size, mixtures), device=points.device)
        own = coordinates[todo // starts]
        state = (weights[todo], means[todo], factors[todo])
        last = points.new_full((len(todo),), -torch.inf)
        running = torch.ones_like(todo, dtype=torch.bool)
        for iteration in range(1, max_iter + 1):
            *stepped, value = _step(own, *state, reg)
            state = (
                torch.where(_like(running, state[0]), stepped[0], state[0]),
                torch.where(_like(running, state[1]), stepped[1], state[1]),
                torch.where(_like(running, state[2]), stepped[2], state[2]),
            )
            done = running & ((value - last).abs() < tol)
            last = torch.where(running, value, last)
            n_iter[todo] += running
            converged[todo] |= done
            running = running & ~done
            if iteration % _CHECK_EVERY == 0 or iteration == max_iter:
                keep = running if iteration < max_iter else torch.zeros_like(running)
                leave = ~keep
                if bool(leave.any()):
                    gone = todo[leave]
                    weights[gone], means[gone], factors[gone] = (tensor[leave] for tensor in state)
                    bound[gone] = last[leave]
                    labels[gone] = _log_joint(own[leave], weights[gone], means[gone], factors[gone])[0].argmax(1)
                    todo, own, last, running = todo[keep], own[keep], last[keep], running[keep]
                    state = (state[0][keep], state[1][keep], state[2][keep])
                    if not len(todo):
                        break
    return weights, means, factors, bound, labels, n_iter, converged


def _log_joint(points: Tensor, weights: Tensor, means: Tensor, factors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log(pi_k N(x | k)) `(B, K, N)` and the whitened residuals, of points `(B, 2, N)`."""
    u11, u12, u22 = factors.unbind(-1)
    constant = weights.log() + u11.log() + u22.log() - _LOG_2PI
    dx = points[:, None, 0] - means[..., 0, None]
    dy = points[:, None, 1] - means[..., 1, None]
    y1 = dx * u11[..., None]
    y2 = torch.addcmul(dx.mul_(u12[..., None]), dy, u22[..., None])
    joint = torch.addcmul(constant[..., None], y1, y1, value=-0.5)
    return joint.addcmul_(y2, y2, value=-0.5), y1, y2


def _step(
    points: Tensor, weights: Tensor, means: Tensor, factors: Tensor, reg: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One E-step and M-step: the new weights, means and factors, and the lower bound before them."""
    joint, y1, y2 = _log_joint(points, weights, means, factors)
    largest = joint.amax(1)
    # Neither `softmax` nor `sum` over K: with several threads their last bits depend on a mixture's place in the batch.
    resp = joint.sub_(largest[:, None]).exp_()
    total = reduce(torch.add, resp.unbind(1))
    bound = (largest + total.log()).mean(1)
    resp /= total[:, None]
    s = resp.sum(2)
    r1, r2 = resp * y1, resp * y2
    s1, s2 = r1.sum(2), r2.sum(2)
    s11, s12, s22 = (r1 * y1).sum(2), (r1 * y2).sum(2), (r2 * y2).sum(2)
    count = s + 10 * torch.finfo(points.dtype).eps
    u11, u12, u22 = factors.unbind(-1)
    l11, l21, l22 = _inverse(factors)
    mx, my = means.unbind(-1)
    new_x = (mx * s + l11 * s1) / count
    new_y = (my * s + l21 * s1 + l22 * s2) / count
    d1 = u11 * (new_x - mx)
    d2 = u12 * (new_x - mx) + u22 * (new_y - my)
    c11 = (s11 - 2 * d1 * s1 + s * d1 * d1) / count
    c12 = (s12 - d1 * s2 - d2 * s1 + s * d1 * d2) / count
    c22 = (s22 - 2 * d2 * s2 + s * d2 * d2) / count
    v11 = l11 * l11 * c11 + reg
    v12 = l11 * (l21 * c11 + l22 * c12)
    v22 = l21 * l21 * c11 + 2 * l21 * l22 * c12 + l22 * l22 * c22 + reg
    a = v11.sqrt()
    b = v12 / a
    c = (v22 - b * b).clamp(min=0.5 * reg).sqrt()
    new_factors = torch.stack([1 / a, -b / (a * c), 1 / c], -1)
    return count / count.sum(1, keepdim=True), torch.stack([new_x, new_y], -1), new_factors, bound


def _like(flags: Tensor, tensor: Tensor) -> Tensor:
    """Flags `(B,)` with the axes of a tensor `(B, ...)`."""
    return flags.view(-1, *[1] * (tensor.ndim - 1))
