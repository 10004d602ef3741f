"""The 24 strangest images of all of Fashion-MNIST, and of all of CIFAR-10 (JPEG).

`python -m recipes.development.found --data-root DIR --weights DIR` searches training and test images with the networks
of `recipes.development.good_networks`, in some minutes on two cores. The reference is 4,000 of the test images. A line
for each data set goes to results/found.jsonl, the pictures to docs/pictures; then `python -m recipes.experiments
results` makes the table. A position counts training images first, then test images.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_anomaly import OutlierDetector
from recipes.common.data import download, load_images
from recipes.common.options import add_data_options, one_sentence_errors
from recipes.development.good_networks import NETWORKS, load_good
from recipes.experiments.store import RESULTS, append, rounded

CLASSES = {
    "fashion_mnist": (
        "T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    ),
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}  # fmt: skip
_NETWORKS = {good.data: good for good in NETWORKS if good.network == "resnet20" and not good.left_out}
_SHOWN, _COLUMNS, _BATCH = 24, 6, 256
_PICTURES = Path(__file__).parents[2] / "docs" / "pictures"


def search(data: str, root: str | None, weights: Path) -> tuple[dict[str, Any], Tensor]:
    """Search a data set; return its line and the strangest images, uint8 `(24, C, H, W)`."""
    images = load_images(data, root)
    model = load_good(_NETWORKS[data], weights, images.channels)
    detector = OutlierDetector(model).fit(images.test_images.float(), batch_size=_BATCH)
    everything = torch.cat([images.train_images, images.test_images])
    report = detector.search(everything.float(), batch_size=_BATCH)
    top = report.top(_SHOWN)
    with torch.inference_mode():
        predicted = model(everything[top].float()).argmax(1)
    labels, names = torch.cat([images.train_labels, images.test_labels])[top], CLASSES[data]
    rows = [
        {
            "position": position,
            "label": names[label],
            "predicted": names[guess],
            "score": report.scores[position].item(),
            "reason": next(iter(report.outlier_reasons(position).values())).partition(" (the network sees")[0],
        }
        for position, label, guess in zip(top, labels.tolist(), predicted.tolist(), strict=True)
    ]
    line = {"key": data, "images": len(everything), "significant": len(report.significant), "top": rows}
    return rounded(line), everything[top]


def gallery(line: dict[str, Any], images: Tensor) -> Figure:
    """Draw images uint8 `(n, C, H, W)`, each with its label and the first reason."""
    figure = Figure(figsize=(7.5, 1.75 * len(images) / _COLUMNS), layout="constrained")
    axes = figure.subplots(len(images) // _COLUMNS, _COLUMNS)
    for axis, row, image in zip(axes.flat, line["top"], images, strict=True):
        axis.imshow(image.permute(1, 2, 0), cmap="gray", vmin=0, vmax=255)
        axis.set_title(row["label"], fontsize=8, pad=3)
        axis.set_xlabel(textwrap.fill(row["reason"], 26), fontsize=6, labelpad=3)
        axis.set(xticks=[], yticks=[])
    return figure


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser)
    parser.add_argument("--weights", type=Path, required=True, help="folder of the good networks")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Search both data sets."""
    if options.download:
        download(CLASSES, options.data_root)
    for data in CLASSES:
        line, images = search(data, options.data_root, options.weights)
        append(RESULTS / "found.jsonl", line)
        with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
            gallery(line, images).savefig(_PICTURES / f"found_{data}.png", dpi=150)


if __name__ == "__main__":
    one_sentence_errors(run, parse)
