"""What finds images that do not belong?

After each run, images of its validation probe are damaged, one kind at a time and all kinds mixed, and every score says
how little each image of the probe belongs: the outlier scores and the votes of an analysis of the probe, and what else
there is, see `scores`. A third of the runs have a hundred damaged images among those that they train on; there
`find_outliers` scores all training images. The score was chosen on LeNet-5 and the simple CNN on CIFAR-10 with seed 0.
CleanVision is in the extra `rivals`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.functional import to_pil_image

from lightning_anomaly import OutlierReport, analyze, find_outliers
from recipes.common.damage import plant_damage
from recipes.common.data import mean_and_std
from recipes.common.module import logits_of
from recipes.experiments.fitting import Images, prepare, trained
from recipes.experiments.measures.planted import KINDS, Probe, damage_behind, foreign_images
from recipes.experiments.measures.scores import (
    cleanvision_scores,
    detection,
    feature_scores,
    forest_scores,
    output_scores,
    pixel_scores,
)
from recipes.experiments.spec import Training

__all__ = ["measure"]

_SCORES = ("score", "votes", "confidence", "loss", "energy", "neighbour", "mahalanobis", "forest", "pixel neighbour",
           "pixel residual", "cleanvision")  # fmt: skip
_MEASURES = ("auroc", "precision", "false_positives")
_DAMAGED = 100  # training images of the condition "damaged", of all kinds in turn
_SMALLEST = 20  # ordinary images for each damaged one, where the run has few
_SHOWN = 3  # undamaged images in the gallery
Scores = Mapping[str, Tensor | None]


def _features_and_logits(network: nn.Sequential, images: Tensor) -> tuple[Tensor, Tensor]:
    features = logits_of(network[:-1], images)
    return features, logits_of(network[-1], features)


def _detection(truth: Tensor, scores: Scores, chosen: Tensor) -> dict[str, Any]:
    """How well the scores of the chosen samples find those of truth among them."""
    some = {name: None if own is None else own[chosen] for name, own in scores.items()}
    return detection(truth, some, _SCORES, _MEASURES, digits=4)


def _loss_and_accuracy(logits: Tensor, labels: Tensor) -> dict[str, float]:
    loss = functional.cross_entropy(logits.double(), labels).item()
    return {"loss": loss, "accuracy": (logits.argmax(1) == labels).double().mean().item()}


def _gallery(images: Tensor, damaged: Mapping[str, list[int]], scores: Tensor, bad: Tensor) -> dict[str, Any]:
    """Damaged training images, of each kind the one with the median score, and the undamaged ones with the largest.

    Returns:
        `png`, the images side by side in base64; and for each `kinds` ("" for undamaged), `scores` and `ranks`, from 1.
    """
    order = scores.argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(1, len(order) + 1)
    shown = [sorted(places, key=scores.__getitem__)[len(places) // 2] for places in damaged.values()]
    ordinary = order[~bad[order]][:_SHOWN].tolist()
    places = [*shown, *ordinary]
    to_pil_image(torch.cat([*images[places]], 2)).save(written := io.BytesIO(), "PNG")
    return {
        "png": base64.b64encode(written.getvalue()).decode(),
        "kinds": [*damaged, *[""] * len(ordinary)],
        "scores": scores[places].tolist(),
        "ranks": rank[places].tolist(),
    }


def _by_kind(damaged: Mapping[str, list[int]], bad: Tensor, scores: Scores, report: OutlierReport) -> dict[str, Any]:
    """What finds the damaged images among all that were trained on: each kind for itself, and all, as "mixed"."""
    result = {}
    for kind, places in {**damaged, "mixed": bad.nonzero()[:, 0].tolist()}.items():
        truth = torch.zeros_like(bad)
        truth[places] = True
        kept = truth | ~bad
        result[kind] = _detection(truth[kept], scores, kept)
    right = int(bad[torch.tensor(report.found, dtype=torch.int64)].sum())
    result["mixed"] |= {"found": len(report.found), "right": right}
    return result


def measure(training: Training, root: str | None, weights: str | None) -> dict[str, Any]:
    """Train, and score the images of the probe and those that were trained on.

    Returns:
        `train` and `val` (loss in nats, accuracy, and of the validation images only those in the probe), `probe` (by
        kind and share) and `trained_on` (by kind), see `detection`, and the `gallery`; the last two are empty without
        damaged images in training.
    """
    images, foreign = prepare(training, root), foreign_images(training, root)
    data = images.data
    damaged: dict[str, list[int]] = {}
    if training.condition == "damaged":
        count = min(_DAMAGED, len(data.train_images) // _SMALLEST)
        kinds = KINDS if foreign is None else (*KINDS, "foreign")
        train, damaged = plant_damage(data.train_images, count, kinds, training.seed, foreign)
        images = Images(replace(data, train_images=train), images.wrong, *mean_and_std(train))
        data = images.data
    bad = torch.zeros(len(data.train_images), dtype=torch.bool)
    bad[[place for places in damaged.values() for place in places]] = True
    val, places = damage_behind(data.val_images, training, foreign, seed=training.seed + 1000)
    # Where there are fewer damaged images than kinds, other kinds are left out with another seed.
    order = sorted(places, key=lambda kind: (list(places).index(kind) - 3 * training.seed) % len(places))
    used = training.probe_size + sum(map(len, places.values()))
    shown = replace(images, data=replace(data, val_images=val)).normalised("val", used)
    in_probe = {kind: places[kind] for kind in order}
    probe = Probe(shown, data.val_labels[:used], torch.zeros(used).bool(), training.probe_size, in_probe)

    network = trained(training, images, weights)
    inputs, labels = images.normalised("train"), data.train_labels
    features, logits = _features_and_logits(network, inputs)
    own_features, own_logits = _features_and_logits(network, probe.images)
    # What one image gets by these does not depend on the others in the probe.
    alone: dict[str, Tensor | None] = {
        **output_scores(own_logits, probe.labels),
        **feature_scores(own_features, features, labels),
        "forest": forest_scores(own_features, features),
        **pixel_scores(probe.images, inputs),
        "cleanvision": cleanvision_scores(val[:used]),
    }
    result: dict[str, Any] = {
        "train": _loss_and_accuracy(logits[~bad], labels[~bad]),
        "val": _loss_and_accuracy(own_logits[probe.clean], probe.labels[probe.clean]),
        "probe": {},
        "trained_on": {},
        "gallery": {},
    }
    for kind, share in probe.cases:
        chosen = probe.with_damage(kind, share)
        analysis = analyze(network, probe.images[chosen])
        found = {name: None if own is None else own[chosen] for name, own in alone.items()}
        found |= {"score": torch.tensor(analysis.outlier_scores), "votes": torch.tensor(analysis.outlier_samples)}
        everything = torch.arange(len(chosen))
        result["probe"][f"{kind}/{share}"] = _detection(chosen >= probe.size, found, everything)
    if damaged:
        report = find_outliers(network, inputs, progress=False)
        scores = {
            "score": report.scores,
            **output_scores(logits, labels),
            **feature_scores(features, features, labels, own=True),
            "forest": forest_scores(features, features),
            **pixel_scores(inputs, inputs, own=True),
            "cleanvision": cleanvision_scores(data.train_images),
        }
        result["trained_on"] = _by_kind(damaged, bad, scores, report)
        result["gallery"] = _gallery(data.train_images, damaged, report.scores, bad)
    return result
