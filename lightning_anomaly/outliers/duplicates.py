"""Find images that are identical, and near duplicates: the same photograph scaled, cropped, mirrored or saved again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations_with_replacement, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn import functional

from lightning_anomaly._internal.threads import torch_in_threads
from lightning_anomaly.images.source import image_hashes, scaled
from lightning_anomaly.network.features import join_known

_SIDE = 8  # of a look (pixels)
_ALIKE = 0.5  # smallest similarity of near duplicates, chosen on planted copies: docs/results/duplicates.md
_BLOCK = 2048  # images that are compared with as many others at once
_BLOCKS = 8  # pairs of blocks that are compared before near duplicates are counted
_PAIRS = 64  # pairs whose features are compared at once, so that they stay in the cache
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


class Fingerprints(NamedTuple):
    """What tells N images from each other.

    Attributes:
        hashes: Hashes of all their values, integers of 64 bits `(N,)`.
        looks: The images in gray, reduced to 8x8 pixels `(N, 8, 8)`; None for signals and volumes.
        features: A network's features of them, scaled to norm 1, in half precision `(N, D)`; None if there are none.
    """

    hashes: Tensor
    looks: Tensor | None
    features: Tensor | None

    @classmethod
    def of(cls, images: Tensor, features: Tensor | None) -> Fingerprints:
        """Take the fingerprints of images `(N, ...)` and of a network's features of them."""
        hashes = torch.tensor(image_hashes(images), dtype=torch.int64, device="cpu")
        looks = None
        if images.ndim == 4:
            looks = functional.adaptive_avg_pool2d(scaled(images).float().mean(1), _SIDE).cpu()
        if features is not None:
            features = functional.normalize(features.float()).half().nan_to_num_().cpu()
        return cls(hashes, looks, features)

    @staticmethod
    def join(parts: Sequence[Fingerprints]) -> Fingerprints:
        """Join parts; what a part lacks becomes None."""
        hashes, looks, features = zip(*parts, strict=True)
        return Fingerprints(torch.cat(hashes), join_known(looks), join_known(features))


def members(groups: Iterable[DuplicateGroup]) -> list[int]:
    """List the positions of the images in all groups, each once."""
    return [*dict.fromkeys(position for group in groups for position in group.positions)]


def find_duplicates(
    fingerprints: Fingerprints, images: Tensor | None = None
) -> tuple[list[tuple[list[int], bool]], str]:
    """Group images of equal hashes, and near duplicates, which are alike in features and in looks.

    The `images` to compare are an index into the fingerprints `(n,)`, by default all. Features are centered; looks are
    centered by the mean look and by their own mean, and compared mirrored too. The similarity of two images is the
    product of both cosines. Duplicates of duplicates are in one group. Near duplicates need features and looks. Images
    that are identical and have near duplicates are in two groups.

    Returns:
        Groups of places in the index and whether all in them are identical, those of identical images before the
        others, each in the order of their first images; and, if there are too many images for near duplicates, a
        sentence that says so.
    """
    images = torch.arange(len(fingerprints.hashes), device="cpu") if images is None else images
    _, first, kind = np.unique(fingerprints.hashes[images].numpy(), return_index=True, return_inverse=True)
    pairs, problem = None, ""
    if len(first) > _MOST:
        problem = f"Near duplicates are sought among up to {_MOST:,} images: there are {len(first):,}."
    elif len(first) > 1 and fingerprints.features is not None and fingerprints.looks is not None:
        pairs = _near_pairs(fingerprints.features, fingerprints.looks[images[first]], images[first])
        if pairs is None:
            problem = "Near duplicates are not listed, as too many images are alike in what the model sees in them."
    ends = np.empty((2, 0), np.int64) if pairs is None else pairs.numpy()
    edges = coo_matrix((np.ones(ends.shape[1]), ends), (len(first), len(first)))
    near = connected_components(edges, directed=False)[1][kind]
    identical = [(group.tolist(), True) for group in _equal(kind)]
    alike = [(group.tolist(), False) for group in _equal(near) if (kind[group] != kind[group[0]]).any()]
    return [*sorted(identical), *sorted(alike)], problem


def _equal(labels: Any) -> list[Any]:
    """Group the places of equal labels `(n,)`, in order; single ones are in no group."""
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return [group for group in groups if len(group) > 1]


def _near_pairs(features: Tensor, looks: Tensor, images: Tensor) -> Tensor | None:
    """Find the pairs of near duplicates among different images, an index `(2, pairs)`; None if there are too many.

    Features are those of all images `(N, D)`, looks those of the n that `images` selects.
    """
    mean = sum(features[part].float().sum(0) for part in torch.split(images, _PAIRS)) / len(images)

    def centered(chosen: Tensor | slice) -> Tensor:
        return features[images[chosen]].float().sub_(mean)

    vectors = (looks - looks.mean(0)).flatten(1)
    looks = functional.normalize(vectors - vectors.mean(1, keepdim=True)).view_as(looks)
    # Halves that are equal and opposite in the mirror: products with a look and with its mirror image are their sum and
    # their difference.
    halves = looks + looks.flip(2), looks - looks.flip(2)
    even, odd = (half[..., : _SIDE // 2].flatten(1) / 2**0.5 for half in halves)

    def near(block: tuple[int, int]) -> Tensor:
        rows, columns = (slice(start, start + _BLOCK) for start in block)
        alike = (odd[rows] @ odd[columns].T).abs_().addmm_(even[rows], even[columns].T)
        some = (alike.amax(1) > _ALIKE).nonzero()[:, 0]  # few rows, unless most images look alike
        place, column = (alike[some] > _ALIKE).nonzero().unbind(1)
        row = some[place]
        once = row + rows.start < column + columns.start
        row, column = row[once], column[once]
        found = torch.stack([row + rows.start, column + columns.start])
        if 50 * len(row) > alike.numel():
            similar = (functional.normalize(centered(rows)) @ functional.normalize(centered(columns)).T)[row, column]
        else:
            parts = torch.split(found, _PAIRS, 1)
            similar = torch.cat([functional.cosine_similarity(centered(a), centered(b)) for a, b in parts])
        return found[:, alike[row, column] * similar > _ALIKE]

    blocks, pairs = combinations_with_replacement(range(0, len(images), _BLOCK), 2), list[Tensor]()
    while some_blocks := list(islice(blocks, _BLOCKS)):
        pairs += torch_in_threads(near, some_blocks)
        if sum(part.shape[1] for part in pairs) > _PARTNERS * len(images):
            return None
    return torch.cat(pairs, 1)
