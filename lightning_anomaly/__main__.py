"""A quick look at a trained model, from the command line.

The model is built by `--model`, with the arguments in a Lightning checkpoint or in `--model-args`, and loads the
weights of the checkpoint. Images come from a folder, with or without a subfolder for each class, and are scaled to
0..1. A model that does not normalize its input in `forward` needs the `--mean` and `--std` of its training's
`Normalize`: without them it sees images unlike any it was trained on. `outliers` needs no model: by default it takes
one that is pretrained on ImageNet.
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

from lightning_anomaly._internal.notes import merge_notes
from lightning_anomaly.filters.analyze import analyze
from lightning_anomaly.images.files import FolderImages, open_images, probe_positions
from lightning_anomaly.images.source import ImageSource
from lightning_anomaly.network.checkpoint import load_model
from lightning_anomaly.network.forward import probing
from lightning_anomaly.network.layers import select_layers
from lightning_anomaly.network.pretrained import load_pretrained
from lightning_anomaly.outliers import find_outliers
from lightning_anomaly.pages.page import write

_EXAMPLES = {
    "analyze": """examples:
  lightning-anomaly analyze last.ckpt --model my_project.models:Net --data photos --size 64
  lightning-anomaly weights.pt --model torchvision.models:resnet18 --data photos --size 224""",
    "outliers": """examples:
  lightning-anomaly outliers --data photos
  lightning-anomaly outliers last.ckpt --model my_project.models:Net --data new --reference val --size 64""",
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the options; without a command, the checkpoint is analyzed."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] not in ("analyze", "outliers", "-h", "--help"):
        words.insert(0, "analyze")
    parser = argparse.ArgumentParser(prog="lightning-anomaly", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, folder, summary in (
        ("analyze", run_analysis, "anomaly_filters", "find the anomaly filters, with 512 images (the default command)"),
        ("outliers", run_outliers, "outliers", "score images, and list and show the oddest ones"),
    ):
        raw = argparse.RawDescriptionHelpFormatter
        command = commands.add_parser(name, help=summary, epilog=_EXAMPLES[name], formatter_class=raw)
        command.set_defaults(run=run)
        add = command.add_argument
        optional = name == "outliers"
        add("checkpoint", type=Path, nargs="?" if optional else None, help="file with a state_dict or Lightning's")
        add("--model", required=not optional, metavar="MODULE:CLASS", help="class or function that builds the model")
        add("--data", required=True, type=Path, metavar="PATH", help="folder of images")
        add("--size", type=_positive, metavar="PIXELS", help="height and width of the images of a folder")
        add("--mean", type=float, nargs="+", metavar="X", help="mean of `Normalize`, one number or one per channel")
        add("--std", type=_above_zero, nargs="+", metavar="X", help="standard deviation of `Normalize`, as for --mean")
        add("--device", type=_device, default="cpu", help="device of the model, such as cuda, default: %(default)s")
        add("--model-args", type=_json_object, default={}, metavar="JSON", help="""its arguments: '{"channels": 3}'""")
        add("--output", type=Path, default=folder, help="folder to write to, default: %(default)s")
    add("--classes", type=Path, metavar="FILE", help="names of the model's classes, one in each line")
    add("--reference", type=Path, metavar="PATH", help="ordinary images, as for --data; default: some of --data")
    add("--top", type=_positive, default=50, help="images in outliers.csv, default: %(default)s")
    return parser.parse_args(words)


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
    """Analyze up to 512 images, print the table, and write the filter browser."""
    model = load_model(options.checkpoint, options.model, options.model_args).to(options.device)
    dataset = _open(model, options.data, options)
    source = ImageSource(dataset, "--data")
    source.positions = probe_positions(dataset, 512)  # the default of `AnomalyFilterCallback`
    images = torch.cat([*source.readable()])
    read = [position for position in source.positions if position not in source.unreadable]
    names, labels = (column and [column[position] for position in read] for column in (source.names, dataset.labels))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the table has the notes
        report = analyze(model, images, keep_images=True)
    if not report.layers:
        raise ValueError(f"`{options.model}` has no filters to analyze. {' '.join(merge_notes(report.notes).values())}")
    print(report)
    for note in source.notes().values():
        print(f"note: {note}")
    if labels is not None and len({*labels}) == 1:
        print(f"note: All images are of the class '{labels[0]}': give the folder with all classes as `--data`.")
    browser = options.output / "browser.html"
    write(browser, report.page_text(f"{options.model} on {options.data.name}", labels=labels, names=names))
    print(f"every filter with its images: open {browser}")


def run_outliers(options: argparse.Namespace) -> None:
    """Score all images, print the table, and write the gallery and the list of the oddest ones."""
    model, names = _load_model(options)
    images = _open(model, options.data, options)
    if options.classes is not None:
        names = options.classes.read_text("utf-8").splitlines()
    reference = None if options.reference is None else _open(model, options.reference, options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the table has the notes
        report = find_outliers(model, images, reference, class_names=names or None)
    print(report)
    gallery = options.output / "outliers.html"
    report.save_html(gallery, title=f"{options.model} on {options.data.name}")
    report.save_csv(gallery.with_suffix(".csv"), options.top)
    print(f"to look through them and tick some: open {gallery}")
    print(f"as a table: {gallery.with_suffix('.csv')}")


def _load_model(options: argparse.Namespace) -> tuple[nn.Module, Sequence[str]]:
    """Load the model of a checkpoint, or without one a pretrained model, and the names of its classes if known."""
    names: Sequence[str] = ()
    if options.model is None and options.checkpoint is None:
        options.model, model, names = load_pretrained()
        options.size = options.size or 224
        print(f"network: {options.model}, pretrained on ImageNet")
    elif None in (options.model, options.checkpoint):
        found = f"`{options.checkpoint}`" if options.model is None else f"`--model {options.model}`"
        raise ValueError(f"A checkpoint and `--model` should be given, or neither of them. Found only {found}.")
    else:
        model = load_model(options.checkpoint, options.model, options.model_args)
    return model.to(options.device), names


def _open(model: nn.Module, path: Path, options: argparse.Namespace) -> FolderImages:
    """Open images, and run the model on two zero images, to find images of the wrong shape before the work begins."""
    first = next(iter(select_layers(model).values()), None)
    images = open_images(path, options.size, getattr(first, "in_channels", 3) == 1, options.mean, options.std)
    hint = options.checkpoint and images.scaling.endswith("0..1")
    print(f"images of {path.name}: {images.scaling}{', not normalized (see `--mean`)' if hint else ''}")
    try:
        with probing(model) as call:
            call(torch.zeros(2, *images.shape, device=options.device))
    except Exception as error:
        raise ValueError(
            f"`{options.model}` cannot take the images of `{path.name}`, {images.shape} (channels, height, width): "
            f"give images like those it was trained on. {type(error).__name__}: {error}"
        ) from error
    return images


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; a user's mistake ends in one sentence instead of a traceback."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # for `--model`, as `python -m` does
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # the terminal's encoding may lack letters of a file name
            stream.reconfigure(errors="backslashreplace")
    try:
        options = parse(arguments)
        options.run(options)
    except (ValueError, OSError) as error:
        sys.exit("error: " + " ".join(str(error).split()))


if __name__ == "__main__":
    main()
