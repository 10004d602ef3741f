"""Find odd images, duplicates and broken files in a folder, and move them."""

from __future__ import annotations

import argparse
import io
import shlex
import signal
import sys
import warnings
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from lightning_anomaly import __version__

_DESCRIPTION = """
Score the images of a folder by look and by content, and by whether they look like another class than that of their
subfolder. Write a page and a table of the oddest ones, of duplicates and of files that cannot be read. The network is
pretrained on ImageNet; for your own, call `find_outliers` in Python.
"""


_MOVING = """
Set aside the images that were ticked on the page of a search, and move the others that were marked into the folder of
their class. Nothing is overwritten. Each move is written into a file beside FILE before it is made, so that a run that
was interrupted can be run again or undone.
"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(prog="lightning-anomaly", description=__doc__)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    moving = commands.add_parser(
        "move",
        help="move files as the page of a search was told to, or back",
        description=_MOVING,
        epilog="example: lightning-anomaly move verdicts.csv --undo",
    )
    moving.add_argument("verdicts", type=Path, metavar="FILE", help="verdicts.csv that the page saved")
    moving.add_argument("--undo", action="store_true", help="move every file back")
    moving.add_argument("--dry-run", action="store_true", help="say what would be moved, and move nothing")
    folder_help = "folder that was searched, default: that of most of the files"
    moving.add_argument("--folder", type=Path, metavar="PATH", help=folder_help)
    aside_help = "folder for what is set aside, default: FOLDER_set_aside"
    moving.add_argument("--aside", type=Path, metavar="PATH", help=aside_help)
    command = commands.add_parser(
        "outliers",
        help="find the oddest images of a folder, duplicates and broken files",
        description=_DESCRIPTION,
        epilog="example: lightning-anomaly outliers --data photos --reference trusted",
    )
    add = command.add_argument
    add("--data", required=True, type=Path, metavar="PATH", help="folder of images")
    add("--reference", type=Path, metavar="PATH", help="folder of ordinary images; default: some of --data")
    top_help = "oddest images to list by look and by content, default: %(default)s"
    add("--top", type=_positive_option, default=100, metavar="COUNT", help=top_help)
    reviewed_help = "verdicts.csv of an earlier search: what is right there is in no list"
    add("--reviewed", type=Path, metavar="FILE", help=reviewed_help)
    add("--all", action="store_true", help="write a row for every image into the table")
    add("--device", type=_device_option, help="device of the network, such as cuda, default: cpu")
    workers_help = (
        "processes that read the images, default: one for each core but two on Linux, if there are many images"
    )
    add("--workers", type=_positive_option, metavar="COUNT", help=workers_help)
    depth_help = "folders that make a class, default: all below --data"
    add("--class-depth", type=_positive_option, metavar="COUNT", help=depth_help)
    add("--output", type=Path, default="outliers", metavar="PATH", help="folder to write to, default: %(default)s")
    return parser.parse_args(arguments)


def _positive_option(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"it should be a positive integer. Found '{text}'.")
    return int(text)


def _device_option(text: str) -> Any:
    import torch  # late, here and below, so that help and mistakes in the options come at once

    try:
        return torch.empty(0, device=text).device
    except (RuntimeError, AssertionError) as error:
        message = f"it should be a device that torch finds here, such as cpu or cuda. Found '{text}': {error}"
        raise argparse.ArgumentTypeError(" ".join(message.split())) from None


def _check_options(options: argparse.Namespace) -> None:
    """Find mistakes at once that would otherwise end the search after a download, or after all of its work."""
    for option, path, is_right, kind in (
        ("--data", options.data, Path.is_dir, "a folder of images"),
        ("--reference", options.reference, Path.is_dir, "a folder of images"),
        ("--reviewed", options.reviewed, Path.is_file, "a file that the page saved"),
    ):
        if path is not None and not is_right(path):
            found = "a folder" if path.is_dir() else "a file" if path.exists() else "nothing"
            raise ValueError(f"`{option}` should be {kind}. Found {found} at `{path}`.")
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=options.output).close()
    except OSError as error:
        reason = f"Found `{options.output}`: {error.strerror}."
        raise ValueError(f"`--output` should be a folder that can be written to. {reason}") from error


def _search_folder(options: argparse.Namespace) -> None:
    """Score all images, print the table, and write the gallery and the list of the oddest ones."""
    from lightning_anomaly.images.folder_images import FolderImages
    from lightning_anomaly.network.pretrained import load_pretrained
    from lightning_anomaly.outliers import find_outliers

    how = {"num_workers": options.workers, "class_depth": options.class_depth}
    images = FolderImages(options.data, **how)
    reference = FolderImages(options.reference, **how) if options.reference else None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        name, model, class_names = load_pretrained()
    for warning in caught:
        print(f"note: {warning.message}")
    print(f"network: {name}, pretrained on ImageNet")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the table has the notes
        report = find_outliers(
            images, model.to(options.device), reference, class_names=class_names, reviewed=options.reviewed
        )
    print(report)
    page = _unused_page_name(options.output / "outliers.html")
    report.save_html(page, top=options.top)
    report.save_csv(page.with_suffix(".csv"), options.top, every=options.all)
    print(f"the same lists as a table: {page.with_suffix('.csv')}")
    print(f"to look through them and tick what should go: open {page}")
    print("to move the files, once the page has saved verdicts.csv: lightning-anomaly move verdicts.csv")


def _move_files(options: argparse.Namespace) -> int:
    """Move files by the verdicts of a page, or back; return how many could not be moved."""
    from lightning_anomaly.outliers.moves import make_moves, plan_moves, undo_moves

    if options.undo:
        count, refused = undo_moves(options.verdicts, options.dry_run)
        print(f"files that {'would go' if options.dry_run else 'are'} back where they were: {count:,}")
    else:
        plan = plan_moves(options.verdicts, options.folder, options.aside)
        print(plan)
        if options.dry_run:
            for move in plan.moves:
                print(f"{move.old} -> {move.new}")
        elif plan.moves:
            make_moves(plan, options.verdicts)
            print(f"to move every file back: lightning-anomaly move {shlex.quote(str(options.verdicts))} --undo")
        refused = plan.refused
    for problem in refused:
        print(f"not moved: {problem}", file=sys.stderr)
    return len(refused)


def _unused_page_name(page: Path) -> Path:
    """Number a page if there is one of its name, or a table, from an earlier run."""
    numbered = chain([page], (page.with_stem(f"{page.stem}-{number}") for number in count(2)))
    return next(file for file in numbered if not (file.exists() or file.with_suffix(".csv").exists()))


def _end(number: int, frame: Any) -> None:
    """End like an interrupted search, which leaves no process behind."""
    raise KeyboardInterrupt("terminated")


def main(arguments: Sequence[str] | None = None) -> None:
    """Search a folder or move files; a user's mistake ends in one sentence instead of a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # the terminal's encoding may lack letters of a file name
            stream.reconfigure(errors="backslashreplace")
    before = signal.signal(signal.SIGTERM, _end)
    try:
        options = parse(arguments)
        if options.command == "move":
            sys.exit(1 if _move_files(options) else 0)
        _check_options(options)
        _search_folder(options)
    except KeyboardInterrupt as interrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(143 if interrupt.args else 130)  # as shells report it
    except (ValueError, OSError) as error:
        sys.exit("error: " + " ".join(str(error).split()))
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    main()
