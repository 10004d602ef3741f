"""A quick look at a trained model: prints the table of its anomaly filters and draws them, also to be browsed.

`python -m lightning_anomaly outliers CHECKPOINT ...` looks for images that do not belong: prints and draws those that
belong least and writes them into a table.

The model is built from `--model` with the arguments that a Lightning checkpoint stores, or those of `--model-args`, and
gets the checkpoint's weights. It then sees the first 512 images of an .npz file, or for `outliers` all of them: of its
array `val_images`, else `test_images`, else of the only array that it has. uint8 images, (N, H, W) or (N, H, W, 3) as
in MedMNIST, are scaled to 0..1; floating-point ones, (N, C, H, W), are taken as they are, so normalise them like the
training images.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_anomaly.analysis import analyze
from lightning_anomaly.capture.hooks import evaluating
from lightning_anomaly.capture.layers import select_layers
from lightning_anomaly.checkpoint import load_model
from lightning_anomaly.notes import merge_notes
from lightning_anomaly.outliers.report import OutlierReport
from lightning_anomaly.outliers.search import find_outliers
from lightning_anomaly.plots import FIGURES, outlier_images
from lightning_anomaly.report import AnomalyReport

_PROBE_SIZE = 512  # as in `AnomalyFilterCallback`
_BATCH = 64


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    outliers = given[:1] == ["outliers"]
    prog = "python -m lightning_anomaly" + " outliers" * outliers
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="a state_dict or a Lightning checkpoint, as a file")
    parser.add_argument(
        "--model", required=True, metavar="MODULE:CLASS", help="what builds the model: a class or function"
    )
    parser.add_argument("--data", required=True, type=Path, metavar="FILE.npz", help="the images")
    parser.add_argument(
        "--model-args", type=_json_object, default={}, metavar="JSON", help="""such as '{"channels": 3}'"""
    )
    folder = Path("outliers" if outliers else "anomaly_filters")
    parser.add_argument("--output", type=Path, default=folder, help="folder for what is written, default: %(default)s")
    if outliers:
        parser.add_argument(
            "--reference", type=Path, metavar="FILE.npz", help="ordinary images, default: some of these"
        )
        parser.add_argument(
            "--top",
            type=_positive,
            default=50,
            help="images to list, the first 64 also drawn, default: %(default)s",
        )
    parser.set_defaults(run=run_outliers if outliers else run)
    return parser.parse_args(given[outliers:])


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


def run(options: argparse.Namespace) -> AnomalyReport:
    """Analyse, print the table and write the figures."""
    model = load_model(options.checkpoint, options.model, options.model_args)
    images = read_images(options.data)
    if not select_layers(model):
        raise ValueError(f"`{options.model}` has no convolution, so it has no filters to analyse: give another model.")
    _try(model, images[:2], options)
    _make_folder(options.output)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the notes, which the table has too
        report = analyze(model, images, keep_images=True)
    if not report.layers:
        notes = " ".join(merge_notes(report.notes).values())
        raise ValueError(f"No convolution of `{options.model}` gave maps, so there are no filters to analyse. {notes}")
    print(report)
    shown = outlier_images(report, images) if report.n_samples == len(images) else None
    figures = {name: draw(report, shown) for name, draw in FIGURES.items()}
    for name, figure in figures.items():
        if figure is not None:
            figure.savefig(options.output / f"{name}.png")
    drawn = ", ".join(f"{name}.png" for name, figure in figures.items() if figure is not None)
    browser = options.output / "browser.html"
    report.save_html(browser, title=f"{options.model} on {options.data.name}")
    print(f"every filter with its images: open {browser}")
    print(f"figures in {options.output}: {drawn}")
    return report


def run_outliers(options: argparse.Namespace) -> OutlierReport:
    """Score all images, print the table and write those that belong least."""
    model = load_model(options.checkpoint, options.model, options.model_args)
    array = _read_array(options.data)
    reference = None if options.reference is None else _loader(_read_array(options.reference, "--reference"))
    _try(model, _as_images(array[:2]), options)
    _make_folder(options.output)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the notes, which the table has too
        report = find_outliers(model, _loader(array), reference)
    print(report)
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


class _Converted(Dataset[Tensor]):
    """Images that become float32 one by one: those of a large file together take four times its memory."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, index: int) -> Tensor:
        return _as_images(self._array[index : index + 1])[0]


def _loader(array: Any) -> DataLoader[Tensor]:
    return DataLoader(_Converted(array), batch_size=_BATCH)


def read_images(path: Path) -> Tensor:
    """Read the probe from an .npz file, as the module's docstring says.

    Args:
        path: The file.

    Returns:
        The first images of it `(N, C, H, W)` in float32.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file or the array is of another kind.
    """
    return _as_images(_read_array(path)[:_PROBE_SIZE])


def _as_images(array: Any) -> Tensor:
    """An array that `_read_array` gave, as a model takes it `(N, C, H, W)`."""
    if array.dtype != np.uint8:
        return torch.from_numpy(array.astype(np.float32))
    tensor = torch.from_numpy(array).float() / 255
    return tensor[:, None] if array.ndim == 3 else tensor.permute(0, 3, 1, 2).contiguous()


def _read_array(path: Path, option: str = "--data") -> Any:
    """The images of a file, of one of the kinds that the module's docstring names; errors as in `read_images`."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file `{path}`: give the path of an .npz file with images as `{option}`.")
    try:
        if not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile("it is no archive")
        with np.load(path, allow_pickle=False) as file:
            arrays = [name.removesuffix(".npy") for name in file.zip.namelist() if name.endswith(".npy")]
            known = [key for key in ("val_images", "test_images") if key in arrays]
            key = (known or [*arrays, ""])[0]
            array = file[f"{key}.npy"] if known or len(arrays) == 1 else None
            if isinstance(array, bytes):  # what NumPy gives for a file of another format
                raise ValueError(f"`{key}` is no array")
    except (ValueError, IndexError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"`{path.name}` should be an .npz archive with an array of images, as `numpy.savez` writes it. Reading "
            f"failed: {error}."
        ) from error
    if array is None:
        raise ValueError(
            f"`{path.name}` should hold the images as `val_images`, as `test_images`, or as its only array. "
            f"Found the arrays {arrays[:5]}{f' and {len(arrays) - 5} more' if len(arrays) > 5 else ''}."
        )
    grey, colour = array.ndim == 3, array.ndim == 4 and array.shape[-1] in (1, 3)
    integer = array.dtype == np.uint8 and (grey or colour)
    if array.size and (integer or (array.dtype.kind == "f" and array.ndim == 4)):
        return array
    raise ValueError(
        f"`{key}` in `{path.name}` should be uint8 of shape (N, H, W) or (N, H, W, 3), or floating-point of shape "
        f"(N, C, H, W), and not empty. Found {array.dtype} of shape {array.shape}."
    )


def _try(model: nn.Module, images: Tensor, options: argparse.Namespace) -> None:
    try:
        with evaluating(model), torch.no_grad():
            model(images.clone())  # it may change them in place
    except Exception as error:  # whatever the user's model raises
        shape = " x ".join(map(str, images.shape[1:]))
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"`{options.model}` cannot take the images of `{options.data.name}`, {shape} (channels, height, width): "
            f"give images like those it was trained on. It failed with {type(error).__name__}: {reason}"
        ) from error


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"`--output` should be a folder that can be made. Found `{folder}`: {error.strerror}."
        ) from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Run; what a user got wrong ends in one sentence instead of a traceback."""
    try:
        options = parse(arguments)
        options.run(options)
    except (ValueError, OSError) as error:
        sys.exit("error: " + " ".join(str(error).split()))


if __name__ == "__main__":
    main()
