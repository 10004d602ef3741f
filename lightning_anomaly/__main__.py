"""A quick look at a trained model, from the command line.

The model is built from `--model` with the arguments that a Lightning checkpoint stores, or those of `--model-args`, and
gets the checkpoint's weights. Images come from a folder, with or without a folder for each class, or from an .npz file:
from its array `val_images`, else `test_images`, else the only array that it has. Files and uint8 arrays, (N, H, W) or
(N, H, W, 3), are scaled to 0..1; floating-point ones, (N, C, H, W), are taken as they are. A model that does not
normalize its input in `forward` also needs the `--mean` and `--std` of the training's `Normalize`: without them it is
judged on images that it has never seen the like of.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_anomaly.analysis import analyze
from lightning_anomaly.browser import write
from lightning_anomaly.capture.hooks import evaluating
from lightning_anomaly.capture.layers import select_layers
from lightning_anomaly.checkpoint import load_model
from lightning_anomaly.images.files import ArrayImages, FolderImages, open_images, probe_positions
from lightning_anomaly.images.source import ImageSource
from lightning_anomaly.notes import merge_notes
from lightning_anomaly.outliers import find_outliers
from lightning_anomaly.plots import outlier_images
from lightning_anomaly.report.figures import FIGURES

_EXAMPLES = {
    "analyze": """examples:
  lightning-anomaly analyze last.ckpt --model my_project.models:Net --data photos --size 64
  lightning-anomaly weights.pt --model torchvision.models:resnet18 --model-args '{"num_classes": 10}' --data val.npz""",
    "outliers": """examples:
  lightning-anomaly outliers last.ckpt --model my_project.models:Net --data photos --size 64
  lightning-anomaly outliers last.ckpt --model my_project.models:Net --data new.npz --reference val.npz --top 100""",
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the options; a checkpoint without a command before it is analyzed."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] not in ("analyze", "outliers", "-h", "--help"):
        given.insert(0, "analyze")
    parser = argparse.ArgumentParser(prog="lightning-anomaly", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    helps = {
        "analyze": "print and draw anomaly filters by 512 images, the default: the first ones of a file",
        "outliers": "score images, and list and draw those that belong least",
    }
    for name, run, folder in (("analyze", run_analysis, "anomaly_filters"), ("outliers", run_outliers, "outliers")):
        raw = argparse.RawDescriptionHelpFormatter
        command = commands.add_parser(name, help=helps[name], epilog=_EXAMPLES[name], formatter_class=raw)
        command.set_defaults(run=run)
        add = command.add_argument
        add("checkpoint", type=Path, help="a state_dict or a Lightning checkpoint, as a file")
        add("--model", required=True, metavar="MODULE:CLASS", help="what builds the model: a class or function")
        add("--data", required=True, type=Path, metavar="PATH", help="the images: a folder or an .npz file")
        add("--size", type=_positive, metavar="PIXELS", help="height and width to give to the images of a folder")
        add("--mean", type=float, nargs="+", metavar="X", help="means by which the training normalizes, of 0..1")
        add("--std", type=_above_zero, nargs="+", metavar="X", help="its standard deviations, one or one per channel")
        add("--device", type=_device, default="cpu", help="where the model runs, such as cuda, default: %(default)s")
        add("--model-args", type=_json_object, default={}, metavar="JSON", help="""such as '{"channels": 3}'""")
        add("--output", type=Path, default=folder, help="folder for what is written, default: %(default)s")
    add("--reference", type=Path, metavar="PATH", help="ordinary images, likewise, default: some of these")
    add("--top", type=_positive, default=50, help="images to list, the first 64 also drawn, default: %(default)s")
    return parser.parse_args(given)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"it should be a positive integer. Found '{text}'.")
    return int(text)


def _above_zero(text: str) -> float:
    if not 0 < (number := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"it should be a number above 0. Found '{text}'.")
    return number


def _device(text: str) -> torch.device:
    try:
        return torch.empty(0, device=text).device
    except (RuntimeError, AssertionError) as error:
        message = f"it should be a device that torch finds here, such as cpu or cuda. Found '{text}': {error}"
        raise argparse.ArgumentTypeError(" ".join(message.split())) from None


def _json_object(text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (TypeError, ValueError):
        message = f"it should be a JSON object such as '{{\"channels\": 3}}'. Found '{text}'."
        raise argparse.ArgumentTypeError(message) from None


def run_analysis(options: argparse.Namespace) -> None:
    """Analyze the first images, print the table and write the figures and the filter browser."""
    model = load_model(options.checkpoint, options.model, options.model_args).to(options.device)
    given = _open(model, options.data, options)
    source = ImageSource(given, "--data")
    read = [*source.batches(probe_positions(given, 512))]  # as many as in `AnomalyFilterCallback`
    positions, images = (torch.cat(part) for part in zip(*read, strict=True))
    known = [place for place, position in enumerate(positions.tolist()) if position not in source.unreadable]
    chosen, images = positions[known].tolist(), images[known]
    names, labels = (own and [own[position] for position in chosen] for own in (source.names, given.labels))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the notes, which the table has too
        report = analyze(model, images, keep_images=True)
    if not report.layers:
        raise ValueError(f"`{options.model}` has no filters to analyze. {' '.join(merge_notes(report.notes).values())}")
    print(report)
    for note in source.notes(len(positions)).values():
        print(f"note: {note}")
    if labels is not None and len({*labels}) == 1:
        print(f"note: All images are of the class '{labels[0]}': give the folder with all classes as `--data`.")
    options.output.mkdir(parents=True, exist_ok=True)
    shown = None
    if report.n_samples == len(images):
        shown = outlier_images(images, report.outlier_scores, report.outlier_samples)
    drawn = []
    for name, draw in FIGURES.items():
        file = options.output / f"{name}.png"
        file.unlink(missing_ok=True)  # that of an earlier run
        if (figure := draw(report, shown)) is not None:
            figure.savefig(file)
            drawn.append(file.name)
    browser = options.output / "browser.html"
    write(browser, report.page_text(f"{options.model} on {options.data.name}", labels=labels, names=names))
    print(f"every filter with its images: open {browser}")
    print(f"figures in {options.output}: {', '.join(drawn)}")


def run_outliers(options: argparse.Namespace) -> None:
    """Score all images, print the table and write those that belong least."""
    model = load_model(options.checkpoint, options.model, options.model_args).to(options.device)
    images = _open(model, options.data, options)
    reference = None if options.reference is None else _open(model, options.reference, options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the notes, which the table has too
        report = find_outliers(model, images, reference)
    print(report)
    options.output.mkdir(parents=True, exist_ok=True)
    gallery = options.output / "outliers.html"
    report.save_html(gallery, title=f"{options.model} on {options.data.name}")
    report.save_csv(options.output / "outliers.csv", options.top)
    report.plot(options.top).savefig(options.output / "outliers.png")
    print(f"to look through them and tick some: open {gallery}")
    print(f"in {options.output}: outliers.csv, outliers.png")


def _open(model: nn.Module, path: Path, options: argparse.Namespace) -> ArrayImages | FolderImages:
    """Open images, and run the model once on zeros, so that images of another kind are named before the work begins."""
    first = next(iter(select_layers(model).values()), None)
    images = open_images(path, options.size, getattr(first, "in_channels", 3) == 1, options.mean, options.std)
    print(f"images of {path.name}: {images.scaling}")
    try:
        with evaluating(model), torch.no_grad():
            model(torch.zeros(2, *images.shape, device=options.device))
    except Exception as error:  # whatever the user's model raises
        raise ValueError(
            f"`{options.model}` cannot take the images of `{path.name}`, {images.shape} (channels, height, width): "
            f"give images like those it was trained on. {type(error).__name__}: {error}"
        ) from error
    return images


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; what a user got wrong ends in one sentence instead of a traceback."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # for `--model`: only `python -m` looks there by itself
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may not know the letters of a file's name
            stream.reconfigure(errors="backslashreplace")
    try:
        options = parse(arguments)
        options.run(options)
    except (ValueError, OSError) as error:
        sys.exit("error: " + " ".join(str(error).split()))


if __name__ == "__main__":
    main()
