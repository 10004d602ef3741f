"""Shared by all commands: little output, and errors of one sentence."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any

# Arguments of a Trainer that writes no files and shows nothing.
SILENT: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
                          "enable_model_summary": False}  # fmt: skip


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the data sets are."""
    parser.add_argument("--data-root", help="folder that holds NAME.npz or torchvision's copy (./data)")
    parser.add_argument("--download", action="store_true", help="let torchvision fetch data sets that are not there")


def one_sentence_errors(run: Callable[[argparse.Namespace], object], parse: Callable[[], argparse.Namespace]) -> None:
    """Run a command; a mistake of the user (a path, a size, a missing extra) ends in one sentence."""
    options = parse()
    try:
        run(options)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


def quiet() -> None:
    """Silence Lightning's messages about hardware, few batches, and loaders without workers."""
    # Lightning's two package trees share the logger of the one that was imported last.
    for package in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric"):
        logging.getLogger(package).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*(does not have many workers|smaller than the logging interval|LeafSpec)")
