"""A quick look at a trained model, from the command line.

The model is built from `--model` with the arguments that a Lightning checkpoint stores, or those of `--model-args`, and
gets the checkpoint's weights. Images come from an .npz file: from its array `val_images`, else `test_images`, else the
only array that it has. uint8 images, (N, H, W) or (N, H, W, 3) as in MedMNIST, are scaled to 0..1; floating-point ones,
(N, C, H, W), are taken as they are, so normalise them like the training images.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_anomaly.analysis import analyze
from lightning_anomaly.capture.hooks import evaluating
from lightning_anomaly.checkpoint import load_model
from lightning_anomaly.notes import merge_notes
from lightning_anomaly.outliers import OutlierReport, find_outliers
from lightning_anomaly.plots import FIGURES, outlier_images
from lightning_anomaly.report import AnomalyReport

_PROBE_SIZE = 512  # as in `AnomalyFilterCallback`
_BATCH = 64


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the options; a checkpoint without a command before it is analyzed."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] not in ("analyze", "outliers", "-h", "--help"):
        given.insert(0, "analyze")
    parser = argparse.ArgumentParser(prog="lightning-anomaly", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    first = commands.add_parser("analyze", help="print and draw anomaly filters by the first 512 images; the default")
    outliers = commands.add_parser("outliers", help="score images, and list and draw those that belong least")
    for command, run, folder in ((first, run_analysis, "anomaly_filters"), (outliers, run_outliers, "outliers")):
        command.set_defaults(run=run)
        add = command.add_argument
        add("checkpoint", type=Path, help="a state_dict or a Lightning checkpoint, as a file")
        add("--model", required=True, metavar="MODULE:CLASS", help="what builds the model: a class or function")
        add("--data", required=True, type=Path, metavar="FILE.npz", help="the images")
        add("--model-args", type=_json_object, default={}, metavar="JSON", help="""such as '{"channels": 3}'""")
        add("--output", type=Path, default=folder, help="folder for what is written, default: %(default)s")
    add("--reference", type=Path, metavar="FILE.npz", help="ordinary images, default: some of these")
    add("--top", type=_positive, default=50, help="images to list, the first 64 also drawn, default: %(default)s")
    return parser.parse_args(given)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"it should be a positive integer. Found '{text}'.")
    return int(text)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"it should be a JSON object such as '{{\"channels\": 3}}'. Found '{text}'.")
    return value


def run_analysis(options: argparse.Namespace) -> AnomalyReport:
    """Analyze the first images, print the table and write the figures and the filter browser."""
    model = load_model(options.checkpoint, options.model, options.model_args)
    images = _as_images(_read_array(options.data)[:_PROBE_SIZE])
    _try(model, images[:2], options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the notes, which the table has too
        report = analyze(model, images, keep_images=True)
    if not report.layers:
        raise ValueError(f"`{options.model}` has no filters to analyze. {' '.join(merge_notes(report.notes).values())}")
    print(report)
    options.output.mkdir(parents=True, exist_ok=True)
    shown = outlier_images(report, images) if report.n_samples == len(images) else None
    drawn = []
    for name, draw in FIGURES.items():
        file = options.output / f"{name}.png"
        file.unlink(missing_ok=True)  # that of an earlier run
        if (figure := draw(report, shown)) is not None:
            figure.savefig(file)
            drawn.append(file.name)
    browser = options.output / "browser.html"
    report.save_html(browser, title=f"{options.model} on {options.data.name}")
    print(f"every filter with its images: open {browser}")
    print(f"figures in {options.output}: {', '.join(drawn)}")
    return report


def run_outliers(options: argparse.Namespace) -> OutlierReport:
    """Score all images, print the table and write those that belong least."""
    model = load_model(options.checkpoint, options.model, options.model_args)
    images = _Images(options.data)
    reference = None if options.reference is None else DataLoader(_Images(options.reference), batch_size=_BATCH)
    _try(model, torch.stack([images[0], images[-1]]), options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the notes, which the table has too
        report = find_outliers(model, DataLoader(images, batch_size=_BATCH), reference)
    print(report)
    options.output.mkdir(parents=True, exist_ok=True)
    rows = report.rows(options.top)
    with (options.output / "outliers.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "filters": " ".join(map(str, row["filters"]))} for row in rows)
    report.plot(options.top).savefig(options.output / "outliers.png")
    gallery = options.output / "outliers.html"
    report.save_html(gallery, title=f"{options.model} on {options.data.name}")
    print(f"to look through them and tick some: open {gallery}")
    print(f"in {options.output}: outliers.csv, outliers.png")
    return report


class _Images(Dataset[Tensor]):
    """Images that become float32 one by one: those of a large file together take four times its memory."""

    def __init__(self, path: Path) -> None:
        self._array = _read_array(path)

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, index: int) -> Tensor:
        return _as_images(self._array[index][None])[0]


def _as_images(array: Any) -> Tensor:
    """Images of a file as a model takes them `(N, C, H, W)`."""
    if array.dtype != np.uint8:
        return torch.from_numpy(array.astype(np.float32))
    tensor = torch.from_numpy(array).float() / 255
    return tensor[:, None] if array.ndim == 3 else tensor.permute(0, 3, 1, 2).contiguous()


def _read_array(path: Path) -> Any:
    """Read the images of a file, see the module's docstring."""
    try:
        with np.load(path, allow_pickle=False) as file:
            names = file.files
            known = [key for key in ("val_images", "test_images") if key in names]
            key = known[0] if known else names[0] if len(names) == 1 else None
            array = None if key is None else file[key]
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"`{path.name}` should be an .npz file, as `numpy.savez` writes it: {error}.") from error
    if array is None:
        raise ValueError(
            f"`{path.name}` should hold the images as `val_images`, as `test_images`, or as its only array. "
            f"Found the arrays {names}."
        )
    integer = array.dtype == np.uint8 and (array.ndim == 3 or (array.ndim == 4 and array.shape[-1] in (1, 3)))
    if not array.size or not (integer or (array.dtype.kind == "f" and array.ndim == 4)):
        raise ValueError(
            f"`{key}` in `{path.name}` should be uint8 of shape (N, H, W) or (N, H, W, 3), or floating-point of shape "
            f"(N, C, H, W), and not empty. Found {array.dtype} of shape {array.shape}."
        )
    return array


def _try(model: nn.Module, images: Tensor, options: argparse.Namespace) -> None:
    """Run the model once, so that images of another kind are named before the work begins."""
    try:
        with evaluating(model), torch.no_grad():
            model(images.clone())  # it may change them in place
    except Exception as error:  # whatever the user's model raises
        raise ValueError(
            f"`{options.model}` cannot take the images of `{options.data.name}`, {tuple(images.shape[1:])} (channels, "
            f"height, width): give images like those it was trained on. {type(error).__name__}: {error}"
        ) from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; what a user got wrong ends in one sentence instead of a traceback."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # for `--model`: only `python -m` looks there by itself
    try:
        options = parse(arguments)
        options.run(options)
    except (ValueError, OSError) as error:
        sys.exit("error: " + " ".join(str(error).split()))


if __name__ == "__main__":
    main()
