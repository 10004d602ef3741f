"""Does a picture show something else? Judge it by what a network makes of it: its features and logits."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.special import entr

from lightning_anomaly.network.features import SampleStatistics
from lightning_anomaly.scores.mahalanobis import RobustGaussian

_MIN_SAMPLES = 8
_NEIGHBORS = 512  # images, evenly spaced, among which neighbors are sought
_NEAREST = 0.1  # share of these up to the neighbor that counts: images odd in the same way are not their own
_NEAR = 0.88  # its typical squared distance, relative to that of any two images, from which on it tells nothing
_FEW = 4  # principal components that are taken instead
_ROUNDING = 1e-5  # distance of features of norm 1 that is rounding
_SMALL = 128  # features, up to which a network is small
_SURE = 0.7  # probability from which on a network is sure: of photographs of classes that it knows 98% are right
_KNOWN = 0.5  # share of what predictions could tell, from which on a network knows the classes of the images


class Content(NamedTuple):
    """A model of the features and logits of ordinary images.

    The measure is the distance of features from the neighbor beyond a tenth of the images, with two exceptions. Where
    images are of so many kinds that few have a near neighbor, it is a robust Mahalanobis distance along four principal
    components, where images that are odd in the same way stand out. For a small network that knows the classes of the
    images it is one along all features, and there is a second measure, the energy.

    Features are divided by their norms, since damaged images often have small features (Mueller and Hein,
    "Mahalanobis++: Improving OOD detection via feature normalization", 2025).

    Attributes:
        neighbors: Features of up to 512 of the images `(m, D)`, evenly spaced.
        axes: Directions along which a Mahalanobis distance is measured `(D, k)`.
        gaussian: The distribution along these; None where neighbors count.
        uses_energy: Whether the network is small and knows the classes, so that small logits mean something.
    """

    neighbors: Tensor
    axes: Tensor
    gaussian: RobustGaussian | None
    uses_energy: bool

    @classmethod
    def fit(cls, samples: SampleStatistics) -> Content | None:
        """Fit to samples, of which up to a tenth may be odd; return None if they are too few or identical."""
        if samples.features is None:
            return None
        samples = samples.select(samples.finite_rows(len(samples.features)))
        assert samples.features is not None
        if len(samples.features) < _MIN_SAMPLES:
            return None
        vectors, width = normalize(samples.features.double()), samples.features.shape[1]
        if not (vectors.amax(0) - vectors.amin(0)).max() > torch.finfo(torch.float32).eps:
            return None
        neighbors = vectors[:: -(-len(vectors) // _NEIGHBORS)]
        centered = neighbors - neighbors.mean(0)
        knows = width <= _SMALL and samples.logits is not None and _told_by(samples.logits) > _KNOWN
        if knows:
            axes = torch.eye(width, dtype=torch.float64, device="cpu")
        elif _neighbor_distances(neighbors, neighbors).square().median() < 2 * _NEAR * centered.square().sum(1).mean():
            return cls(neighbors, centered.new_zeros(width, 0), None, uses_energy=False)
        else:
            components = torch.linalg.eigh(centered @ centered.T)[1][:, -_FEW:]
            axes = normalize(centered.T @ components, dim=0)
        floors = torch.full((axes.shape[1],), _ROUNDING, dtype=torch.float64, device="cpu")
        return cls(neighbors, axes, RobustGaussian.fit(vectors @ axes, floors), knows)

    def measure(self, samples: SampleStatistics) -> Tensor:
        """Compute one or two measures `(n, m)`, infinite for NaN.

        They are the logarithm of a distance, and the energy, the negative log-sum-exp of the logits (Liu, Wang, Owens
        and Li, "Energy-based out-of-distribution detection", 2020).
        """
        assert samples.features is not None
        vectors = normalize(samples.features.double())
        if self.gaussian is None:
            measures = [_neighbor_distances(vectors, self.neighbors).log()]
        else:
            measures = [self.gaussian.mahalanobis_squared(vectors @ self.axes).log()]
        if self.uses_energy:
            assert samples.logits is not None
            measures.append(-two_sided(samples.logits).logsumexp(1))
        measured = torch.stack(measures, 1)
        return torch.where(samples.finite_rows(len(measured))[:, None] & ~measured.isnan(), measured, torch.inf)

    def reasons(self, samples: SampleStatistics, strongest: Tensor, surprising: Tensor) -> tuple[str, ...]:
        """Say what the network sees instead in each image with a `surprising` score `(n,)`.

        `strongest` is the index of its largest measure `(n,)`.
        """
        reasons = "unlike the others", "nothing that the network knows well"
        rows = zip(strongest.tolist(), network_sees(samples), surprising.tolist(), strict=True)
        return tuple(f"{reasons[measure]}{seen}" if told else "" for measure, seen, told in rows)


def network_sees(samples: SampleStatistics) -> list[str]:
    """Say which class the network is sure to see in each sample, in parentheses; nothing without logits."""
    if samples.logits is None:
        return [""] * (0 if samples.features is None else len(samples.features))
    found = two_sided(samples.logits).softmax(1).max(1)
    classes, sure = found.indices.tolist(), (found.values >= _SURE).tolist()
    known = samples.class_names if len(samples.class_names) > max(classes, default=0) else None
    names = [f"class {index}" if known is None else known[index] for index in classes]
    return [f" (the network sees {name})" if is_sure else "" for name, is_sure in zip(names, sure, strict=True)]


def two_sided(logits: Tensor) -> Tensor:
    """Return logits float64 `(n, C)`; one logit becomes the two whose difference it is."""
    logits = logits.double()
    return torch.cat([-logits / 2, logits / 2], 1) if logits.shape[1] == 1 else logits


def _neighbor_distances(vectors: Tensor, neighbors: Tensor) -> Tensor:
    """Compute the distances `(n,)` of vectors `(n, D)` from the neighbor that counts among `(m, D)`."""
    place = 1 + round(_NEAREST * len(neighbors))  # the first is the image itself, if it is among these
    return torch.cdist(vectors, neighbors).kthvalue(place).values.clamp(min=_ROUNDING)


def _told_by(logits: Tensor) -> float:
    """Return the mutual information of n images and C predicted classes, as a share of its largest, log min(n, C)."""
    probabilities = two_sided(logits).softmax(1)
    told: Tensor = entr(probabilities.mean(0)).sum() - entr(probabilities).sum(1).mean()
    return told.item() / math.log(min(probabilities.shape))
