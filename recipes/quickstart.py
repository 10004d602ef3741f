"""Train a small network until it overfits, and watch its filters: `python -m recipes.quickstart`.

By default scikit-learn's digits, which need no download. A few validation images are damaged first, so that there is
something true to find: at the end the recipe says which of them the outlier votes and the outlier scores found.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_anomaly import AnomalyFilterCallback, AnomalyReport
from recipes.common.damage import over_expose, plant_damage
from recipes.common.data import make_loaders
from recipes.common.module import Classifier
from recipes.common.networks import build
from recipes.common.options import (
    add_damage_option,
    add_training_options,
    check_damaged,
    one_sentence_errors,
    prepare_data,
    probe_size_in,
    quiet,
)

# Over-exposed images are first marked by `plant_damage` and then given values beyond the range that a uint8 can hold.
DAMAGE = ("over_exposed", "white", "salt_and_pepper")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_training_options(parser, epochs=30, train_size=200)
    add_damage_option(parser)
    parser.add_argument("--picture", default=None, help="write the curves to this PNG file")
    return parser.parse_args(arguments)


def find(votes: Sequence[int], damaged: set[int]) -> tuple[list[int], float, float]:
    """The images that are outliers of some filter, most votes first, with precision and recall."""
    found = sorted((image for image, count in enumerate(votes) if count), key=lambda image: -votes[image])
    right = len(damaged.intersection(found))
    return found, right / len(found) if found else 1.0, right / len(damaged) if damaged else 1.0


def describe_find(votes: Sequence[int], planted: Mapping[str, Sequence[int]]) -> str:
    """What the outlier votes found of the damaged images, in words."""
    kind_of = {image: kind for kind, images in planted.items() for image in images}
    found, precision, recall = find(votes, set(kind_of))
    lines = [f"{len(kind_of)} validation images were damaged; {len(found)} images are outliers of some filter:"]
    lines += [
        f"  image {image:3d}: outlier of {votes[image]:3d} filters, {kind_of.get(image, 'not damaged')}"
        for image in found[:20]
    ]
    missed = [f"{image} ({kind_of[image]})" for image in sorted(set(kind_of) - set(found))]
    lines += [f"  not found: {', '.join(missed)}"] if missed else []
    lines += [f"precision {precision:.2f}, recall {recall:.2f}"] if kind_of else []
    return "\n".join(lines)


def describe_scores(report: AnomalyReport, planted: Mapping[str, Sequence[int]]) -> str:
    """Which images have the largest outlier scores, and how many of the damaged ones are among as many, in words."""
    kind_of = {image: kind for kind, images in planted.items() for image in images}
    first = report.by_outlier_score[: len(kind_of)]
    lines = [f"by outlier score, {len({*first} & {*kind_of})} of the {len(kind_of)} are the first {len(kind_of)}:"]
    lines += [
        f"  image {image:3d}: score {report.outlier_scores[image]:5.1f}, {kind_of.get(image, 'not damaged')}"
        for image in report.by_outlier_score[: len(kind_of) + 2]
    ]
    return "\n".join(lines) if kind_of else ""


def draw_curves(log_dir: str, title: str, path: str) -> None:
    """Draw the losses and both counts of filters that TensorBoard's event files hold, over the same epochs."""
    events = EventAccumulator(log_dir)
    events.Reload()
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    losses = figure.subplots()
    for tag, colour in (("train_loss", "#0072B2"), ("val_loss", "#D55E00")):
        values = [event.value for event in events.Scalars(tag)]
        losses.plot(range(1, len(values) + 1), values, color=colour, label=tag)
    losses.set(xlabel="epoch", ylabel="cross-entropy (nats)", title=title)
    losses.set_ylim(bottom=0)
    counts = losses.twinx()
    for tag, colour in (("anomaly_filters/count", "#009E73"), ("anomaly_filters/isolated", "#CC79A7")):
        values = [event.value for event in events.Scalars(tag)]
        counts.plot(range(1, len(values) + 1), values, color=colour, linestyle="--", label=tag)
    counts.set_ylabel("filters")
    counts.set_ylim(bottom=0)
    lines = [*losses.get_lines(), *counts.get_lines()]
    labels = [str(line.get_label()) for line in lines]
    losses.legend(lines, labels, loc="center right", bbox_to_anchor=(1, 0.28), ncols=2)
    figure.savefig(path, dpi=110, format="png")


def run(options: argparse.Namespace) -> AnomalyFilterCallback:
    """Train, print what was found, and return the callback that watched."""
    quiet()
    pl.seed_everything(options.seed, verbose=False)
    data = prepare_data(options)
    check_damaged(options, data)
    if options.picture and not Path(options.picture).absolute().parent.is_dir():
        raise ValueError(f"Option `--picture` should name a file in an existing folder. Found {options.picture}.")
    watched = probe_size_in(data)
    probe, planted = plant_damage(data.val_images[:watched], options.damaged, DAMAGE, options.seed)
    images = torch.cat([probe, data.val_images[watched:]])
    train, val = make_loaders(dataclasses.replace(data, val_images=images), options.batch_size)
    over_expose(val, data, planted["over_exposed"])
    watcher = AnomalyFilterCallback(probe_size=watched, browser=True)
    logger = TensorBoardLogger(options.log_dir, name="quickstart")
    trainer = pl.Trainer(
        max_epochs=options.epochs, logger=logger, callbacks=[watcher], num_sanity_val_steps=0, accelerator="auto"
    )
    network = build(options.network, data.channels, data.n_classes)
    trainer.fit(Classifier(network, options.lr), train, val)
    counts = {key: [int(entry["metrics"][key]) for entry in watcher.history] for key in ("count", "isolated")}
    print(f"\n{options.network} on {len(data.train_images)} images of {options.data}, {options.epochs} epochs")
    print(f"val_loss {trainer.callback_metrics['val_loss']:.3f}, val_acc {trainer.callback_metrics['val_acc']:.3f}")
    print(f"anomaly filters by epoch: {counts['count']}\nisolated ones: {counts['isolated']}\n")
    report = watcher.report
    if report is not None:
        print(report)
        print(f"\n{describe_find(report.outlier_samples, planted)}\n{describe_scores(report, planted)}")
    if options.picture:
        title = f"{options.network}, {len(data.train_images)} images of {options.data}, {options.damaged} damaged"
        draw_curves(logger.log_dir, title, options.picture)
    print(f"\nHover every filter's points:  open {Path(logger.log_dir) / 'anomaly_filters' / 'browser.html'}")
    print(f"Look at it:  tensorboard --logdir {shlex.quote(options.log_dir)}   (tab 'Custom scalars' has the overlay)")
    return watcher


if __name__ == "__main__":
    one_sentence_errors(run, parse)
