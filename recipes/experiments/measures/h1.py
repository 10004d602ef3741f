"""H1: does the number of anomaly filters rise with overfitting? The measurements after every epoch."""

from __future__ import annotations

from typing import Any

import torch
from scipy.stats import kurtosis
from torch import Tensor, nn
from torch.nn import functional

from lightning_anomaly import AnalysisSettings, analyze
from lightning_anomaly.report import LayerReport
from recipes.common.module import evaluate_parts
from recipes.experiments.fitting import Images, every_epoch, prepare, watched_layers
from recipes.experiments.measures.gradients import batch_disparity
from recipes.experiments.spec import Training

# By reading: settings and the part that the probe is taken from, and the stored statistics.
_DEFAULT, _RAW, _PAPER = AnalysisSettings(), AnalysisSettings(rectify=False), AnalysisSettings.paper()
_READINGS = {"val": (_DEFAULT, "val"), "val_unrectified": (_RAW, "val"), "val_paper": (_PAPER, "val"),
             "train": (_DEFAULT, "train")}  # fmt: skip
_KEPT = {"val_unrectified": ("count", "live"), "val_paper": ("count", "live"), "train": ("count", "live", "separation")}
_FIXED = 1024  # training images whose predictions are compared from epoch to epoch


def _silent_share(points: Tensor) -> Tensor:
    """Compute the share `(F,)` of samples on the median of points `(F, N, 2)`: near 1 for a mostly empty map."""
    return (points == points.median(1, keepdim=True).values).all(2).double().mean(1)


def _gap(points: Tensor, outliers: Tensor) -> Tensor:
    """Compute the smallest distance `(F,)` of an outlier, bool `(F, N)`, from another sample, in the points' unit."""
    pairs = zip(points, outliers, strict=True)
    gaps = [torch.cdist(points[chosen], points[~chosen]).min() if chosen.any() else 0.0 for points, chosen in pairs]
    return torch.tensor(gaps, dtype=points.dtype)


def class_separation(points: Tensor, labels: Tensor) -> Tensor:
    """Compute the share `(F,)` of the variance of points `(F, N, 2)` between the classes of labels `(N,)`."""
    centred = (points - points.mean(1, keepdim=True)).double()
    members = functional.one_hot(labels).double()
    members = members[:, members.sum(0) > 0]
    means = torch.einsum("nc,fnd->fcd", members / members.sum(0), centred)
    between = torch.einsum("c,fcd->f", members.mean(0), means.square())
    return between / centred.square().sum(2).mean(1)


def layer_statistics(layer: LayerReport, labels: Tensor) -> dict[str, float]:
    """Compute statistics of a layer's report and the labels `(N,)` that could explain or replace its count.

    Returns:
        `count` anomaly filters of `live` ones; `sparsity`, mean over all filters; over the live filters the median
        `kurtosis` of the first component, the mean class `separation`, the mean share of the maps' variance that is
        `outside` of the two components, and the mean variance of the `second` component in units of the first one's;
        the number of anomaly filters with the same map for 90% of the probe (`silent`), and of those with outliers at
        least one standard deviation away from all other samples (`isolated`); `set_apart`, filters with isolated
        samples.
    """
    anomaly, normal = layer.filters("anomaly"), layer.filters("normal")
    live = sorted(anomaly + normal)
    points = layer.points.double()
    tails = torch.from_numpy(kurtosis(points[live, :, 0].numpy(), axis=1, fisher=False))  # 3 for a Gaussian
    return {
        "count": len(anomaly),
        "live": len(live),
        "sparsity": layer.sparsity.mean().item(),
        "kurtosis": tails.median().item() if live else 0.0,
        "separation": class_separation(points[live], labels).mean().item() if live else 0.0,
        "outside": 1 - layer.explained[live].mean().item() if live else 0.0,
        "second": points[live, :, 1].var(1, correction=0).mean().item() if live else 0.0,
        "silent": int((_silent_share(layer.points[anomaly]) >= 0.9).sum()),
        "isolated": int((_gap(points[anomaly], layer.outliers[anomaly]) >= 1).sum()),
        "set_apart": len(layer.isolated_filters),
    }


def _layers(network: nn.Sequential, images: Images, size: int) -> dict[str, dict[str, dict[str, float]]]:
    """Compute the statistics by reading and layer; those of the default reading include the weights'."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    convolutions = watched_layers(network)
    for reading, (settings, part) in _READINGS.items():
        probe, labels = images.part(part, size)
        report = analyze(network, probe, layers=list(convolutions), settings=settings)
        found[reading] = {}
        for name, layer in report.layers.items():
            statistics = layer_statistics(layer, labels)
            if reading == "val":
                weight = network.get_submodule(convolutions[name]).get_parameter("weight").detach()
                statistics |= {"weight_variance": weight.var().item(), "weight_norm": weight.norm().item()}
            found[reading][name] = {key: statistics[key] for key in _KEPT.get(reading, statistics)}
    return found


def measure(training: Training, root: str | None, weights: str | None) -> dict[str, Any]:
    """Train, and measure after every epoch: losses, accuracies, signals of other stopping rules, and layers."""
    images = prepare(training, root)
    parts = {"val": images.part("val"), "test": images.part("test"), "train": images.part("train", _FIXED)}
    epochs, before = [], torch.full_like(parts["train"][1], -1)
    for _, network in every_epoch(training, images, weights):
        row, logits = evaluate_parts(network, parts)
        now = logits["train"].argmax(1)
        epochs.append(
            {
                **row,
                "changed": (now != before).double().mean().item(),
                "disparity": batch_disparity(network, *parts["train"], training.batch_size),
                "layers": _layers(network, images, training.probe_size),
            }
        )
        before = now
    return {"epochs": epochs}
