"""What finds images that do not belong, besides this package: detectors of pytorch-ood and PyOD, and CleanVision.

Every score is larger the less an image belongs. A detector is fitted to reference images, or to the very images that it
scores. Those whose package is missing are left out: all are in the extra `rivals`. Axes: `N` images.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms.functional import to_pil_image

from recipes.experiments.measures.pool import append_found, make_pool
from recipes.experiments.measures.scores import auroc
from recipes.experiments.spec import Training

RIVALS = (
    "pixels: Mahalanobis", "pixels: ECOD", "pixels: isolation forest", "pixels: LOF", "CleanVision",
    "features: ViM", "features: Mahalanobis", "features: relative Mahalanobis", "features: kNN", "features: ECOD",
    "features: isolation forest", "features: LOF", "layers: Mahalanobis", "layers: Gram", "logits: energy",
)  # fmt: skip
# CleanVision calls an image an issue if its score is below the threshold: its own values. Other types have none.
_THRESHOLDS = {"dark": 0.32, "light": 0.05, "blurry": 0.29, "low_information": 0.3}
_PREVALENCE = 0.5  # of an issue from which on CleanVision does not report it


@dataclass(frozen=True, eq=False)
class Seen:
    """What rivals see of images.

    Attributes:
        logits: The network's output `(N, C)`.
        features: What its last layer is given `(N, D)`.
        means: Of the maps of each stage, by filter `(N, F)`.
        pixels: See `pixel_statistics`.
    """

    logits: Tensor
    features: Tensor
    means: tuple[Tensor, ...]
    pixels: Tensor

    def __getitem__(self, chosen: Tensor) -> Seen:
        means = tuple(own[chosen] for own in self.means)
        return Seen(self.logits[chosen], self.features[chosen], means, self.pixels[chosen])


def stages(network: nn.Sequential) -> tuple[list[nn.Sequential], nn.Sequential]:
    """Cut a network behind the convolutional parts that end in a ReLU, and return what follows these as well."""
    layers = [*network]
    inside = nn.Conv2d, nn.BatchNorm2d, nn.GroupNorm, nn.MaxPool2d
    pooled = next(place for place, layer in enumerate(layers) if isinstance(layer, nn.AdaptiveAvgPool2d))
    ends = [place + 1 for place, layer in enumerate(layers[:pooled]) if not isinstance(layer, inside)]
    parts = [nn.Sequential(*layers[start:end]) for start, end in pairwise([0, *ends])]
    return parts, nn.Sequential(*layers[ends[-1] :])


def look_at(network: nn.Sequential, inputs: Tensor, images: Tensor) -> Seen:
    """Run a network that ends in a linear layer on normalised `inputs` `(N, C, H, W)`; `images` are the same, uint8."""
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
    logits, features, *means = (torch.cat(own) for own in zip(*rows, strict=True))
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
    """Scores `(N,)` of images by those `RIVALS` that need no second look at them.

    Detectors are fitted to the reference (None: to the images themselves) with its labels (None: the predicted ones).
    `last` is the network's last layer.
    """
    fitted = seen if reference is None else reference
    known = fitted.logits.argmax(1) if labels is None else labels
    found = {"pixels: Mahalanobis": _mahalanobis(seen.pixels, fitted.pixels)}
    with contextlib.suppress(ImportError):
        found |= _pytorch_ood(seen, last, fitted, torch.unique(known, return_inverse=True)[1])
    with contextlib.suppress(ImportError):
        for name in ("pixels", "features"):
            found |= _pyod(name, getattr(seen, name), None if reference is None else getattr(reference, name))
    return found


def _mahalanobis(pixels: Tensor, reference: Tensor) -> Tensor:
    """Squared Mahalanobis distances under a shrunk covariance (Ledoit and Wolf, 2004), of standardised statistics."""
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
    found = {"logits: energy": EnergyBased.score(seen.logits)}
    for name, detector in detectors.items():
        found[name] = detector.fit_features(fitted.features, labels).predict_features(seen.features)
    layers = MultiMahalanobis([nn.Identity()] * len(seen.means)).fit_structured([*fitted.means], labels)
    # It makes a matrix of all pairs of samples.
    parts = zip(*(torch.split(own, 256) for own in seen.means), strict=True)
    found["layers: Mahalanobis"] = torch.cat([layers.predict_structured([*own]) for own in parts])
    return found


def _pyod(name: str, values: Tensor, reference: Tensor | None) -> dict[str, Tensor]:
    from pyod.models.ecod import ECOD
    from pyod.models.iforest import IForest
    from pyod.models.lof import LOF

    found = {}
    detectors = {"ECOD": ECOD(), "isolation forest": IForest(random_state=0), "LOF": LOF()}
    if name == "features" and reference is None:
        del detectors["isolation forest"]  # most of the time, for the weakest of all
    for title, detector in detectors.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of its own dependencies
            detector.fit((values if reference is None else reference).numpy())
            scores = detector.decision_scores_ if reference is None else detector.decision_function(values.numpy())
        found[f"{name}: {title}"] = torch.from_numpy(np.asarray(scores, dtype=np.float64))
    return found


def gram_scores(network: nn.Sequential, inputs: Tensor, reference: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Score images `(N, C, H, W)` by the Gram matrices of the maps of all stages, beside a reference with labels."""
    try:
        from pytorch_ood.detector import Gram
    except ImportError:
        return {}
    parts, head = stages(network)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)  # it draws what it calibrates by
        gram = Gram(head, parts, head[-1].out_features)
        gram.fit(DataLoader(TensorDataset(reference, labels), 256))
        return {"layers: Gram": torch.cat([gram.predict(batch) for batch in torch.split(inputs, 256)])}


def cleanvision_scores(images: Tensor) -> dict[str, Tensor]:
    """Score images uint8 `(N, C, H, W)` by all types of issues that CleanVision knows.

    It has a score for each type, from 1 down to 0, and for some a threshold below which an image has that issue. Ours
    is minus the smallest ratio of a score to its threshold, so that the order is that in which images become issues;
    types without one count where it calls an image an issue, and those that it does not report not at all.
    """
    try:
        from cleanvision import Imagelab
    except ImportError:
        return {}
    pictures = [(to_pil_image(image),) for image in images]
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # its bars cannot be turned off
        warnings.simplefilter("ignore")  # those of its own dependencies
        lab = Imagelab(torchvision_dataset=pictures, verbose=False)
        lab.find_issues(n_jobs=1, verbose=False)

    def column(name: str) -> Tensor:
        return torch.from_numpy(lab.issues[name].to_numpy(dtype="float64", copy=True))

    ratios = []
    for name in [column[:-6] for column in lab.issues if column.endswith("_score")]:
        score, issue = column(f"{name}_score"), column(f"is_{name}_issue") > 0
        if issue.double().mean() <= _PREVALENCE:
            graded = name in _THRESHOLDS
            ratios.append(score / _THRESHOLDS[name] if graded else torch.where(issue, score, torch.inf))
    return {"CleanVision": -torch.stack(ratios).amin(0)}


def measure_rivals(training: Training, root: str | None, weights: str | None) -> dict[str, Any]:
    """Train, and let rivals score.

    Returns:
        Of a network that was trained on damaged images `trained_on`, AUROCs by kind and score; else `probe`, likewise
        by kind, share and score, one for each probe, and `reference`, by kind and score.
    """
    pool = make_pool(training, root, weights)
    network, last = pool.network, pool.network[-1]
    assert isinstance(last, nn.Linear)
    if pool.planted:
        train, inputs, labels = pool.trained_on
        own = {
            **rival_scores(look_at(network, inputs, train), last, None, labels),
            **gram_scores(network, inputs, inputs, labels),
            **cleanvision_scores(train),
        }
        return {"trained_on": pool.among_trained(own)}
    seen, (train, inputs, labels) = look_at(network, pool.inputs, pool.images), pool.reference
    beside = {
        **rival_scores(seen, last, look_at(network, inputs, train), labels),
        **gram_scores(network, pool.inputs, inputs, labels),
    }
    # Duplicates are looked for among images of one kind.
    parts = [pool.images[: pool.clean], *(pool.images[places] for places in pool.damaged.values())]
    pixels = [cleanvision_scores(part) for part in parts]
    alone = {name: torch.cat([part[name] for part in pixels]) for name in pixels[0]}
    probe: dict[str, Any] = {}
    for kind, share, chosen, truth in pool.probes():
        found = rival_scores(seen[chosen], last) | {name: own[chosen] for name, own in alone.items()}
        append_found(probe, kind, share, {name: auroc(truth, own) for name, own in found.items()})
    return {"probe": probe, "reference": pool.by_kind(beside | alone)}
