"""Command-line options that the recipes share, and what they stand for."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from lightning_anomaly import AnalysisSettings
from recipes.common.data import DATA_SETS, ImageData, load_images, split
from recipes.common.networks import NETWORKS

__all__ = [
    "SILENT",
    "add_damage_option",
    "add_data_options",
    "add_training_options",
    "at_least",
    "check_damaged",
    "ignore_warnings",
    "one_sentence_errors",
    "prepare_data",
    "probe_size_in",
    "quiet",
    "telling_errors",
]

# Arguments of a Trainer whose run leaves nothing on the disk and shows nothing.
SILENT: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def add_data_options(parser: argparse.ArgumentParser, data: str = "digits") -> None:
    """Add the options that say which images; `data` is the data set by default."""
    parser.add_argument(
        "--data",
        default=data,
        help=f"one of {', '.join(DATA_SETS)}, or the path of an .npz in MedMNIST's layout, default: %(default)s",
    )
    parser.add_argument("--data-root", default=None, help="where torchvision finds or puts its data sets (./data)")
    parser.add_argument("--download", action="store_true", help="let torchvision download the data set")


def add_training_options(parser: argparse.ArgumentParser, *, epochs: int, train_size: int) -> None:
    """Add the options that say what is trained on what, with a recipe's own defaults."""
    add_data_options(parser)
    parser.add_argument("--network", default="simple_cnn", choices=list(NETWORKS), help="default: %(default)s")
    parser.add_argument("--epochs", type=at_least(1), default=epochs, help="default: %(default)s")
    parser.add_argument(
        "--train-size", type=at_least(1), default=train_size, help="training images, default: %(default)s"
    )
    parser.add_argument("--val-size", type=at_least(1), default=512, help="validation images, default: %(default)s")
    parser.add_argument("--batch-size", type=at_least(1), default=32, help="default: %(default)s")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate of Adam, default: %(default)s")
    parser.add_argument("--seed", type=at_least(0), default=0, help="default: %(default)s")
    parser.add_argument("--log-dir", default="logs", help="where logs go, default: %(default)s")


def add_damage_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that says how many validation images are damaged; `check_damaged` knows whether there are."""
    parser.add_argument(
        "--damaged", type=at_least(0), default=6, help="validation images to damage, default: %(default)s"
    )


def at_least(smallest: int) -> Callable[[str], int]:
    """The type of an option that takes integers from `smallest` on."""

    def integer(text: str) -> int:
        if not text.lstrip("-").isdecimal() or int(text) < smallest:
            raise argparse.ArgumentTypeError(f"should be an integer of at least {smallest}. Found {text}.")
        return int(text)

    return integer


def prepare_data(options: argparse.Namespace, size: str = "train_size") -> ImageData:
    """The data that the options ask for, split into validation images and as many training images as `size` says.

    Raises:
        ValueError: If there are too few.
    """
    data = load_images(options.data, data_root=options.data_root, download=options.download)
    wanted = vars(options)[size]
    apart = 0 if len(data.val_labels) else options.val_size  # taken out of the training images
    if wanted > len(data.train_labels) - apart:
        raise ValueError(
            f"Option `--{size.replace('_', '-')}` should be at most {len(data.train_labels) - apart}: `--data "
            f"{options.data}` has {len(data.train_labels)} images to train on, of which `--val-size` takes {apart}. "
            f"Found {wanted}."
        )
    return split(data, wanted, options.val_size, options.seed)


def probe_size_in(data: ImageData) -> int:
    """The number of validation images that are watched, up to 512.

    Raises:
        ValueError: If there are too few.
    """
    smallest, found = AnalysisSettings().smallest_probe, len(data.val_images)
    if found < smallest:
        raise ValueError(
            f"Option `--val-size` should leave at least {smallest} validation images, the fewest in which an anomaly "
            f"filter can be found. Found {found}."
        )
    return min(512, found)


def check_damaged(options: argparse.Namespace, data: ImageData) -> None:
    """Raises ValueError if more validation images are to be damaged than are watched."""
    watched = probe_size_in(data)
    if options.damaged > watched:
        raise ValueError(
            f"Option `--damaged` should be at most {watched}, the number of validation images that are watched. Found "
            f"{options.damaged}."
        )


@contextlib.contextmanager
def telling_errors() -> Iterator[None]:
    """What a user got wrong (a path, a size, a missing extra) ends in one sentence instead of a traceback."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


def one_sentence_errors(run: Callable[[argparse.Namespace], object], parse: Callable[[], argparse.Namespace]) -> None:
    """Run a recipe, telling errors."""
    with telling_errors():
        run(parse())


def quiet() -> None:
    """Silence what Lightning says about hardware and loaders; it would hide what a recipe has to say."""
    # Whichever of Lightning's package trees is imported last gives both of them its logger.
    for package in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric"):
        logging.getLogger(package).setLevel(logging.WARNING)
    ignore_warnings()


def ignore_warnings() -> None:
    """Silence warnings of what recipes have on purpose: few images, in loaders without workers."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")
