"""For each kind of damage, the share of images whose first reason a person would accept.

`python -m recipes.development.reasons --data-root data` needs no network: the reasons are those of the pixels.
`ACCEPTED` follows from what each kind does to an image. For turned, mirrored and foreign images, which are otherwise
normal, any true words about brightness or where it lies are accepted.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lightning_anomaly.scores.look_score import PixelWords
from lightning_anomaly.scores.pixels import pixel_statistics
from recipes.common.damage import GROUPS, Damage, damage_all
from recipes.common.data import OTHER_DATA, download, load_images
from recipes.common.options import add_data_options, one_sentence_errors
from recipes.experiments.spec import DATA

_REFERENCE, _IMAGES = 4000, 200


def _white_square(images: Tensor, rng: torch.Generator) -> Tensor:
    """Cover the top left ninth of each image."""
    changed = images.clone()
    changed[..., : images.shape[2] // 3, : images.shape[3] // 3] = 255
    return changed


PLAIN: dict[str, Damage] = {
    "white_square": _white_square,
    "faded": lambda images, rng: (0.4 * 255 + 0.2 * images.float()).to(torch.uint8),
}

_BRIGHT = {"brighter than the rest", "overexposed, or a white area"}
_NOISE = {"noise or fine lines all over", "colors that change from pixel to pixel"}
_SOFT = {"little fine detail"}
_HAZE = {"low contrast", "little color", "no areas as dark as its darkest pixel"}
_DARK = {"darker than the rest", "large areas as dark as its darkest pixel"}
_SIDES = {f"brighter at the {side}" for side in ("top", "bottom", "left", "right")}
_PLACES = {*_SIDES, "dark in the middle", "bright in the middle"}
_COLORS = {f"much {color}" for color in ("color", "red", "green", "blue", "cyan", "magenta", "yellow")}
_COLORS |= {"little color", "an unusual mix of colors"}
ACCEPTED: dict[str, set[str]] = {
    **dict.fromkeys((*GROUPS["noise"], "noise", "salt_and_pepper"), _NOISE),
    **dict.fromkeys((*GROUPS["blur"], "blurred", "cropped"), _SOFT),
    "snow": _BRIGHT | _NOISE,
    "frost": _BRIGHT | _HAZE,
    "fog": _BRIGHT | _HAZE | _SOFT,
    "brightness": _BRIGHT | _HAZE,
    "spatter": _NOISE | {"unusually sharp edges"},
    "contrast": {"low contrast"},
    "elastic_transform": _NOISE | {"unusually sharp edges"},
    "pixelate": _SOFT | {"large flat areas"},
    "jpeg_compression": _SOFT | {"large flat areas"},
    "saturate": _COLORS,
    **dict.fromkeys(("other_data", "digits"), _BRIGHT | _DARK | _HAZE | _SOFT | {"large flat areas"}),
    **dict.fromkeys(("quarter_turn", "half_turn", "upside_down", "transposed", "shifted"), _PLACES),
    "blended": {"low contrast", "no areas as dark as its darkest pixel"},
    "black": {"the same everywhere"},
    "over_exposed": _BRIGHT | {"high contrast", "large flat areas"},
    "inverted": _BRIGHT | _DARK | _COLORS | _PLACES,
    "white_square": _BRIGHT | _PLACES | {"high contrast", "unusually sharp edges"},
    "faded": {"low contrast"},
}


def words_of(reference: Tensor) -> PixelWords:
    """Learn the words from a reference uint8 `(N, C, H, W)`."""
    return PixelWords.fit(pixel_statistics(reference.float() / 255), reference.shape[1])


def reasons_of(words: PixelWords, images: Tensor) -> tuple[str, ...]:
    """Describe what is odd about the pixels of images uint8 `(n, C, H, W)`."""
    every = torch.ones(len(images), dtype=torch.bool)
    return words.reasons(pixel_statistics(images.float() / 255), images.shape[1], every)


def shares(data: str, root: str | None) -> dict[str, tuple[str, str]]:
    """Compute the share of test images whose reason is accepted, and the most frequent reason, by kind."""
    images, other = load_images(data, root), load_images(OTHER_DATA[data], root)
    chosen = images.test_images[:_IMAGES]
    foreign = {"other_data": other.test_images, "digits": load_images("digits").test_images}
    damaged = damage_all(chosen, foreign, seed=0)
    damaged |= {name: damage(chosen, torch.Generator()) for name, damage in PLAIN.items()}
    cells, words = {}, words_of(images.train_images[:_REFERENCE])
    for kind in ACCEPTED:
        odd = damaged[kind]
        counts = Counter(reasons_of(words, odd))
        share = sum(count for reason, count in counts.items() if reason in ACCEPTED[kind]) / len(odd)
        cells[kind] = f"{share:.2f}", counts.most_common(1)[0][0]
    return cells


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser)
    parser.add_argument("--csv", type=Path, help="write the table to this file")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Print the table."""
    if options.download:
        download(DATA, options.data_root)
    groups = {kind: group for group, kinds in GROUPS.items() for kind in kinds}
    found = [shares(data, options.data_root) for data in DATA]
    titles = [f"{name}, {what}" for name in ("CIFAR-10", "Fashion-MNIST") for what in ("accepted", "most often")]
    cells = {kind: [cell for shares_of in found for cell in shares_of[kind]] for kind in found[0]}
    rows = [["kind", "group", *titles], *([kind, groups.get(kind, "plain"), *cells[kind]] for kind in cells)]
    print("\n".join(" | ".join(row) for row in rows))
    if options.csv:
        with options.csv.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    one_sentence_errors(run, parse)
