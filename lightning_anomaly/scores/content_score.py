"""Does a picture show something else? Judge it by what a network makes of it: its features and logits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.special import entr

from lightning_anomaly.network.features import SampleStatistics
from lightning_anomaly.scores.distributions import RobustGaussian

_MIN_SAMPLES = 8
_NEIGHBORS = 1024  # images among which neighbors are sought
_TRUSTED = 3  # the neighbor that counts among trusted images
_KNOWN = 10  # the one among images of classes that the network knows
_NEAREST = 0.1  # share of other images up to the one that counts: images odd in the same way are not their own
_NEAR = 0.88  # its typical squared distance, relative to that of any two images, from which on it tells nothing
_FEW = 4  # principal components that are taken instead
_ROUNDING = 1e-5  # distance of features of norm 1 that is rounding
_KNOWS = 0.25  # agreement of predictions times the share of classes in use, from which on a network knows the classes
_SURE = 0.7  # probability from which on a network is sure: of photographs of classes that it knows 98% are right


class Content(NamedTuple):
    """A model of the features and logits of ordinary images.

    The measure is the distance of features from a near neighbor, or, where few have a near one, a robust Mahalanobis
    distance; and, where the network knows the classes, the energy of the logits. Features have norm 1, since damaged
    images often have small ones (Mueller and Hein, "Mahalanobis++: Improving OOD detection via feature normalization",
    2025).
    """

    neighbors: Tensor  # features of up to 1,024 of the images `(m, D)`
    place: int  # which neighbor counts; an image that is among these is its own first one
    axes: Tensor  # directions along which a Mahalanobis distance is measured `(D, k)`
    gaussian: RobustGaussian | None  # the distribution along these; None where neighbors count
    knows: bool  # whether the network knows the classes of the images, so that small logits mean something

    @classmethod
    def fit(cls, samples: SampleStatistics, *, trusted: bool = False) -> Content | None:
        """Fit to samples, up to a tenth odd unless they are trusted; None if they are too few or identical."""
        if samples.features is None:
            return None
        samples = samples.select(samples.finite_rows(len(samples.features)))
        assert samples.features is not None
        if len(samples.features) < _MIN_SAMPLES:
            return None
        vectors, logits = normalize(samples.features.double()), samples.logits
        if not (vectors.amax(0) - vectors.amin(0)).max() > torch.finfo(torch.float32).eps:
            return None
        kept = _spread(vectors, _NEIGHBORS)
        neighbors = vectors[kept]
        distances = torch.cdist(neighbors, neighbors)
        knows = logits is not None and _knows_classes(distances, two_class_logits(logits[kept]))
        place = _TRUSTED if trusted else 1 + (_KNOWN if knows else round(_NEAREST * len(neighbors)))
        place = min(place, len(neighbors))
        centered = neighbors - neighbors.mean(0)
        near = 2 * _NEAR * centered.square().sum(1).mean()
        if trusted or knows or distances.kthvalue(place).values.square().median() < near:
            return cls(neighbors, place, centered.new_zeros(centered.shape[1], 0), None, knows)
        components = torch.linalg.eigh(centered @ centered.T)[1][:, -_FEW:]
        axes = normalize(centered.T @ components, dim=0)
        floors = torch.full((_FEW,), _ROUNDING, dtype=torch.float64, device="cpu")
        return cls(neighbors, place, axes, RobustGaussian.fit(vectors @ axes, floors), knows)

    def measure(self, samples: SampleStatistics) -> Tensor:
        """Compute the logarithm of a distance, and the energy, minus the log-sum-exp of the logits; infinite for NaN.

        Source: Liu, Wang, Owens and Li, "Energy-based out-of-distribution detection", 2020. Shape `(n, 1)` or `(n, 2)`.
        """
        assert samples.features is not None
        vectors = normalize(samples.features.double())
        if self.gaussian is None:
            distances = torch.cdist(vectors, self.neighbors).kthvalue(self.place).values.clamp(min=_ROUNDING)
        else:
            distances = self.gaussian.mahalanobis_squared(vectors @ self.axes)
        measures = [distances.log()]
        if self.knows:
            assert samples.logits is not None
            measures.append(-two_class_logits(samples.logits).logsumexp(1))
        measured = torch.stack(measures, 1)
        return torch.where(samples.finite_rows(len(measured))[:, None] & ~measured.isnan(), measured, torch.inf)

    def reasons(self, samples: SampleStatistics, strongest: Tensor, surprising: Tensor) -> tuple[str, ...]:
        """Say what the network sees in `surprising` images `(n,)`, by the index of their largest measure `(n,)`."""
        reasons = "unlike the others", "nothing that the network knows well"
        rows = zip(strongest.tolist(), network_sees(samples), surprising.tolist(), strict=True)
        return tuple(f"{reasons[measure]}{seen}" if told else "" for measure, seen, told in rows)


def _spread(vectors: Tensor, count: int) -> Tensor:
    """Choose up to `count` of the vectors `(n, D)`, the same in any order: evenly spaced along one random direction."""
    drawn = torch.Generator().manual_seed(0)
    along = vectors @ torch.randn(vectors.shape[1], generator=drawn, dtype=vectors.dtype, device="cpu")
    places = torch.linspace(0, len(vectors) - 1, min(count, len(vectors)), dtype=torch.float64, device="cpu")
    return along.argsort(stable=True)[places.round().long()]


def network_sees(samples: SampleStatistics) -> list[str]:
    """Say which class the network is sure to see in each sample, in parentheses; nothing without logits."""
    if samples.logits is None:
        return [""] * (0 if samples.features is None else len(samples.features))
    likeliest = two_class_logits(samples.logits).softmax(1).max(1)
    classes, sure = likeliest.indices.tolist(), (likeliest.values >= _SURE).tolist()
    known = samples.class_names if len(samples.class_names) > max(classes, default=0) else None
    names = [f"class {index}" if known is None else known[index] for index in classes]
    return [f" (the network sees {name})" if is_sure else "" for name, is_sure in zip(names, sure, strict=True)]


def two_class_logits(logits: Tensor) -> Tensor:
    """Return logits float64 `(n, C)`; one logit becomes the two whose difference it is."""
    logits = logits.double()
    return torch.cat([-logits / 2, logits / 2], 1) if logits.shape[1] == 1 else logits


def _knows_classes(distances: Tensor, logits: Tensor) -> bool:
    """Return whether a network knows the classes of m images with distances `(m, m)` and logits `(m, C)`.

    It predicts many of its classes, and one for an image and its neighbor more often than by chance (Cohen's kappa).
    """
    predicted = logits.argmax(1)
    nearest = distances.clone().fill_diagonal_(torch.inf).argmin(1)
    agreement = (predicted[nearest] == predicted).double().mean()
    shares = predicted.bincount().double() / len(predicted)
    chance = shares.square().sum()
    in_use = entr(shares).sum().exp() / logits.shape[1]
    return bool((agreement - chance) / (1 - chance) * in_use > _KNOWS)
