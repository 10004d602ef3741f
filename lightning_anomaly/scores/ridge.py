"""Predict the classes of images from their features, each from the other images alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

_PENALTY = 0.004  # variance added in each direction, relative to the total one
_SPANNING = 2048  # images, at most, whose features span the space in which predictions are made
_ROUNDING = torch.finfo(torch.float32).eps ** 2  # variance of features of norm 1 that is no evidence


class Ridge(NamedTuple):
    """A ridge regression that predicts C classes from features.

    An image of a class of n images has a weight proportional to n ** -0.5. Features are replaced by their square roots
    with their signs, so that few large ones do not decide alone (Perronnin, Sanchez and Mensink, "Improving the Fisher
    kernel for large-scale image classification", 2010), scaled to norm 1, centered, and both again.

    For an image that was fitted to, the prediction from the others is `(p - h y) / (1 - h)`, where p is that from all,
    y its target, 0 or 1, and h its leverage, of which a part is its weight in the mean of all targets.

    Attributes:
        counts: The number of images in each class `(C,)`.
        weights: The weight of an image of each class; those of all images sum to 1 `(C,)`.
        center: The weighted mean of the scaled roots `(D,)`.
        mean: That of the vectors that come of them, before they are centered again `(D,)`.
        axes: Directions of these vectors `(D, k)`, in each of which the variance and the penalty are 1.
        coefficients: Of what the vectors have along these `(k, C)`.
    """

    counts: Tensor
    weights: Tensor
    center: Tensor
    mean: Tensor
    axes: Tensor
    coefficients: Tensor

    @classmethod
    def fit(cls, features: Tensor, targets: Tensor, classes: int) -> Ridge:
        """Fit to features `(n, D)` of images of the classes `targets` `(n,)`."""
        members, roots = one_hot(targets, classes).double(), _roots(features)
        counts = members.sum(0)
        weights = counts.clamp(min=1) ** -0.5 / counts.sqrt().sum()
        of_each = weights[targets][:, None]
        center = (of_each * roots).sum(0)
        vectors = normalize(roots - center)
        mean = (of_each * vectors).sum(0)
        vectors = vectors - mean
        # A basis of what all vectors span or, if these are very many and long, most of them.
        axes = torch.linalg.qr(vectors[:: -(-len(vectors) // _SPANNING)].T)[0]
        along = vectors @ axes
        products = (of_each * along).T @ along
        products.diagonal().add_(_PENALTY * products.trace() + _ROUNDING)
        axes = axes @ torch.linalg.inv(torch.linalg.cholesky(products)).T
        return cls(counts, weights, center, mean, axes, coefficients=(of_each * (vectors @ axes)).T @ members)

    def predict(self, features: Tensor, left_out: Tensor | None = None) -> Tensor:
        """Predict each class, about 0 to 1, from features `(n, D)`: `(n, C)`.

        To leave images of the fit out of it, each for itself, pass the classes `left_out` `(n,)` that they had there,
        -1 for other images.
        """
        along = (normalize(_roots(features) - self.center) - self.mean) @ self.axes
        predicted = along @ self.coefficients + self.counts * self.weights
        if left_out is None:
            return predicted
        own = left_out.clamp(min=0)
        leverage = (self.weights[own].where(left_out >= 0, 0) * (1 + along.square().sum(1)))[:, None]
        return (predicted - leverage * one_hot(own, len(self.counts))) / (1 - leverage)


def _roots(features: Tensor) -> Tensor:
    """Return the square roots of features `(n, D)` with their signs, scaled to norm 1, float64."""
    return normalize(features.sign() * features.double().abs().sqrt())
