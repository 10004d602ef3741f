"""Find images that are identical, and near duplicates: the same photograph scaled, cropped, mirrored or saved again."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn import functional

_SIDE = 8  # of a look (pixels)
_ALIKE = 0.5  # smallest similarity of near duplicates, chosen on planted copies: docs/results/duplicates.md
_BLOCK = 2048  # images that are compared with as many others at once
_PARTNERS = 10  # near duplicates for each image, on average, up to which they are listed
_MOST = 100_000  # images among which near duplicates are sought, as the time grows with their square


class DuplicateGroup(NamedTuple):
    """Positions of images that are duplicates of each other, in order, and whether all are identical."""

    positions: list[int]
    identical: bool


def image_hashes(images: Tensor) -> Tensor:
    """Hash the values of images `(n, ...)` to integers of 64 bits `(n,)`."""
    digests = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in images.detach().cpu().numpy()]
    return torch.from_numpy(np.frombuffer(b"".join(digests), np.int64).copy())


def image_looks(images: Tensor) -> Tensor | None:
    """Reduce images `(n, C, H, W)` to 8x8 pixels `(n, C, 8, 8)`; None for signals and volumes."""
    return functional.adaptive_avg_pool2d(images.detach().float(), _SIDE).cpu() if images.ndim == 4 else None


def find_duplicates(
    hashes: Tensor, features: Tensor | None = None, looks: Tensor | None = None
) -> tuple[list[DuplicateGroup], str]:
    """Group images of equal hashes, and near duplicates, which are alike in features and in looks.

    Features are scaled to norm 1 and centered; looks are centered by the mean look and by their own mean, and compared
    mirrored too. The similarity of two images is the product of both cosines. Duplicates of duplicates are in one
    group.

    Args:
        hashes: `image_hashes` of images that can be read `(N,)`.
        features: A network's finite features of these images `(N, D)`.
        looks: `image_looks` of these images `(N, C, 8, 8)`, preferably of whole pictures.

    Returns:
        Groups in the order of their first images, those of identical images before the others; and, if near duplicates
        are not among them, the reason.
    """
    _, first, kind = np.unique(hashes.numpy(), return_index=True, return_inverse=True)
    pairs, problem, chosen = None, "", torch.from_numpy(first)
    if features is None or looks is None:
        problem = "the model has no features of these images, or they are not pictures"
    elif len(first) > _MOST:
        problem = f"there are more than {_MOST:,} images"
    elif len(first) > 1 and (pairs := _near_pairs(features[chosen], looks[chosen])) is None:
        problem = "too many images look alike to this model"
    ends = np.empty((2, 0), np.int64) if pairs is None else pairs.numpy()
    edges = coo_matrix((np.ones(ends.shape[1]), ends), (len(first), len(first)))
    labels = connected_components(edges, directed=False)[1][kind]
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    found = [DuplicateGroup(group.tolist(), len({*kind[group].tolist()}) == 1) for group in groups if len(group) > 1]
    return sorted(found, key=lambda group: (not group.identical, group.positions)), problem


def _near_pairs(features: Tensor, looks: Tensor) -> Tensor | None:
    """Find the pairs of near duplicates among different images `(2, pairs)`; None if there are too many."""
    features = functional.normalize(features.float())
    features = functional.normalize(features - features.mean(0))
    looks = looks - looks.mean(0)
    looks, mirrored = (_standardized(images) for images in (looks, looks.flip(3)))
    starts, pairs, count = range(0, len(features), _BLOCK), [], 0
    for start in starts:
        rows = slice(start, start + _BLOCK)
        for other in starts[start // _BLOCK :]:
            columns = slice(other, other + _BLOCK)
            alike = torch.maximum(looks[rows] @ looks[columns].T, looks[rows] @ mirrored[columns].T).clamp_min_(0)
            alike *= features[rows] @ features[columns].T
            near = (alike > _ALIKE).nonzero() + torch.tensor([start, other], device="cpu")
            pairs.append(near[near[:, 0] < near[:, 1]].T)
            count += pairs[-1].shape[1]
            if count > _PARTNERS * len(features):
                return None
    return torch.cat(pairs, 1)


def _standardized(looks: Tensor) -> Tensor:
    """Return looks as vectors of mean 0 and norm 1, whose products are correlations."""
    vectors = looks.flatten(1)
    return functional.normalize(vectors - vectors.mean(1, keepdim=True))
