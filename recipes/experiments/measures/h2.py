"""H2: have outlier samples larger gradients than others?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_anomaly import AnalysisSettings, analyze
from recipes.common.damage import with_label_noise
from recipes.experiments.fitting import every_epoch, prepare
from recipes.experiments.measures.gradients import gradient_norms
from recipes.experiments.spec import Training

# Our settings, and the literal reading of the paper, which the claim is about.
_READINGS = {"ours": AnalysisSettings(), "paper": AnalysisSettings.paper()}
_MEASURED = 6  # epochs with a measurement
_MISLABELLED = 0.05  # of all labels
_SPARED = 182  # training images behind the probe that keep their labels: an older experiment needed them


def log_spaced(last: int, count: int) -> list[int]:
    """Return up to `count` epochs from 1 to `last`, evenly spaced on a logarithmic scale."""
    return sorted({round(last ** (i / (count - 1))) for i in range(count)})


def ratio_with_interval(group: Tensor, rest: Tensor) -> list[float]:
    """Compute the ratio of the mean of values `(n,)` to that of the rest `(m,)`, and its 95% bootstrap interval.

    The percentile interval of Efron, "Bootstrap Methods: Another Look at the Jackknife" (1979): both groups are
    resampled 500 times with replacement and a fixed seed. The ratio is not finite if the rest's mean is 0.
    """
    generator = torch.Generator().manual_seed(0)
    resampled = [
        values[torch.randint(len(values), (500, len(values)), generator=generator)].double().mean(1)
        for values in (group, rest)
    ]
    bounds = torch.quantile(resampled[0] / resampled[1], torch.tensor([0.025, 0.975], dtype=torch.float64))
    return [(group.double().mean() / rest.double().mean()).item(), *bounds.tolist()]


def _compare(network: nn.Sequential, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Compare the gradient norms of a probe's outlier samples with those of the rest.

    Returns:
        For each reading the number `n` of outlier samples, and the ratio of the `mean` norms with its interval, unless
        a group has fewer than 3 samples.
    """
    norms, found = gradient_norms(network, images, labels), {}
    for reading, settings in _READINGS.items():
        group = torch.tensor(analyze(network, images, settings=settings).votes) > 0
        ratios: dict[str, Any] = {"n": int(group.sum())}
        if 3 <= group.sum() <= len(group) - 3:
            ratios["mean"] = ratio_with_interval(norms[group], norms[~group])
        found[reading] = {"gradients": {"all": ratios}}
    return found


def measure(training: Training, root: str | None, weights: str | None) -> dict[str, Any]:
    """Train on images some of which have wrong labels; compare gradients at several epochs on two probes."""
    images, size = prepare(training, root), training.probe_size

    def mislabel(labels: Tensor) -> Tensor:
        noisy, _ = with_label_noise(labels, _MISLABELLED, images.data.n_classes, training.seed)
        noisy[size : size + _SPARED] = labels[size : size + _SPARED]
        return noisy

    data = images.data
    data = replace(data, train_labels=mislabel(data.train_labels), val_labels=mislabel(data.val_labels))
    noisy = replace(images, data=data)
    probes = {part: noisy.part(part, size) for part in ("train", "val")}
    measured = log_spaced(training.epochs, _MEASURED)
    epochs = [
        {"epoch": epoch, **{part: _compare(network, *probe) for part, probe in probes.items()}}
        for epoch, network in every_epoch(training, noisy, None)  # not `weights`: other runs have the right labels
        if epoch in measured
    ]
    return {"epochs": epochs}
