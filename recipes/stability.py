"""Does a verdict belong to the filter, or to the seed and the probe? `python -m recipes.stability --data cifar10`.

Trains a network, then analyses the same maps with several seeds, with 2% of the probe left out, and on another probe,
and prints how much of the flagged filters two analyses share (Jaccard index; 1 where neither flags any), and for how
many filters both give the same verdict. Where ordinary images leave a rule nothing to flag, such an index says nothing;
so all of this is done again with some images of each probe damaged.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, product
from statistics import mean

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_anomaly import AnalysisSettings, AnomalyReport
from lightning_anomaly.analysis import analyze_maps
from recipes.common.damage import plant_damage
from recipes.common.data import make_loaders, mean_and_std, normalise
from recipes.common.maps import capture, choose
from recipes.common.module import Classifier
from recipes.common.networks import build
from recipes.common.options import add_training_options, at_least, one_sentence_errors, prepare_data, quiet

PROBE = 512


def flagged(report: AnomalyReport) -> set[tuple[str, int]]:
    """The anomaly filters as pairs of layer and filter."""
    return {(layer, index) for layer, filters in report.anomaly_filters.items() for index in filters}


def jaccard(first: AnomalyReport, second: AnomalyReport) -> float:
    """The share of the filters flagged in either report that are flagged in both; 1 if there are none."""
    a, b = flagged(first), flagged(second)
    return len(a & b) / len(a | b) if a | b else 1.0


def same_components(first: AnomalyReport, second: AnomalyReport) -> float:
    """The share of the filters for which two reports choose the same number of components."""
    pairs = [(layer.n_components, second.layers[name].n_components) for name, layer in first.layers.items()]
    return torch.cat([a == b for a, b in pairs]).double().mean().item()


def same_verdict(first: AnomalyReport, second: AnomalyReport) -> float:
    """The share of the filters to which two reports give the same verdict."""
    pairs = [(layer.verdicts, second.layers[name].verdicts) for name, layer in first.layers.items()]
    return mean(a == b for verdicts in pairs for a, b in zip(*verdicts, strict=True))


def damaged_probes(images: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Two probes of images uint8 `(2 * PROBE, C, H, W)`, in each of them `count` with noise or salt and pepper.

    Returns:
        The images, and which of them are damaged `(2 * PROBE,)`.
    """
    probes, damaged = [], torch.zeros(len(images), dtype=torch.bool)
    for first in range(0, len(images), PROBE):
        probe, planted = plant_damage(images[first : first + PROBE], count, ["noise", "salt_and_pepper"], seed=first)
        probes.append(probe)
        for places in planted.values():
            damaged[[first + place for place in places]] = True
    return torch.cat(probes), damaged


def measure(
    network: nn.Module, images: Tensor, damaged: Tensor, settings: AnalysisSettings, repeats: int
) -> dict[str, float]:
    """Agreement of analyses of two probes of 512 images `(1024, C, H, W)`, some of them damaged `(1024,)`."""
    maps = capture(network, images, settings)
    everyone = torch.arange(PROBE)
    probe = choose(maps, everyone)
    seeds = [analyze_maps(probe, replace(settings, seed=seed)) for seed in range(repeats)]
    generator = torch.Generator().manual_seed(0)
    keep = PROBE - round(0.02 * PROBE)
    left_out = [
        analyze_maps(choose(maps, torch.randperm(PROBE, generator=generator)[:keep].sort().values), settings)
        for _ in range(repeats)
    ]
    other = analyze_maps(choose(maps, everyone + PROBE), settings)
    pairs = list(combinations(seeds, 2))
    voted = torch.tensor(seeds[0].outlier_samples) > 0
    return {
        "flagged": mean(report.count for report in seeds),
        "damaged_found": int((voted & damaged[:PROBE]).sum()),
        "others_found": int((voted & ~damaged[:PROBE]).sum()),
        "seeds_jaccard": mean(jaccard(a, b) for a, b in pairs),
        "seeds_jaccard_min": min(jaccard(a, b) for a, b in pairs),
        "seeds_same_k": mean(same_components(a, b) for a, b in pairs),
        "left_out_jaccard": mean(jaccard(seeds[0], report) for report in left_out),
        "left_out_jaccard_min": min(jaccard(seeds[0], report) for report in left_out),
        "left_out_same_verdict": mean(same_verdict(seeds[0], report) for report in left_out),
        "disjoint_jaccard": jaccard(seeds[0], other),
        "disjoint_flagged": other.count,
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_training_options(parser, epochs=16, train_size=4000)
    parser.set_defaults(val_size=2 * PROBE)
    parser.add_argument("--repeats", type=at_least(2), default=10, help="seeds and draws, default: %(default)s")
    parser.add_argument("--rare-fraction", type=float, nargs="+", default=[AnalysisSettings().rare_fraction])
    parser.add_argument("--damaged", type=int, nargs="+", default=[0, 8], help="damaged images, default: %(default)s")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> list[dict[str, float | str]]:
    """Train, measure, print a table, and return its rows."""
    quiet()
    pl.seed_everything(options.seed, verbose=False)
    data = prepare_data(options)
    if len(data.val_images) < 2 * PROBE:
        raise ValueError(
            f"Option `--val-size` should leave at least {2 * PROBE} validation images, two probes. Found "
            f"{len(data.val_images)}."
        )
    network = build(options.network, data.channels, data.n_classes)
    train, _ = make_loaders(data, options.batch_size)
    trainer = pl.Trainer(
        max_epochs=options.epochs, logger=False, enable_checkpointing=False, limit_val_batches=0, accelerator="auto"
    )
    trainer.fit(Classifier(network, options.lr), train)
    rows: list[dict[str, float | str]] = []
    for count, fraction in product(options.damaged, options.rare_fraction):
        pixels, damaged = damaged_probes(data.val_images[: 2 * PROBE], count)
        images = normalise(pixels, *mean_and_std(data.train_images))
        for settings in (
            AnalysisSettings(rare_fraction=fraction),
            AnalysisSettings(rare_fraction=fraction, rectify=False),
            AnalysisSettings(rare_fraction=fraction, rule="vote"),
            AnalysisSettings(rare_fraction=fraction, rule="best"),
            replace(AnalysisSettings.paper(), rare_fraction=fraction),
            AnalysisSettings(rare_fraction=fraction, rule="best", max_components=8, init="random", n_init=1),
        ):
            maps = "rectified" if settings.rectify else "unrectified"
            starts = f"{settings.n_init} {settings.init}"
            name = f"{settings.rule}, K <= {settings.max_components}, {starts}, {maps}"
            found = measure(network.cpu(), images, damaged, settings, options.repeats)
            rows.append({"settings": name, "rare": fraction, "damaged": count, **found})
            print(rows[-1], flush=True)
    columns = list(rows[0])
    print("\n| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    for row in rows:
        print("| " + " | ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()) + " |")
    return rows


if __name__ == "__main__":
    one_sentence_errors(run, parse)
