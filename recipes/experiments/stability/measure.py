"""Which verdict is stable and near the index's? `python -m recipes.experiments stability --data-root DIR`.

The clustering with the largest Calinski-Harabasz index changes with the seed and with every sample, where two indices
are nearly equal. Between it and a plain majority over the numbers of components lie votes that are weighted by a power
of the index. For the network at the end of each training, on 512 validation images, as they are and with eight of them
damaged: how many of the filters flagged by each rule two seeds share, how many are left when 2% of the images are left
out, and how many the rule shares with the clustering that the index selects. Each training is a line of
`stability.jsonl`; AlexNet on CIFAR-10 takes a minute, besides its training.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from itertools import combinations, product
from typing import Any

import torch
from torch import Tensor

from lightning_anomaly import AnalysisSettings
from lightning_anomaly.capture.maps import LayerMaps
from lightning_anomaly.clustering.choice import Clustering, cluster_layers
from lightning_anomaly.clustering.engines import load_engine
from lightning_anomaly.clustering.pca import reduce_maps
from lightning_anomaly.verdicts.rare import outlier_samples, rare_samples
from recipes.common.data import normalise
from recipes.common.maps import capture, choose
from recipes.experiments.common.fitting import every_epoch
from recipes.experiments.common.trainings import Training, prepare
from recipes.stability import PROBE, damaged_probes

__all__ = ["DAMAGED", "RULES", "flagged_by_rule", "measure", "overlap"]

DAMAGED = (0, 8)  # of the probe's images
_REPEATS = 6  # seeds, and draws that leave out 2%
_POWERS, _SHARES = (1, 2, 3, 4, 5, 6), (0.5, 0.55, 0.6, 0.667)
RULES = ("vote", "best", *(f"index^{power} > {share:g}" for power, share in product(_POWERS, _SHARES)))
_SETTINGS = AnalysisSettings()
_ENGINE = load_engine("auto")


def _outliers(clustering: Clustering, rule: str) -> Tensor:
    """As `outlier_samples`, for any power of the index and any share of the votes."""
    if rule in ("vote", "best"):
        return outlier_samples(clustering, _SETTINGS.rare_fraction, rule)
    power, share = rule.removeprefix("index^").split(" > ")
    index = clustering.calinski_harabasz
    votes = (index / index.amax(1, keepdim=True).clamp(min=1e-300)).pow(int(power))
    rare = rare_samples(clustering.labels, _SETTINGS.rare_fraction)
    return (rare * votes[:, :, None]).sum(1) > (float(share) + 1e-9) * votes.sum(1, keepdim=True)


def flagged_by_rule(maps: dict[str, LayerMaps], seed: int = 0) -> dict[str, Tensor]:
    """Which filters of all layers each of `RULES` flags, bool `(F,)`."""
    reduced = ((name, reduce_maps(layer.maps, _ENGINE)) for name, layer in maps.items())
    flags: dict[str, list[Tensor]] = {rule: [] for rule in RULES}
    for _, reduction, clustering in cluster_layers(reduced, replace(_SETTINGS, seed=seed), _ENGINE):
        for rule, own in flags.items():
            flagged = torch.zeros(len(reduction.live), dtype=torch.bool)
            flagged[reduction.live] = _outliers(clustering, rule).any(1)
            own.append(flagged)
    return {rule: torch.cat(own) for rule, own in flags.items()}


def overlap(pairs: Iterable[tuple[Tensor, Tensor]]) -> list[int]:
    """Flagged filters that two analyses share, and those that either flags, summed over pairs of bool `(F,)`."""
    sums = [((a & b).sum().item(), (a | b).sum().item()) for a, b in pairs]
    return [int(sum(column)) for column in zip(*sums, strict=True)]


def _agreement(maps: dict[str, LayerMaps]) -> dict[str, dict[str, Any]]:
    everyone = torch.arange(PROBE)
    generator = torch.Generator().manual_seed(0)
    keep = PROBE - round(0.02 * PROBE)
    seeds = [flagged_by_rule(choose(maps, everyone), seed) for seed in range(_REPEATS)]
    fewer: Sequence[Tensor] = [torch.randperm(PROBE, generator=generator)[:keep].sort().values for _ in range(_REPEATS)]
    left_out = [flagged_by_rule(choose(maps, samples)) for samples in fewer]
    other = flagged_by_rule(choose(maps, everyone + PROBE))
    return {
        rule: {
            "flagged": sum(own[rule].sum().item() for own in seeds) / _REPEATS,
            "seeds": overlap((a[rule], b[rule]) for a, b in combinations(seeds, 2)),
            "left out": overlap((seeds[0][rule], own[rule]) for own in left_out),
            "other probe": overlap([(seeds[0][rule], other[rule])]),
            "selected": overlap((own[rule], own["best"]) for own in seeds),
        }
        for rule in RULES
    }


def measure(training: Training, root: str | None = None, weights: str | None = None) -> dict[str, Any]:
    """Agreement of the verdicts on a trained network.

    Args:
        training: The training.
        root: See `prepare`.
        weights: See `every_epoch`.

    Returns:
        The training's settings, and under `damaged`, by number of damaged images and rule: filters `flagged` (mean over
        the seeds), and as in `overlap` those shared by two `seeds`, with 2% of the probe `left out`, with an `other
        probe` and with the clustering that the index `selected`.
    """
    images = prepare(training, root)
    for _, last in every_epoch(training, images, weights):
        network = last
    found = {}
    for count in DAMAGED:
        pixels, _ = damaged_probes(images.data.val_images[: 2 * PROBE], count)
        maps = capture(network.eval(), normalise(pixels, images.mean, images.std), _SETTINGS)
        found[str(count)] = _agreement(maps)
    return {"cell": asdict(training), "damaged": found}
