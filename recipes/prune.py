"""Does it help to mask anomaly filters? `python -m recipes.prune`, or with `--data cifar10 --damaged 0`.

Trains the same network from the same start four times for each seed: without masking, and masking half-way the anomaly
filters, as many random filters of the same layers, and as many with the smallest weights. Then compares them on the
test images. In digits there is hardly an anomaly filter to be found, so by default a few validation images are given a
brightness out of range, which makes the filters that react to them anomalous; test images are left as they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import lightning.pytorch as pl
import torch

from lightning_anomaly.callbacks import AnomalyFilterCallback, AnomalyPruneCallback
from recipes.common.damage import over_expose
from recipes.common.data import ImageData, make_loaders, mean_and_std, normalise
from recipes.common.evaluation import evaluate
from recipes.common.module import Classifier
from recipes.common.networks import build
from recipes.common.options import (
    SILENT,
    add_damage_option,
    add_training_options,
    at_least,
    check_damaged,
    one_sentence_errors,
    prepare_data,
    probe_size_in,
    quiet,
)

ARMS = ("nothing", "anomaly", "random", "l1")


@dataclass(frozen=True)
class Outcome:
    """One training: masked filters, their share of the parameters, test loss (nats) and test accuracy."""

    masked: int
    share: float
    loss: float
    accuracy: float

    def __str__(self) -> str:
        masked = f"{self.masked} filters with {self.share:.1%} of the parameters masked"
        return f"{masked}, test loss {self.loss:.3f}, test accuracy {self.accuracy:.3f}"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_training_options(parser, epochs=12, train_size=200)
    parser.add_argument("--at-epoch", type=int, default=6, help="mask after so many epochs, default: %(default)s")
    parser.add_argument("--max-fraction", type=float, default=0.25, help="of a layer's filters, default: %(default)s")
    add_damage_option(parser)
    parser.add_argument("--seeds", type=at_least(1), default=3, help="trainings of each kind, default: %(default)s")
    return parser.parse_args(arguments)


def train(data: ImageData, options: argparse.Namespace, arm: str, seed: int) -> Outcome:
    """One training from the seed, masking what `arm` says."""
    pl.seed_everything(seed, verbose=False)
    training, validation = make_loaders(data, options.batch_size)
    damaged = torch.randperm(probe_size_in(data), generator=torch.Generator().manual_seed(seed))[: options.damaged]
    over_expose(validation, data, damaged)
    watcher = AnomalyFilterCallback(probe_size=probe_size_in(data), log_figures=False)
    prune = AnomalyPruneCallback(
        at_epoch=options.at_epoch,
        max_fraction=options.max_fraction,
        criterion="anomaly" if arm == "nothing" else arm,  # type: ignore[arg-type]
        seed=seed,
    )
    module = Classifier(build(options.network, data.channels, data.n_classes), options.lr)
    trainer = pl.Trainer(
        max_epochs=options.epochs,
        callbacks=[watcher] if arm == "nothing" else [watcher, prune],
        default_root_dir=options.log_dir,
        num_sanity_val_steps=0,
        **SILENT,
    )
    trainer.fit(module, training, validation)
    test_images = normalise(data.test_images, *mean_and_std(data.train_images))
    loss, accuracy = evaluate(module, test_images, data.test_labels)
    share = 0.0 if prune.mask is None else prune.mask.parameter_fraction
    return Outcome(sum(map(len, prune.masked.values())), share, loss, accuracy)


def table(outcomes: dict[str, list[Outcome]]) -> str:
    """Means over the seeds, with standard deviations."""
    lines = [f"{'masked':8}  {'filters':>8}  {'parameters':>10}  {'test loss':>16}  {'test accuracy':>16}"]
    for arm, runs in outcomes.items():
        masked, share = mean(r.masked for r in runs), mean(r.share for r in runs)
        loss, accuracy = _mean_and_spread([r.loss for r in runs]), _mean_and_spread([r.accuracy for r in runs])
        lines.append(f"{arm:8}  {masked:8.1f}  {share:10.1%}  {loss:>16}  {accuracy:>16}")
    return "\n".join(lines)


def _mean_and_spread(values: Sequence[float]) -> str:
    return f"{mean(values):.3f} +- {stdev(values) if len(values) > 1 else 0.0:.3f}"


def verdict(outcomes: dict[str, list[Outcome]]) -> str:
    """What the comparison within each seed says, and no more."""
    runs = outcomes["anomaly"]
    if not any(run.masked for run in runs):
        return "No anomaly filter had the votes to be masked, so there is nothing to compare."
    parts = []
    for arm in ("nothing", "random", "l1"):
        better = sum(run.loss < other.loss for run, other in zip(runs, outcomes[arm], strict=True))
        parts.append(f"masking {arm} in {better}")
    return f"Of {len(runs)} seeds, masking anomaly filters ends with a smaller test loss than {', than '.join(parts)}."


def run(options: argparse.Namespace) -> dict[str, list[Outcome]]:
    """Train all, print the comparison, and return what came out."""
    if not 2 <= options.at_epoch < options.epochs:  # filters are flagged in two reports before they are masked
        raise ValueError(
            f"Option `--at-epoch` should be at least 2 and below `--epochs {options.epochs}`. Found {options.at_epoch}."
        )
    quiet()
    data = prepare_data(options)
    check_damaged(options, data)
    outcomes: dict[str, list[Outcome]] = {arm: [] for arm in ARMS}
    for seed in range(options.seed, options.seed + options.seeds):
        for arm in ARMS:
            outcomes[arm].append(train(data, options, arm, seed))
            print(f"seed {seed}, masking {arm}: {outcomes[arm][-1]}", flush=True)
    print(
        f"\n{options.network} on {len(data.train_images)} images of {options.data}, {options.epochs} epochs,", end=" "
    )
    print(f"masked before epoch {options.at_epoch}, {options.damaged} validation images damaged\n")
    print(table(outcomes))
    print(f"\n{verdict(outcomes)}")
    return outcomes


if __name__ == "__main__":
    one_sentence_errors(run, parse)
