"""Predict the classes of images from their features, each from the other images alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

_PENALTY = 0.004  # variance added in each direction, relative to the total one
_DIRECTIONS = 512  # at most, in which features are used: those with the most variance, nearly
_ROWS = 256  # images whose features are prepared at a time
_ROUNDING = torch.finfo(torch.float32).eps ** 2  # variance of features of norm 1 that is no evidence


class Ridge(NamedTuple):
    """A ridge regression that predicts C classes from features.

    An image of a class of n images has a weight proportional to n ** -0.5. Features are replaced by their square roots
    with their signs, so that few large ones do not decide alone (Perronnin, Sanchez and Mensink, "Improving the Fisher
    kernel for large-scale image classification", 2010), scaled to norm 1, centered, and both again.

    For an image that was fitted to, the prediction from the others is `(p - h y) / (1 - h)`, where p is that from all,
    y its target, 0 or 1, and h its leverage, of which a part is its weight in the mean of all targets. For images that
    are left out together, p and y are vectors, and h a matrix.
    """

    counts: Tensor  # images in each class `(C,)`
    weights: Tensor  # of an image of each class; those of all images sum to 1 `(C,)`
    center: Tensor  # the weighted mean of the scaled roots `(D,)`
    mean: Tensor  # that of the vectors that come of them, before they are centered again `(D,)`
    axes: Tensor  # directions of these vectors `(D, k)`, in each of which the variance and the penalty are 1
    coefficients: Tensor  # of what the vectors have along these `(k, C)`

    @classmethod
    def fit(cls, features: Tensor, targets: Tensor, classes: int) -> Ridge:
        """Fit to features `(n, D)` of images of the classes `targets` `(n,)`."""
        members = one_hot(targets, classes).double()
        counts = members.sum(0)
        weights = counts.clamp(min=1) ** -0.5 / counts.sqrt().sum()
        of_each = weights[targets]
        parts = [*zip(torch.split(of_each, _ROWS), torch.split(features, _ROWS), strict=True)]
        center = torch.stack([weight @ _signed_roots(part) for weight, part in parts]).sum(0)
        # The covariance times random directions spans the directions with the most variance: Halko, Martinsson and
        # Tropp, "Finding structure with randomness" (2011).
        count, width = features.shape
        drawn = torch.Generator().manual_seed(0)
        directions = torch.randn(
            width, min(count, width, _DIRECTIONS), generator=drawn, dtype=torch.float64, device="cpu"
        )
        mean, spanned = torch.zeros_like(center), torch.zeros_like(directions)
        for weight, part in parts:
            vectors = _centered_roots(part, center)
            mean += weight @ vectors
            spanned += vectors.T @ (weight[:, None] * (vectors @ directions))
        axes = torch.linalg.qr(spanned - torch.outer(mean, mean @ directions))[0]
        along = _along_axes(features, center, mean, axes)
        products = (of_each[:, None] * along).T @ along
        products.diagonal().add_(_PENALTY * products.trace() + _ROUNDING)
        whitening = torch.linalg.inv(torch.linalg.cholesky(products)).T
        coefficients = whitening.T @ ((of_each[:, None] * along).T @ members)
        return cls(counts, weights, center, mean, axes @ whitening, coefficients)

    def predict(self, features: Tensor, left_out: Tensor | None = None) -> Tensor:
        """Predict each class, about 0 to 1, from features `(n, D)`: `(n, C)`.

        To leave images of the fit out of it, each for itself, pass the classes `left_out` `(n,)` that they had there,
        -1 for other images.
        """
        along = _along_axes(features, self.center, self.mean, self.axes)
        predicted = along @ self.coefficients + self.counts * self.weights
        if left_out is None:
            return predicted
        own = left_out.clamp(min=0)
        leverage = (self.weights[own].where(left_out >= 0, 0) * (1 + along.square().sum(1)))[:, None]
        return (predicted - leverage * one_hot(own, len(self.counts))) / (1 - leverage)

    def predict_without(self, features: Tensor, left_out: Tensor) -> Tensor:
        """Predict each class of some images of the fit without all of them, see `predict`."""
        along, own = _along_axes(features, self.center, self.mean, self.axes), left_out.clamp(min=0)
        leverage = (1 + along @ along.T) * self.weights[own].where(left_out >= 0, 0)
        targets, alone = one_hot(own, len(self.counts)).double(), torch.eye(len(own)).to(leverage)
        errors: Tensor = torch.linalg.solve(alone - leverage, targets - self.predict(features))
        return targets - errors


def _along_axes(features: Tensor, center: Tensor, mean: Tensor, axes: Tensor) -> Tensor:
    """Return what the vectors of features `(n, D)` have along the axes, `(n, k)`."""
    return torch.cat([_centered_roots(part, center) @ axes for part in torch.split(features, _ROWS)]) - mean @ axes


def _centered_roots(features: Tensor, center: Tensor) -> Tensor:
    """Return the roots of features `(n, D)` less their center, scaled to norm 1."""
    return normalize(_signed_roots(features) - center)


def _signed_roots(features: Tensor) -> Tensor:
    """Return the square roots of features `(n, D)` with their signs, scaled to norm 1, float64."""
    return normalize(features.sign() * features.double().abs().sqrt())
