"""Find images that are identical, and near duplicates: the same photograph scaled, cropped, mirrored or saved again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn import functional

from lightning_anomaly.capture.samples import join_known
from lightning_anomaly.images.source import image_hashes, scaled

_SIDE = 8  # of a look (pixels)
_ALIKE = 0.5  # smallest similarity of near duplicates, chosen on planted copies: docs/results/duplicates.md
_BLOCK = 1024  # images that are compared with as many others at once
_PAIRS = 2**12  # pairs whose features are compared at once
_PARTNERS = 10  # near duplicates for each image, on average, up to which they are listed
_MOST = 100_000  # images among which near duplicates are sought, as the time grows with their square


class DuplicateGroup(NamedTuple):
    """Images that are duplicates of each other.

    Attributes:
        positions: Their positions in the data set, in order.
        identical: Whether all of them are identical.
        reference: Images of the reference among them: names of files, or else positions.
    """

    positions: list[int]
    identical: bool
    reference: list[str | int]


class Traces(NamedTuple):
    """What tells N images from each other.

    Attributes:
        hashes: Hashes of all their values, integers of 64 bits `(N,)`.
        looks: Their pictures in grey, reduced to 8x8 pixels `(N, 8, 8)`; None for signals and volumes.
        features: A network's features of them, scaled to norm 1, in half precision `(N, D)`; None if there are none.
    """

    hashes: Tensor
    looks: Tensor | None
    features: Tensor | None

    @classmethod
    def of(cls, pictures: Tensor, features: Tensor | None) -> Traces:
        """Take the traces of pictures `(N, ...)` and of a network's features of them."""
        hashes = torch.tensor(image_hashes(pictures), dtype=torch.int64, device="cpu")
        looks = None
        if pictures.ndim == 4:
            looks = functional.adaptive_avg_pool2d(scaled(pictures).float().mean(1), _SIDE).cpu()
        if features is not None:
            features = functional.normalize(features.float()).nan_to_num().half().cpu()
        return cls(hashes, looks, features)

    @staticmethod
    def join(parts: Sequence[Traces]) -> Traces:
        """Join parts; what a part lacks becomes None."""
        hashes, looks, features = zip(*parts, strict=True)
        return Traces(torch.cat(hashes), join_known(looks), join_known(features))

    def select(self, images: Tensor) -> Traces:
        """Select images by an index or a mask."""
        looks, features = (None if part is None else part[images] for part in (self.looks, self.features))
        return Traces(self.hashes[images], looks, features)


def find_duplicates(traces: Traces) -> tuple[list[tuple[list[int], bool]], str]:
    """Group images of equal hashes, and near duplicates, which are alike in features and in looks.

    Features are centered; looks are centered by the mean look and by their own mean, and compared mirrored too. The
    similarity of two images is the product of both cosines. Duplicates of duplicates are in one group. Near duplicates
    need features and looks.

    Returns:
        Groups of images and whether all in it are identical, those of identical images before the others, each in the
        order of their first images; and, if there are too many images for near duplicates, a sentence that says so.
    """
    _, first, kind = np.unique(traces.hashes.numpy(), return_index=True, return_inverse=True)
    different, pairs, problem = traces.select(torch.from_numpy(first)), None, ""
    if len(first) > _MOST:
        problem = f"Near duplicates are sought among up to {_MOST:,} images: there are {len(first):,}."
    elif len(first) > 1 and different.features is not None and different.looks is not None:
        pairs = _near_pairs(different.features, different.looks)
        if pairs is None:
            problem = "Near duplicates are not listed, as too many images are alike in what the model sees in them."
    ends = np.empty((2, 0), np.int64) if pairs is None else pairs.numpy()
    edges = coo_matrix((np.ones(ends.shape[1]), ends), (len(first), len(first)))
    labels = connected_components(edges, directed=False)[1][kind]
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    found = [(group.tolist(), len({*kind[group].tolist()}) == 1) for group in groups if len(group) > 1]
    return sorted(found, key=lambda group: (not group[1], group[0])), problem


def _near_pairs(features: Tensor, looks: Tensor) -> Tensor | None:
    """Find the pairs of near duplicates among different images `(2, pairs)`; None if there are too many."""
    features = features.float()
    features = functional.normalize(features - features.mean(0))
    vectors = (looks - looks.mean(0)).flatten(1)
    looks = functional.normalize(vectors - vectors.mean(1, keepdim=True)).view_as(looks)
    # Halves that are equal and opposite in the mirror: products with a look and with its mirror image are their sum and
    # their difference.
    left, right = looks[..., : _SIDE // 2], looks.flip(2)[..., : _SIDE // 2]
    even, odd = ((half / 2**0.5).flatten(1) for half in (left + right, left - right))
    starts, pairs, count = range(0, len(features), _BLOCK), [], 0
    for start in starts:
        rows = slice(start, start + _BLOCK)
        for other in starts[start // _BLOCK :]:
            columns = slice(other, other + _BLOCK)
            alike = (odd[rows] @ odd[columns].T).abs_().addmm_(even[rows], even[columns].T)
            near = (alike > _ALIKE).nonzero()
            near = near[near[:, 0] + start < near[:, 1] + other]
            similar = _products(features[rows], features[columns], near)
            near = near[alike[near[:, 0], near[:, 1]] * similar > _ALIKE]
            pairs.append((near + torch.tensor([start, other], device="cpu")).T)
            count += len(near)
            if count > _PARTNERS * len(features):
                return None
    return torch.cat(pairs, 1)


def _products(first: Tensor, second: Tensor, pairs: Tensor) -> Tensor:
    """Compute the products of pairs of vectors `(pairs,)`, of which there are few unless most images look alike."""
    if 50 * len(pairs) > len(first) * len(second):
        return (first @ second.T)[pairs[:, 0], pairs[:, 1]]
    parts = [(first[part[:, 0]] * second[part[:, 1]]).sum(1) for part in torch.split(pairs, _PAIRS)]
    return torch.cat(parts)
