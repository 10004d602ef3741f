"""Find the images that are most like one that may be filed wrongly: of its class, and of the class it looks like."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lightning_anomaly.network.features import join_known_tensors
from lightning_anomaly.outliers.image_reader import Batch
from lightning_anomaly.scores.label_score import class_indices

_NEAREST = 3


class NearestImages(NamedTuple):
    """The m images of a fit, among which those that are most alike are sought."""

    names: Sequence[str]  # of the classes
    classes: Tensor  # of the images, -1 for none `(m,)`
    positions: Tensor  # `(m,)`
    features: Tensor  # of norm 1 `(m, D)`

    @classmethod
    def of(cls, batches: Sequence[Batch], names: Sequence[str]) -> NearestImages | None:
        """Take the images of some batches; None if they have no features."""
        features = join_known_tensors([batch.samples.features for batch in batches])
        if features is None:
            return None
        classes = class_indices(names, [*chain.from_iterable(batch.labels for batch in batches)])
        classes[~features.sum(1).isfinite()] = -1
        return cls(names, classes, torch.cat([batch.positions for batch in batches]), normalize(features.float()))

    def find(
        self, positions: Tensor, features: Tensor, labels: Sequence[str | None], looks_like: Sequence[str]
    ) -> Tensor:
        """Return positions of the nearest images of its class, and of the one it looks like, `(n, 2, 3)`; -1 for none.

        They are sought for images that look like another class than their own.
        """
        found = torch.full((len(positions), 2, _NEAREST), -1, device="cpu")
        pairs = [*zip(labels, looks_like, strict=True)]
        accused = [row for row, (own, other) in enumerate(pairs) if own not in (None, other)]
        if accused:
            alike = normalize(features[accused].float()) @ self.features.T
            alike[positions[accused, None] == self.positions] = -torch.inf
            for side, names in enumerate(zip(*(pairs[row] for row in accused), strict=True)):
                of_class = class_indices(self.names, names)[:, None] == self.classes
                near = alike.masked_fill(~of_class, -torch.inf).topk(_NEAREST)
                found[accused, side] = self.positions[near.indices].where(near.values.isfinite(), -1)
        return found
