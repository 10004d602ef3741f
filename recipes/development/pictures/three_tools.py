"""What the three tools show, and what one does next: `python -m recipes.development.pictures.three_tools`.

The filters and the gap are those of the quickstart. Its network then searches class folders of 600 digits that it was
not trained on, twelve of them in wrong folders.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import SubFigure
from PIL import Image
from sklearn.datasets import load_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.transforms.functional import to_tensor

from lightning_anomaly import OutlierReport, find_outliers
from lightning_anomaly.filters.agreement import most_singled_out
from lightning_anomaly.images import FolderImages
from lightning_anomaly.pages.figures import COMPONENT_COLORS, new_figure
from recipes import quickstart
from recipes.common.options import one_sentence_errors, quiet

_FILED, _WRONG = 600, 12
_SHOWN = 2, 3  # rows and columns of images
_BLUE, _ORANGE, _GREEN = COMPONENT_COLORS[:3]


def search_folders(folder: Path, network: torch.nn.Module) -> OutlierReport:
    """Write digits into class folders, the first into wrong ones, and search them."""
    digits = load_digits()
    # The quickstart shuffles them alike, and trains on later ones.
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))[:_FILED]
    for place, (image, digit) in enumerate(zip(digits.images[order], digits.target[order], strict=True)):
        file = folder / str((digit + 1 + place % 9) % 10 if place < _WRONG else digit) / f"{place}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(image * (255 / 16))).resize((16, 16)).save(file)
    mean, deviation = digits.images.mean() / 16, digits.images.std() / 16
    images = FolderImages(folder, transform=lambda image: (to_tensor(image)[:1] - mean) / deviation)
    return find_outliers(images, network)


def draw_images(panel: SubFigure, images: Sequence[Any], captions: Sequence[str]) -> None:
    """Draw the first images over their captions."""
    for axes, image, caption in zip(panel.subplots(*_SHOWN).flat, images, captions, strict=False):
        axes.imshow(image, cmap="gray", vmin=0, vmax=255)
        axes.set_xlabel(caption)
        axes.set(xticks=[], yticks=[])


def draw_curves(panel: SubFigure, curves: Mapping[str, Sequence[float]], best: int) -> None:
    """Draw the values of each epoch, and mark the best and the last one."""
    for axes, (name, values), color in zip(panel.subplots(2), curves.items(), (_ORANGE, _BLUE), strict=True):
        axes.plot(values, color=color)
        axes.set_title(name, color=color)
        axes.axvline(best, color=_GREEN, linestyle="--")
        axes.spines[["top", "right"]].set_visible(False)
        last = len(values) - 1
        axes.set_xticks([0, best, last], ["epoch 0", f"{best}: lowest", f"{last}: stopped"])


def run(options: argparse.Namespace) -> None:
    """Train, search, draw."""
    quiet()
    with tempfile.TemporaryDirectory() as temporary, new_figure(9, 3.5) as figure:
        report: Any = quickstart.main(log_dir=temporary).report
        folder = Path(temporary) / "quickstart" / "version_0"
        (checkpoint,) = folder.glob("checkpoints/*.ckpt")
        found: Any = search_folders(Path(temporary) / "digits", quickstart.Classifier.load_from_checkpoint(checkpoint))
        log = EventAccumulator(str(folder)).Reload()
        curves = {name: [event.value for event in log.Scalars(name)] for name in ("val_loss", "memorization/rise")}
        best = int(np.argmin(curves["val_loss"]))
        panels: Any = figure.subfigures(1, 3, wspace=0.06)
        left, middle, right = panels
        counts = most_singled_out(report.layers)
        draw_images(left, report.images[[*counts]], [f"{count} filters" for count in counts.values()])
        draw_curves(middle, curves, best)
        listed = found.samples.loc[found.filed_elsewhere]
        pairs = zip(listed["class"], listed["looks_like"], strict=True)
        draw_images(right, [*map(Image.open, listed["path"])], [f"filed as {a}\nlooks like {b}" for a, b in pairs])
        for panel, shown, then in (
            (left, "Filters agree on these images", "Look at these samples"),
            (middle, "A gap opens, and the run stops", f"Load the checkpoint of epoch {best}"),
            (right, "Images in wrong folders", "Move these files"),
        ):
            panel.suptitle(shown, weight="bold")
            panel.supxlabel(f"→ {then}", weight="bold", color=_BLUE)
        figure.savefig(options.picture, dpi=150)
    print(f"{len(listed)} of {_FILED} digits are filed elsewhere. Wrong were the files 0 to {_WRONG - 1}:")
    print(*listed["name"])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    picture = "docs/pictures/three_tools.png"
    parser.add_argument("--picture", default=picture, help="where the PNG file goes, default: %(default)s")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    one_sentence_errors(run, parse)
