"""What finds images that do not belong? `python -m recipes.experiments outliers --data-root DIR`.

After each training, images of its validation probe are damaged, one kind at a time and all kinds mixed, and every score
says how little each image of the probe belongs: the outlier scores and the votes of an analysis of the probe, and what
else there is, see `rivals.py`. A third of the trainings have a hundred damaged images among those that they train on;
there `find_outliers` scores all training images. Each training's results are a line of `outliers.jsonl`. The score was
chosen on LeNet-5 and the simple CNN on CIFAR-10 with seed 0. CleanVision is in the extra `outliers`.
"""

from __future__ import annotations

import argparse
import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.functional import to_pil_image

from lightning_anomaly import AnalysisSettings, find_outliers
from lightning_anomaly.analysis import analyze_maps
from lightning_anomaly.capture.maps import LayerMaps
from lightning_anomaly.clustering.engines import load_engine
from lightning_anomaly.outliers.scores import layer_scores
from recipes.common.evaluation import logits_of
from recipes.common.maps import capture, choose
from recipes.experiments.common.fitting import trained
from recipes.experiments.common.options import asked
from recipes.experiments.common.ranks import auroc, average_precision
from recipes.experiments.common.trainings import DATA, NETWORKS, TOO_SMALL, Training, make_training, quick_matrix
from recipes.experiments.h2.measure import draws_of
from recipes.experiments.h2.planted import SHARES
from recipes.experiments.outliers.planted import Planted, plant
from recipes.experiments.outliers.rivals import RIVALS, cleanvision_scores, network_scores, pixel_scores

__all__ = [
    "CHOSEN_ON",
    "CONDITIONS",
    "MEASURES",
    "SCORES",
    "averaged",
    "experiment",
    "false_positives",
    "full_matrix",
    "measured",
    "trainings",
    "was_chosen_on",
]

SCORES = ("score", "votes", *RIVALS)
_SMALL = NETWORKS[:2]
CONDITIONS = ("augmented", "overfitting", "damaged")  # healthy, overfitting, and that with damaged images in training
CHOSEN_ON = 0  # seed
_SETTINGS = AnalysisSettings(rule="vote")
_ENGINE = load_engine(_SETTINGS.engine)
MEASURES = ("auroc", "precision", "false_positives")
_RECALL = 0.95
_FEWER = {"vgg11_bn": (2000, 8), "resnet18": (1000, 8)}  # training images and epochs of the slow ones
_SHOWN = 3  # undamaged images in the gallery


def was_chosen_on(network: str, data: str) -> bool:
    """Whether the score was chosen on this network and data set (with seed 0)."""
    return network in ("lenet5", "simple_cnn") and data == "cifar10"


def full_matrix(networks: Sequence[str] = NETWORKS, seeds: Sequence[int] = (0, 1, 2)) -> list[Training]:
    """All combinations, one seed after the other, so that an unfinished matrix is whole in what it has.

    The slow networks come last, one data set after the other. Of seed 0 only what the score was chosen on.
    """
    slow = [network for network in networks if network in _FEWER]
    places = [(network, data) for network in networks if network not in slow for data in DATA]
    places += [(network, data) for data in DATA for network in slow if (network, data) != TOO_SMALL]
    found = [
        make_training(network, data, condition, seed)
        for seed in seeds
        for network, data in places
        for condition in CONDITIONS
        if seed != CHOSEN_ON or was_chosen_on(network, data)
    ]
    return [
        replace(plain, train_size=_FEWER[plain.network][0], epochs=_FEWER[plain.network][1])
        if plain.network in _FEWER
        else plain
        for plain in found
    ]


def trainings(options: argparse.Namespace) -> list[Training]:
    """The trainings that the options ask for."""
    return quick_matrix(CONDITIONS) if options.quick else full_matrix(**asked(options))


def experiment(training: Training, root: str | None, weights: str | None = None) -> dict[str, Any]:
    """Train, and score the images of the probe and those that were trained on.

    Args:
        training: The training.
        root: See `prepare`.
        weights: See `trained`.

    Returns:
        The training's settings, `train` and `val` (loss in nats, accuracy, and of the validation images only those in
        the probe), `probe` and `trained_on` (see `measured`; by kind, of the probe by kind and share) and the
        `gallery`; the last two are empty without damaged images in training.
    """
    planted = plant(training, root)
    network = trained(training, planted.images, weights)
    data, probe = planted.images.data, planted.probe
    images = planted.images.normalised("train").contiguous(memory_format=torch.channels_last)
    features, logits = _features_and_logits(network, images)
    # What one image gets does not depend on the others, but for the analysis, whose reference is the probe.
    maps = capture(network, probe.images, _SETTINGS)
    own_features, own_logits = _features_and_logits(network, probe.images)
    alone = {
        **network_scores(own_features, own_logits, probe.labels, features, data.train_labels),
        **pixel_scores(probe.images, images),
        "cleanvision": cleanvision_scores(planted.pixels),
    }
    found, gallery = {}, {}
    if planted.damaged:
        report = find_outliers(network, images, progress=False)
        scores = {
            "score": report.scores,
            **network_scores(features, logits, data.train_labels, features, data.train_labels, own=True),
            **pixel_scores(images, images, own=True),
            "cleanvision": cleanvision_scores(data.train_images),
        }
        found = _by_kind(planted, scores, report.found)
        gallery = _gallery(planted, report.scores)
    return {
        "cell": asdict(training),
        "train": _loss_and_accuracy(logits[~planted.bad], data.train_labels[~planted.bad]),
        "val": _loss_and_accuracy(own_logits[probe.clean], probe.labels[probe.clean]),
        "probe": {
            f"{kind}/{share}": averaged(list(_in_probe(planted, maps, alone, kind, share, training.network)))
            for kind in [*probe.damaged, "mixed"]
            for share in SHARES
            if kind != "mixed" or probe.damaged_count(share) > 1
        },
        "trained_on": found,
        "gallery": gallery,
    }


def _features_and_logits(network: nn.Sequential, images: Tensor) -> tuple[Tensor, Tensor]:
    features = logits_of(network[:-1], images)
    return features, logits_of(network[-1], features)


def _loss_and_accuracy(logits: Tensor, labels: Tensor) -> dict[str, float]:
    return {
        "loss": functional.cross_entropy(logits.double(), labels).item(),
        "accuracy": (logits.argmax(1) == labels).double().mean().item(),
    }


def _in_probe(
    planted: Planted, maps: Mapping[str, LayerMaps], alone: Mapping[str, Tensor | None], kind: str, share: float,
    network: str,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """What finds one kind and share of damage in the probe; in a small network, two draws of a single image.

    Clustering takes most of the time, so larger networks have votes at 1% only, and the slow ones only with all kinds
    mixed.
    """
    probe = planted.probe
    small = network in _SMALL
    voted = small or (share == 0.01 and (kind == "mixed" or network not in _FEWER))
    for draw in range(draws_of(probe, share) if small else 1):
        places = probe.with_damage(kind, share, draw)
        chosen = choose(maps, places)
        found: dict[str, Tensor | None] = {
            name: None if scores is None else scores[places] for name, scores in alone.items()
        }
        if voted:
            report = analyze_maps(chosen, _SETTINGS)
            found["score"] = torch.tensor(report.outlier_scores)
            found["votes"] = torch.tensor(report.outlier_samples)
        else:  # as in the report, without clustering
            by_layer = [layer_scores(torch.cat(layer.statistics), _ENGINE) for layer in chosen.values()]
            found["score"] = torch.stack(by_layer).amax(0)
        yield measured(places >= probe.size, found)


def measured(truth: Tensor, scores: Mapping[str, Tensor | None]) -> dict[str, Any]:
    """How well scores `(N,)` find the images that truth, bool `(N,)`, names.

    Returns:
        The number of these, `planted`, and by name of `MEASURES` the area under the ROC curve, the average precision
        and the false positives at 95% recall, each in the order of `SCORES`, None for a score that there is not.
    """
    result: dict[str, Any] = {"planted": int(truth.sum())}
    for name, measure in zip(MEASURES, (auroc, average_precision, false_positives), strict=True):
        values = [scores.get(score) for score in SCORES]
        result[name] = [None if value is None else round(measure(truth, value), 4) for value in values]
    return result


def false_positives(truth: Tensor, values: Tensor) -> float:
    """Share of the other samples that come with the first 95% of those of truth, bool `(N,)`, or before."""
    chosen = values[truth].sort(descending=True).values
    least = chosen[-int(-_RECALL * len(chosen) // 1) - 1]
    return (values[~truth] >= least).double().mean().item()


def averaged(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean over draws of what `measured` gives."""
    result: dict[str, Any] = {"planted": found[0]["planted"]}
    for name in MEASURES:
        columns = zip(*(one[name] for one in found), strict=True)
        result[name] = [None if None in column else mean(column) for column in columns]
    return result


def _by_kind(planted: Planted, scores: Mapping[str, Tensor | None], discoveries: Sequence[int]) -> dict[str, Any]:
    """What finds the damaged images among all that were trained on: each kind for itself, and all, as "mixed"."""
    bad = planted.bad
    result = {}
    for kind, places in {**planted.damaged, "mixed": bad.nonzero()[:, 0].tolist()}.items():
        truth = torch.zeros_like(bad)
        truth[places] = True
        kept = truth | ~bad
        result[kind] = measured(truth[kept], {k: None if v is None else v[kept] for k, v in scores.items()})
    right = int(bad[torch.tensor(discoveries, dtype=torch.int64)].sum())
    result["mixed"] |= {"found": len(discoveries), "right": right}
    return result


def _gallery(planted: Planted, scores: Tensor) -> dict[str, Any]:
    """Damaged training images, of each kind the one with the median score, and the undamaged ones with the largest.

    Returns:
        `png`, the images side by side in base64; and for each `kinds` ("" for undamaged), `scores` and `ranks`, from 1.
    """
    order = scores.argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(1, len(order) + 1)
    shown = {kind: sorted(places, key=lambda place: scores[place])[len(places) // 2]
             for kind, places in planted.damaged.items()}  # fmt: skip
    ordinary = order[~planted.bad[order]][:_SHOWN].tolist()
    places = [*shown.values(), *ordinary]
    strip = torch.cat([*planted.images.data.train_images[places]], 2)
    to_pil_image(strip).save(written := io.BytesIO(), "PNG")
    return {
        "png": base64.b64encode(written.getvalue()).decode(),
        "kinds": [*shown, *[""] * len(ordinary)],
        "scores": [scores[place].item() for place in places],
        "ranks": [int(rank[place]) for place in places],
    }
