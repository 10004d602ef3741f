"""The views of a sample beside that of the filters, see `outliers/scores.py`: its pixels, and its classes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_anomaly.capture.samples import SampleStatistics
from lightning_anomaly.outliers.combine import SampleView
from lightning_anomaly.outliers.directions import Vectors
from lightning_anomaly.outliers.mahalanobis import RobustGaussian
from lightning_anomaly.outliers.pixel_words import PixelWords
from lightning_anomaly.outliers.scores import Spread

_DIRECTIONS = 32  # of the features, at most
_SAMPLES_PER_DIRECTION = 40


class PixelView(NamedTuple):
    """What ordinary pixels look like: the distribution of `pixel_statistics`."""

    model: RobustGaussian
    words: PixelWords

    @classmethod
    def fit(cls, samples: SampleStatistics) -> PixelView | None:
        """Fit to samples; None if they are no images, too few or all the same."""
        model = None if samples.pixels is None else RobustGaussian.fit(samples.pixels)
        if model is None or samples.pixels is None:
            return None
        return cls(model, PixelWords.fit(samples.pixels, samples.shape))

    def view(self, samples: SampleStatistics) -> SampleView:
        """Score samples by their squared Mahalanobis distances, with the rarest property as the reason."""
        assert samples.pixels is not None
        reasons = self.words.reasons(samples.pixels, samples.shape)
        return SampleView(self.model.mahalanobis_squared(samples.pixels), reasons)


class ClassView(NamedTuple):
    """What ordinary inputs of the last linear layer look like, and how sure its outputs are.

    As in ViM (Wang, Li, Feng and Zhang, "ViM: Out-Of-Distribution with Virtual-logit Matching", 2022), features and
    logits are judged together: features by their Mahalanobis distance along principal components and by what these
    leave of them, logits by their energy (Liu, Wang, Owens and Li, "Energy-based Out-of-distribution Detection", 2020).

    Attributes:
        mean: Mean of the features `(D,)`.
        axes: Their first principal components `(D, k)`.
        model: Distribution of their coordinates and of the log of the squared norm of what is left `(k + 1,)`.
        spread: Of distances and energies.
    """

    mean: Tensor
    axes: Tensor
    model: RobustGaussian
    spread: Spread

    @classmethod
    def fit(cls, samples: SampleStatistics) -> ClassView | None:
        """Fit to samples; None if the model has no classes, or if features are too few or all the same."""
        if samples.features is None or samples.logits is None:
            return None
        finite = (samples.features.isfinite().all(1) & samples.logits.logsumexp(1).isfinite()).nonzero()[:, 0]
        count = min(_DIRECTIONS, samples.features.shape[1], len(finite) // _SAMPLES_PER_DIRECTION)
        if count == 0:
            return None
        mean = samples.features[finite].mean(0)
        centered = samples.features[finite] - mean
        scale = centered.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)  # of vectors of order one
        axes = Vectors(centered / scale).directions(torch.arange(len(finite), device="cpu"), count).axes
        axes = axes / axes.norm(dim=0)
        model = RobustGaussian.fit(_coordinates(samples.features, mean, axes))
        if model is None:
            return None
        return cls(mean, axes, model, Spread.fit(_parts(samples, mean, axes, model)))

    def view(self, samples: SampleStatistics) -> SampleView:
        """Score samples by the sum of standardised distance and energy, the larger of which is the reason."""
        assert samples.logits is not None
        parts = self.spread.standardized(_parts(samples, self.mean, self.axes, self.model))
        scores = parts.sum(1)
        count = samples.logits.shape[1]
        known = samples.class_names if len(samples.class_names) == count else [f"class {i}" for i in range(count)]
        predicted = [known[place] for place in samples.logits.argmax(1).tolist()]
        reasons = tuple(
            f"small logits for every class, of which {name} has the largest"
            if unsure
            else f"predicted {name} from unusual features"
            for name, unsure in zip(predicted, (parts[:, 1] > parts[:, 0]).tolist(), strict=True)
        )
        return SampleView(torch.where(scores.isfinite(), scores, torch.inf), reasons)


def _parts(samples: SampleStatistics, mean: Tensor, axes: Tensor, model: RobustGaussian) -> Tensor:
    """Distances of the features and energies of the logits `(n, 2)`."""
    assert samples.features is not None
    assert samples.logits is not None
    distance = model.mahalanobis_squared(_coordinates(samples.features, mean, axes)).sqrt()
    return torch.stack([distance, -samples.logits.double().logsumexp(1)], 1)


def _coordinates(features: Tensor, mean: Tensor, axes: Tensor) -> Tensor:
    """Coordinates of features `(n, D)` along the axes, and the log of the squared norm of the rest `(n, k + 1)`."""
    centered = features - mean
    along = centered @ axes
    rest = (centered.square().sum(1) - along.square().sum(1)).clamp(min=0)
    if axes.shape[0] == axes.shape[1]:  # rounding is all that is left
        return along
    return torch.cat([along, (rest + torch.finfo(rest.dtype).eps * centered.square().sum(1)).log()[:, None]], 1)


def fit_views(samples: SampleStatistics) -> dict[str, PixelView | ClassView]:
    """Fit each view that the samples have; one that cannot be fitted is left out."""
    fitted = {"pixels": PixelView.fit(samples), "classes": ClassView.fit(samples)}
    return {name: view for name, view in fitted.items() if view is not None}


def view_samples(samples: SampleStatistics) -> dict[str, SampleView]:
    """View samples among themselves."""
    return {name: view.view(samples) for name, view in fit_views(samples).items()}
