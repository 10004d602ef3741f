"""Find odd images in a folder, or the filters of a trained network that single some out."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from tempfile import TemporaryFile
from textwrap import indent
from typing import TYPE_CHECKING, Any

from lightning_anomaly import __version__

if TYPE_CHECKING:  # torch comes late, so that help and mistakes in the options come at once
    import torch
    from torch import nn

    from lightning_anomaly.images.files import FolderImages

_MODEL = """
The model is built by --model, with the arguments in a Lightning checkpoint or
in --model-args, and loads the weights of the checkpoint. It is given the
images of a folder, with or without a subfolder for each class, scaled and
cropped to --size and scaled to 0..1. A model that does not normalize its input
in `forward` needs the --mean and --std of its training's `Normalize`: without
them it sees images unlike any it was trained on."""
_DESCRIPTIONS = {
    "analyze": f"""\
Analyze the filters of a model with up to 512 images. Prints a table, and
writes a page of every filter with its images to the folder --output.
{_MODEL}""",
    "outliers": f"""\
Score the images of a folder by look and by content, and by whether they look
like another class than that of their subfolder. Writes a page and a table of
the oddest ones, of duplicates and of files that cannot be read to the folder
--output. Without a checkpoint and --model, the network is one that is
pretrained on ImageNet.
{_MODEL}""",
}
_EXAMPLES = {
    "analyze": """examples:
  lightning-anomaly analyze last.ckpt --model my_project.models:Net --data photos --size 64
  lightning-anomaly analyze weights.pt --model torchvision.models:resnet18 --data photos --size 224""",
    "outliers": """examples:
  lightning-anomaly outliers --data photos
  lightning-anomaly outliers last.ckpt --model my_project.models:Net --data new --reference val --size 64""",
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the options."""
    more = "`lightning-anomaly COMMAND --help` lists the options of a command, with examples."
    parser = argparse.ArgumentParser(prog="lightning-anomaly", description=__doc__, epilog=more)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, folder, summary in (
        ("analyze", run_analysis, "anomaly_filters", "find the anomaly filters of a model, with up to 512 images"),
        ("outliers", run_outliers, "outliers", "find the oddest images of a folder, duplicates and broken files"),
    ):
        description, examples, raw = _DESCRIPTIONS[name], _EXAMPLES[name], argparse.RawDescriptionHelpFormatter
        command = commands.add_parser(name, help=summary, description=description, epilog=examples, formatter_class=raw)
        command.set_defaults(run=run)
        add = command.add_argument
        optional = name == "outliers"
        weights = "file with the weights of the model: a state_dict or a Lightning checkpoint"
        add("checkpoint", type=Path, nargs="?" if optional else None, help=weights)
        add("--model", required=not optional, metavar="MODULE:CLASS", help="class or function that builds the model")
        add("--data", required=True, type=Path, metavar="PATH", help="folder of images")
        size = "height and width of the images for the model" + "; default without a checkpoint: 224" * optional
        add("--size", required=not optional, type=_positive, metavar="PIXELS", help=size)
        add("--mean", type=float, nargs="+", metavar="X", help="mean of `Normalize`, one number or one per channel")
        add("--std", type=_above_zero, nargs="+", metavar="X", help="standard deviation of `Normalize`, as for --mean")
        add("--device", type=_device, help="device of the model, such as cuda, default: cpu")
        arguments_help = """arguments of the model: '{"channels": 3}'"""
        add("--model-args", type=_json_object, default={}, metavar="JSON", help=arguments_help)
        add("--output", type=Path, default=folder, metavar="PATH", help="folder to write to, default: %(default)s")
    add("--classes", type=Path, metavar="FILE", help="names of the model's classes, one in each line")
    add("--reference", type=Path, metavar="PATH", help="folder of ordinary images; default: some of --data")
    add(
        "--top",
        type=_positive,
        default=100,
        metavar="COUNT",
        help="oddest images to list by look and by content, default: %(default)s",
    )
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"it should be a positive integer. Found '{text}'.")
    return int(text)


def _above_zero(text: str) -> float:
    if not 0 < (number := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"it should be a number above 0. Found '{text}'.")
    return number


def _device(text: str) -> torch.device:
    import torch

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


def _check(options: argparse.Namespace) -> None:
    """Find mistakes at once that would otherwise end a command after a download, or after all of its work."""
    if (options.model is None) != (options.checkpoint is None):
        found = f"`{options.checkpoint}`" if options.model is None else f"`--model {options.model}`"
        raise ValueError(f"A checkpoint and `--model` should be given, or neither of them. Found only {found}.")
    if options.checkpoint is not None and options.size is None:
        raise ValueError("`--size` should be given with a checkpoint, in pixels: `--size 224`, for example.")
    for option, folder in (("--data", options.data), ("--reference", vars(options).get("reference"))):
        if folder is not None and not folder.is_dir():
            found = "a file" if folder.exists() else "nothing"
            raise ValueError(f"`{option}` should be a folder of images. Found {found} at `{folder}`.")
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=options.output).close()
    except OSError as error:
        reason = f"Found `{options.output}`: {error.strerror}."
        raise ValueError(f"`--output` should be a folder that can be written to. {reason}") from error


def run_analysis(options: argparse.Namespace) -> None:
    """Analyze up to 512 images, print the table, and write the filter browser."""
    import torch

    from lightning_anomaly._internal.notes import merge_notes
    from lightning_anomaly.filters.analyze import analyze
    from lightning_anomaly.images.files import probe_positions
    from lightning_anomaly.images.source import ImageSource
    from lightning_anomaly.network.checkpoint import load_model
    from lightning_anomaly.pages.page import write

    model = load_model(options.checkpoint, options.model, options.model_args).to(options.device)
    dataset = _open(model, options.data, options)
    source = ImageSource(dataset, "--data")
    source.positions = probe_positions(dataset, 512)  # the default of `AnomalyFilterCallback`
    images = torch.cat([*source.readable()])
    read = [position for position in source.positions if position not in source.unreadable]
    names, labels = (column and [column[position] for position in read] for column in (source.names, dataset.labels))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the table has the notes
        report = replace(analyze(model, images, keep_images=True), names=names)
    if not report.layers:
        raise ValueError(f"`{options.model}` has no filters to analyze. {' '.join(merge_notes(report.notes).values())}")
    print(report)
    for note in source.notes().values():
        print(f"note: {note}")
    if labels is not None and len({*labels}) == 1:
        print(f"note: All images are of the class '{labels[0]}': give the folder with all classes as `--data`.")
    browser = _unused(options.output / "browser.html")
    write(browser, report.page_text(f"{options.model} on {options.data.name}", labels=labels))
    print(f"every filter with its images: open {browser}")


def run_outliers(options: argparse.Namespace) -> None:
    """Score all images, print the table, and write the gallery and the list of the oddest ones."""
    from lightning_anomaly.outliers import find_outliers
    from lightning_anomaly.pages.gallery import MOVE

    given = options.classes and options.classes.read_text("utf-8").splitlines()
    model, known = _load_model(options)
    images = _open(model, options.data, options)
    reference = None if options.reference is None else _open(model, options.reference, options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the table has the notes
        report = find_outliers(images, model, reference, class_names=given or known or None)
    print(report)
    page = _unused(options.output / "outliers.html")
    report.save_html(page, f"{options.model} on {options.data.name}", options.top)
    report.save_csv(page.with_suffix(".csv"), options.top)
    print(f"the same lists as a table: {page.with_suffix('.csv')}")
    print(f"to look through them and tick what should go: open {page}")
    print(f"to move what you ticked, once the page has saved verdicts.csv:\n{indent(MOVE, '    ')}")


def _unused(page: Path) -> Path:
    """Number a page if there is one of its name, or a table, from an earlier run."""
    names = (page.with_stem(f"{page.stem}-{number}") for number in count(2))
    return next(path for path in chain([page], names) if not (path.exists() or path.with_suffix(".csv").exists()))


def _load_model(options: argparse.Namespace) -> tuple[nn.Module, Sequence[str]]:
    """Load the model of a checkpoint, or without one a pretrained model, and the names of its classes if known."""
    from lightning_anomaly.network.checkpoint import load_model
    from lightning_anomaly.network.pretrained import load_pretrained

    names: Sequence[str] = ()
    if options.checkpoint is None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            options.model, model, names = load_pretrained()
        for warning in caught:
            print(f"note: {warning.message}")
        options.size = options.size or 224
        print(f"network: {options.model}, pretrained on ImageNet")
    else:
        model = load_model(options.checkpoint, options.model, options.model_args)
    return model.to(options.device), names


def _open(model: nn.Module, path: Path, options: argparse.Namespace) -> FolderImages:
    """Open images, and run the model on two zero images, to find images of the wrong shape before the work begins."""
    import torch

    from lightning_anomaly.images.files import FolderImages
    from lightning_anomaly.network.forward import probing
    from lightning_anomaly.network.layers import select_layers

    first = next(iter(select_layers(model).values()), None)
    images = FolderImages(path, options.size, gray=getattr(first, "in_channels", 3) == 1)
    for option, values in (("--mean", options.mean), ("--std", options.std)):
        if values is not None and len(values) not in (1, images.shape[0]):
            raise ValueError(
                f"`{option}` should have one number, or one for each of the {images.shape[0]} channels. Found {values}."
            )
    images.normalize(options.mean or [0.0], options.std or [1.0])
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
        _check(options)
        options.run(options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)  # as shells report it
    except (ValueError, OSError) as error:
        sys.exit("error: " + " ".join(str(error).split()))


if __name__ == "__main__":
    main()
