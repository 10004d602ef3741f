"""H2, first kind of run: gradients of outlier samples, and what finds planted samples, at several epochs."""

from __future__ import annotations

from statistics import mean
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_anomaly import AnalysisSettings, AnomalyReport
from lightning_anomaly.analysis import analyze_maps
from lightning_anomaly.capture.maps import LayerMaps
from recipes.common.evaluation import logits_of
from recipes.common.maps import capture, choose
from recipes.experiments.common.fitting import fit
from recipes.experiments.common.gradients import gradient_norms_by_layer
from recipes.experiments.common.trainings import Training
from recipes.experiments.h2.detection import SCORES, detection, feature_scores, margins, output_scores
from recipes.experiments.h2.planted import SHARES, Planted, Probe, plant
from recipes.experiments.h2.ratios import gradient_ratios, vote_count

__all__ = [
    "READINGS",
    "Margins",
    "analyze_places",
    "measure",
    "measure_probe",
    "reference_features",
]

_MEASURED = 6  # epochs with a measurement
# Ours, and the literal reading of the paper: the claim is about that one. Both look at the same maps.
READINGS = {"ours": AnalysisSettings(), "paper": AnalysisSettings.paper()}


def log_spaced(last: int, count: int) -> list[int]:
    """Up to `count` epochs from 1 to `last`, each about as many times the one before."""
    return sorted({round(last ** (i / (count - 1))) for i in range(count)})


def analyze_places(maps: dict[str, LayerMaps], places: Tensor, reading: str = "ours") -> AnomalyReport:
    """The report on the samples in some places, by a key of `READINGS`; its sparsity is that of all."""
    return analyze_maps(choose(maps, places), READINGS[reading])


def measure_probe(
    network: nn.Sequential, probe: Probe, reference: dict[str, Tensor], margin: Tensor | None, damage: bool
) -> dict[str, Any]:
    """One probe at one epoch.

    Args:
        network: A network that ends in a linear layer.
        probe: The probe.
        reference: Features and labels of training images that are in no probe, see `feature_scores`.
        margin: Mean margin of each image over the epochs so far `(M,)`; None for images that are not trained on.
        damage: Whether to put damaged images into the probe too, one kind and share at a time.

    Returns:
        For each reading `count` anomaly filters, `gradients` (see `gradient_ratios`) and `mislabelled` (see
        `detection`) without damage, for the paper's with the votes alone; in our reading also `damage`, for each kind
        and share, with `planted` images of which `hit` have votes, among `outliers`.
    """
    used = torch.arange(len(probe.images) if damage else probe.size)
    images, labels = probe.images[used], probe.labels[used]
    maps = capture(network, images, READINGS["ours"])
    layers = gradient_norms_by_layer(network, images, labels)
    output = output_scores(logits_of(network, images), labels)
    scores: dict[str, Tensor | None] = {
        **output,
        "gradient": torch.stack(list(layers.values())).norm(dim=0),
        "aum": None if margin is None else -margin[used],
        **feature_scores(logits_of(network[:-1], images), reference["reference"], reference["reference_labels"]),
    }

    def find(report: AnomalyReport, places: Tensor, truth: Tensor) -> dict[str, Any]:
        votes = vote_count(report)
        others = {name: None if values is None else values[places] for name, values in scores.items()}
        return {
            "outliers": int((votes > 0).sum()),
            "planted": int(truth.sum()),
            "hit": int((truth & (votes > 0)).sum()),
            **detection(truth, {**others, "votes": votes}),
        }

    losses = output["loss"][: probe.size]
    norms = {name: norms[: probe.size] for name, norms in layers.items()}
    result: dict[str, Any] = {"loss": losses.mean().item()}
    for reading in READINGS:
        report = analyze_places(maps, probe.clean, reading)
        result[reading] = {
            "count": report.count,
            "gradients": gradient_ratios(report, norms, losses),
            "mislabelled": find(report, probe.clean, probe.wrong[: probe.size]),
        }
    for key in ("auroc", "precision"):
        del result["paper"]["mislabelled"][key][1:]  # the other scores are the same as above
    if damage:
        result["damage"] = {
            f"{kind}/{share}": averaged(
                [
                    find(analyze_places(maps, places), places, places >= probe.size)
                    for places in (probe.with_damage(kind, share, draw) for draw in range(draws_of(probe, share)))
                ]
            )
            for kind in [*probe.damaged, "mixed"]
            for share in SHARES
            if kind != "mixed" or probe.damaged_count(share) > 1
        }
    return result


def draws_of(probe: Probe, share: float) -> int:
    """Two draws where a share is a single image, else one."""
    return 2 if probe.damaged_count(share) == 1 and probe.damaged_count(max(SHARES)) > 1 else 1


def averaged(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of results of several draws, number by number."""
    if len(found) == 1:
        return found[0]
    result: dict[str, Any] = {}
    for key, first in found[0].items():
        columns = [one[key] for one in found]
        if isinstance(first, list):
            result[key] = [None if None in row else round(mean(row), 3) for row in zip(*columns, strict=True)]
        else:
            result[key] = mean(columns)
    return result


def reference_features(network: nn.Sequential, planted: Planted) -> dict[str, Tensor]:
    """Features and labels of the training images that are in no probe, see `feature_scores`."""
    first = len(planted.val.images)
    images, labels = planted.images.normalised("train")[first:], planted.images.data.train_labels[first:]
    return {"reference": logits_of(network[:-1], images), "reference_labels": labels}


class Margins(pl.Callback):
    """Averages the margins of a probe's images over the epochs."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.sum = torch.zeros(len(probe.images))
        self.epochs = 0

    @property
    def mean(self) -> Tensor:
        """Mean margin of each image over the epochs so far `(M,)`."""
        return self.sum / self.epochs

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the epoch's."""
        self.sum += margins(logits_of(pl_module, self.probe.images), self.probe.labels)
        self.epochs += 1


class Measure(pl.Callback):
    """Measures both probes at some of the epochs; stands behind the margins that it reads."""

    def __init__(self, training: Training, planted: Planted, margins_so_far: Margins) -> None:
        self.planted = planted
        self.margins = margins_so_far
        self.measured = log_spaced(training.epochs, _MEASURED)
        self.epochs: list[dict[str, Any]] = []
        self.val_losses: list[float] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the epoch that has just been validated, if it is one of those."""
        network = pl_module.network
        assert isinstance(network, nn.Sequential)
        self.val_losses.append(trainer.callback_metrics["val_loss"].item())
        epoch = self.margins.epochs
        if epoch not in self.measured:
            return
        reference = reference_features(network, self.planted)
        last = epoch == self.measured[-1]  # with damage only here: it is many analyses
        self.epochs.append(
            {
                "epoch": epoch,
                "train": measure_probe(network, self.planted.train, reference, self.margins.mean, damage=False),
                "val": measure_probe(network, self.planted.val, reference, None, damage=last),
            }
        )


def measure(training: Training, root: str | None = None) -> dict[str, Any]:
    """Train on images of which some have wrong labels and none is damaged, and measure at several epochs.

    Returns:
        The validation loss of every epoch (nats), and a dict for each measured one.
    """
    planted = plant(training, root, damage=False)
    margins_so_far = Margins(planted.train)
    watcher = Measure(training, planted, margins_so_far)
    fit(training, planted.images, [margins_so_far, watcher])
    return {"scores": list(SCORES), "val_losses": watcher.val_losses, "epochs": watcher.epochs}
