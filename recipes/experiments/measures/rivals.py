"""Other detectors of outlier images, of pytorch-ood and PyOD.

Larger scores are odder. A detector is fitted to reference images, or to the images that it scores. Detectors whose
package is missing are left out; the extra `rivals` has all packages. Axes: `N` images.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor, nn

RIVALS = (
    "pixels: Mahalanobis", "pixels: ECOD", "pixels: LOF", "features: ViM", "features: Mahalanobis",
    "features: relative Mahalanobis", "features: kNN", "layers: Mahalanobis", "logits: energy", "logits: maximum",
    "logits: softmax",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Seen:
    """The inputs of the rivals.

    Attributes:
        logits: The network's output `(N, C)`.
        features: The input of its last layer `(N, D)`.
        means: Means of the maps of each stage by filter `(N, F)`.
        pixels: See `pixel_statistics`.
    """

    logits: Tensor
    features: Tensor
    means: tuple[Tensor, ...]
    pixels: Tensor

    @staticmethod
    def join(parts: Sequence[Seen]) -> Seen:
        """Concatenate the inputs of several groups of images."""
        means = tuple(torch.cat(stage) for stage in zip(*(part.means for part in parts), strict=True))
        logits, features, pixels = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("logits", "features", "pixels")
        )
        return Seen(logits, features, means, pixels)

    def __getitem__(self, chosen: Tensor) -> Seen:
        means = tuple(stage[chosen] for stage in self.means)
        return Seen(self.logits[chosen], self.features[chosen], means, self.pixels[chosen])


def stages(network: nn.Sequential) -> tuple[list[nn.Sequential], nn.Sequential]:
    """Cut a network into its convolutional parts, each ending in a ReLU, and the layers behind them."""
    layers = [*network]
    inside = nn.Conv2d, nn.BatchNorm2d, nn.GroupNorm, nn.MaxPool2d
    pooled = next(place for place, layer in enumerate(layers) if isinstance(layer, nn.AdaptiveAvgPool2d))
    ends = [place + 1 for place, layer in enumerate(layers[:pooled]) if not isinstance(layer, inside)]
    parts = [nn.Sequential(*layers[start:end]) for start, end in pairwise([0, *ends])]
    return parts, nn.Sequential(*layers[ends[-1] :])


def look_at(network: nn.Sequential, inputs: Tensor, images: Tensor) -> Seen:
    """Run a network that ends in a linear layer on normalized `inputs` `(N, C, H, W)`; `images` are the same, uint8."""
    parts, head = stages(network)
    rows = []
    with torch.no_grad():
        for maps in torch.split(inputs, 256):
            means = []
            for part in parts:
                maps = part(maps)
                means.append(maps.mean((2, 3)))
            features = head[:-1](maps)
            rows.append((head[-1](features), features, *means))
    logits, features, *means = (torch.cat(column) for column in zip(*rows, strict=True))
    return Seen(logits, features, tuple(means), pixel_statistics(images))


def pixel_statistics(images: Tensor) -> Tensor:
    """Summarise images uint8 `(N, C, H, W)` by 13 numbers each, or 17 with colours: float64 `(N, 17)`.

    Mean, standard deviation, median, minimum and maximum of the grey values; mean and largest absolute difference of
    neighbours along rows and along columns; shares above 250 and below 5; logarithms of the energies of low and of high
    frequencies; of each channel the mean beside that of the grey values, and the mean spread of a pixel's channels.
    """
    images = images.double()
    grey = images.mean(1)
    flat = grey.flatten(1)
    rows, columns = grey.diff(dim=2).abs().flatten(1), grey.diff(dim=1).abs().flatten(1)
    energy = torch.fft.fft2(grey - grey.mean((1, 2), keepdim=True)).abs().square()
    height, width = (torch.fft.fftfreq(side) for side in grey.shape[1:])
    low = (height[:, None].square() + width.square()).sqrt() < 0.25
    found = [
        *(flat.mean(1), flat.std(1), flat.median(1).values, flat.amin(1), flat.amax(1)),
        *(rows.mean(1), rows.amax(1), columns.mean(1), columns.amax(1)),
        *((flat > 250).double().mean(1), (flat < 5).double().mean(1)),
        *(energy[:, part].sum(1).log1p() for part in (low, ~low)),
    ]
    if images.shape[1] > 1:
        found += [*(images.mean((2, 3)) - grey.mean((1, 2))[:, None]).T, images.std(1).mean((1, 2))]
    return torch.stack(found, 1)


def rival_scores(
    seen: Seen, last: nn.Linear, reference: Seen | None = None, labels: Tensor | None = None
) -> dict[str, Tensor]:
    """Compute the scores `(N,)` of images by all installed `RIVALS`.

    Detectors are fitted to the reference (None: to the images themselves) with its labels (None: the predicted ones).
    `last` is the network's last layer.
    """
    fitted = seen if reference is None else reference
    classes = fitted.logits.argmax(1) if labels is None else labels
    scores = {"pixels: Mahalanobis": _mahalanobis(seen.pixels, fitted.pixels)}
    with contextlib.suppress(ImportError):
        scores |= _pytorch_ood(seen, last, fitted, torch.unique(classes, return_inverse=True)[1])
    with contextlib.suppress(ImportError):
        scores |= _pyod(seen.pixels, None if reference is None else reference.pixels)
    return scores


def _mahalanobis(pixels: Tensor, reference: Tensor) -> Tensor:
    """Compute squared Mahalanobis distances of standardised statistics (covariance of Ledoit and Wolf, 2004)."""
    std, mean = torch.std_mean(reference, 0)
    scale = torch.where(std > 0, std, 1)
    fit = LedoitWolf().fit(((reference - mean) / scale).numpy())
    return torch.from_numpy(fit.mahalanobis(((pixels - mean) / scale).numpy()))


def _pytorch_ood(seen: Seen, last: nn.Linear, fitted: Seen, labels: Tensor) -> dict[str, Tensor]:
    from pytorch_ood.detector import KNN, RMD, EnergyBased, Mahalanobis, MultiMahalanobis, ViM

    width = seen.features.shape[1]
    detectors = {
        "features: ViM": ViM(None, width // 2, last.weight, last.bias),
        "features: Mahalanobis": Mahalanobis(None),
        "features: relative Mahalanobis": RMD(None),
        "features: kNN": KNN(None),
    }
    found = {
        "logits: energy": EnergyBased.score(seen.logits),
        "logits: maximum": -seen.logits.amax(1),
        "logits: softmax": -seen.logits.softmax(1).amax(1),
    }
    for name, detector in detectors.items():
        found[name] = detector.fit_features(fitted.features, labels).predict_features(seen.features)
    layers = MultiMahalanobis([nn.Identity()] * len(seen.means)).fit_structured([*fitted.means], labels)
    # In parts, because it makes a matrix of all pairs of samples.
    parts = zip(*(torch.split(stage, 256) for stage in seen.means), strict=True)
    found["layers: Mahalanobis"] = torch.cat([layers.predict_structured([*part]) for part in parts])
    return found


def _pyod(values: Tensor, reference: Tensor | None) -> dict[str, Tensor]:
    from pyod.models.ecod import ECOD
    from pyod.models.lof import LOF

    found = {}
    for title, detector in {"ECOD": ECOD(), "LOF": LOF()}.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of its own dependencies
            detector.fit((values if reference is None else reference).numpy())
            scores = detector.decision_scores_ if reference is None else detector.decision_function(values.numpy())
        found[f"pixels: {title}"] = torch.from_numpy(np.asarray(scores, dtype=np.float64))
    return found
