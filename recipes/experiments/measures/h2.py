"""H2: do outlier samples drive overfitting? Their gradients, detection of wrong labels, and training without them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional

from lightning_anomaly import AnalysisSettings, analyze
from recipes.common.data import mean_and_std
from recipes.common.module import evaluate, logits_of
from recipes.experiments.fitting import Images, every_epoch
from recipes.experiments.measures.gradients import gradient_norms
from recipes.experiments.measures.planted import Probe, plant
from recipes.experiments.measures.scores import detection, margins
from recipes.experiments.spec import Training

# Our settings, and the literal reading of the paper, which the claim is about.
_READINGS = {"ours": AnalysisSettings(), "paper": AnalysisSettings.paper()}
_MEASURED = 6  # epochs with a measurement
_RANDOM_DRAWS = 2  # control runs without random samples
_ORDER = 2000  # the seed of the training images' order in probes, used for nothing else
_FEWEST = 20  # outlier samples to leave out, 0.5% of a full run; fewer have less effect than two draws differ


def log_spaced(last: int, count: int) -> list[int]:
    """Return up to `count` epochs from 1 to `last`, evenly spaced on a logarithmic scale."""
    return sorted({round(last ** (i / (count - 1))) for i in range(count)})


def ratio_with_interval(
    group: Tensor, rest: Tensor, reduce: Callable[[Tensor], Tensor] = lambda values: values.mean(1)
) -> list[float]:
    """Compute the ratio of the mean of values `(n,)` to that of the rest `(m,)`, and its 95% bootstrap interval.

    The percentile interval of Efron, "Bootstrap Methods: Another Look at the Jackknife" (1979): both groups are
    resampled 500 times with replacement and a fixed seed. `reduce` replaces the mean of each row. The ratio is not
    finite if the rest's mean is 0.
    """
    generator = torch.Generator().manual_seed(0)
    resampled = [
        reduce(values[torch.randint(len(values), (500, len(values)), generator=generator)].double())
        for values in (group, rest)
    ]
    bounds = torch.quantile(resampled[0] / resampled[1], torch.tensor([0.025, 0.975], dtype=torch.float64))
    ratio = reduce(group.double()[None]) / reduce(rest.double()[None])
    return [ratio.item(), *bounds.tolist()]


def _spearman(first: Tensor, second: Tensor) -> float | None:
    """Compute Spearman's correlation of values `(N,)`; None if one of them is constant or not finite."""
    if not all(torch.isfinite(x).all() and x.min() < x.max() for x in (first, second)):
        return None
    return float(spearmanr(first.numpy(), second.numpy()).statistic)


def gradient_ratios(votes: Tensor, norms: Tensor, losses: Tensor) -> dict[str, Any]:
    """Compare gradient norms `(N,)` of outlier samples, which have votes `(N,)`, with those of the rest.

    Returns:
        `spearman` of votes and norms; for the group "all" the number `n` of outlier samples, and the ratios of `mean`
        and `median` norms and of the mean `loss`, with intervals. No ratios if a group has fewer than 3 samples.
    """
    group = votes > 0
    ratios: dict[str, Any] = {"n": int(group.sum())}
    if 3 <= group.sum() <= len(group) - 3:
        ratios["mean"] = ratio_with_interval(norms[group], norms[~group])
        ratios["median"] = ratio_with_interval(norms[group], norms[~group], lambda values: values.median(1).values)
        ratios["loss"] = ratio_with_interval(losses[group], losses[~group])
    return {"spearman": _spearman(votes.double(), norms), "all": ratios}


def _measure_probe(network: nn.Sequential, probe: Probe, margin: Tensor | None) -> dict[str, Any]:
    """Measure a probe at one epoch; `margin` `(N,)` is each training image's mean margin over the epochs so far.

    Returns:
        For each reading `count` anomaly filters, `gradients` (see `gradient_ratios`) and `mislabelled` (see
        `detection`), with the number of `outliers`, samples with votes, and of `hit`, those with a wrong label.
    """
    logits = logits_of(network, probe.images).double()
    losses = functional.cross_entropy(logits, probe.labels, reduction="none")
    norms = gradient_norms(network, probe.images, probe.labels)
    result: dict[str, Any] = {"loss": losses.mean().item()}
    for reading, settings in _READINGS.items():
        report = analyze(network, probe.images, settings=settings)
        votes = torch.tensor(report.outlier_samples)
        scores = {"votes": votes, "loss": losses, "aum": None if margin is None else -margin}
        hits = {"outliers": int((votes > 0).sum()), "hit": int((probe.wrong & (votes > 0)).sum())}
        result[reading] = {
            "count": report.count,
            "gradients": gradient_ratios(votes, norms, losses),
            "mislabelled": hits | detection(probe.wrong, scores),
        }
    return result


def measure_gradients(training: Training, root: str | None, weights: str | None) -> dict[str, Any]:
    """Train on images some of which have wrong labels, and measure at several epochs.

    Returns:
        The validation loss of every epoch (nats), and a dict for each measured one.
    """
    planted = plant(training, root, damage=False)
    val = planted.images.part("val")
    margin, val_losses, epochs = torch.zeros(len(planted.train.images)), [], []
    measured = log_spaced(training.epochs, _MEASURED)
    for epoch, network in every_epoch(training, planted.images, None):
        val_losses.append(evaluate(network, *val)[0])
        margin += margins(logits_of(network, planted.train.images), planted.train.labels)
        if epoch in measured:
            train = _measure_probe(network, planted.train, margin / epoch)
            epochs.append({"epoch": epoch, "train": train, "val": _measure_probe(network, planted.val, None)})
    return {"scores": ["votes", "loss", "aum"], "val_losses": val_losses, "epochs": epochs}


def without(images: Images, left_out: Tensor) -> Images:
    """Leave out training images, bool `(N,)`."""
    data = images.data
    kept = replace(data, train_images=data.train_images[~left_out], train_labels=data.train_labels[~left_out])
    return Images(kept, images.wrong[~left_out], *mean_and_std(kept.train_images))


def training_outliers(network: nn.Module, images: Images, probe_size: int) -> dict[str, Tensor]:
    """Find the training images that are outliers of any filter, bool `(N,)`, by reading.

    They are analyzed in random probes of about `probe_size` images, because damaged images are adjacent.
    """
    everything, _ = images.part("train")
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(_ORDER))
    found = {reading: torch.zeros(len(everything), dtype=torch.bool) for reading in _READINGS}
    for reading, outliers in found.items():
        for places in order.chunk(max(1, round(len(everything) / probe_size))):
            report = analyze(network, everything[places], settings=_READINGS[reading])
            outliers[places] = torch.tensor(report.outlier_samples) > 0
    return found


def _train(training: Training, images: Images) -> tuple[nn.Sequential, dict[str, float]]:
    """Return the last network, and test loss (nats) and accuracy at the last epoch and that of the lowest loss."""
    val, test = images.part("val"), images.part("test")
    rows = []
    for epoch, network in every_epoch(training, images, None):
        rows.append((evaluate(network, *val)[0], epoch, *evaluate(network, *test)))
    found: dict[str, float] = {"best_epoch": min(rows)[1]}
    for name, (_, _, loss, accuracy) in (("best", min(rows)), ("last", rows[-1])):
        found |= {f"{name}_loss": loss, f"{name}_acc": accuracy}
    return network, found


def left_out(training: Training, root: str | None, weights: str | None) -> dict[str, Any]:
    """Train with all images, without the outlier samples of that run, and without as many random ones.

    Some training images have wrong labels and some are damaged.

    Returns:
        Test loss (nats) and accuracy of each run, see `_train`: with `all` images, and for each reading without the
        `outliers` and without `random` ones, in as many steps; and the numbers of `left_out`, `wrong` and `damaged`
        images among the outliers. Fewer than 20 outliers are not left out.
    """
    planted = plant(training, root, damage=True)
    images = planted.images
    network, with_all = _train(training, images)
    found: dict[str, Any] = {"all": with_all}
    for reading, outliers in training_outliers(network, images, training.probe_size).items():
        counts = {"left_out": outliers, "wrong": outliers & images.wrong, "damaged": outliers & planted.damaged}
        arms: dict[str, Any] = {name: int(which.sum()) for name, which in counts.items()}
        if arms["left_out"] >= _FEWEST:
            generator = torch.Generator().manual_seed(training.seed)
            draws = [outliers[torch.randperm(len(outliers), generator=generator)] for _ in range(_RANDOM_DRAWS)]
            arms["outliers"], *arms["random"] = (
                _train(training, without(images, left_out))[1] for left_out in (outliers, *draws)
            )
        found[reading] = arms
    return found
