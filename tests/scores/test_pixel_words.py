"""Reasons in words for images that differ from the others in one way that a person can name."""

from collections import Counter

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightning_anomaly.scores.look_score import PixelWords
from lightning_anomaly.scores.pixels import describe_pixels, pixel_names, pixel_statistics
from recipes.common.damage import DAMAGES
from recipes.development.reasons import ACCEPTED, PLAIN, reasons_of, words_of


def digits() -> Tensor:
    images = torch.tensor(load_digits().images[:, None] * 255 / 16).to(torch.uint8)
    return images.repeat_interleave(2, 2).repeat_interleave(2, 3)


def colored(count: int) -> Tensor:
    """Patches of several sizes, colors, contrasts and brightnesses, uint8, 32 pixels a side."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=generator)

    grown = torch.zeros(count, 3, 32, 32)
    for side in (2, 4, 8, 16):
        patches = draw(1, side, side) + 0.4 * draw(3, side, side)
        grown += draw(1, 1, 1).exp() * side**-1.3 * nn.functional.interpolate(patches, size=32, mode="bilinear")
    images = 120 + 20 * draw(1, 1, 1) + 30 * (0.5 * draw(1, 1, 1)).exp() * grown + 2 * draw(1, 32, 32)
    return images.clamp(0, 255).to(torch.uint8)


def test_the_first_reason_is_one_that_a_person_accepts() -> None:
    images = digits()
    words, odd = words_of(images[:1000]), images[-60:]
    for kind, damage in {**DAMAGES, **PLAIN}.items():
        counts = Counter(reasons_of(words, damage(odd, torch.Generator().manual_seed(0))))
        accepted = sum(count for reason, count in counts.items() if reason in ACCEPTED[kind])
        assert accepted >= 54, (kind, counts)


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        (torch.tensor([90.0, 0, 0])[:, None, None], {"much red"}),
        (torch.tensor([0, 90.0, 0])[:, None, None], {"much green"}),
        (torch.tensor([60.0, 60.0, 0])[:, None, None], {"much yellow"}),
        (torch.linspace(0, 150, 32)[:, None] - 60, {"brighter at the bottom"}),
        (torch.linspace(90, -60, 32), {"brighter at the left"}),
    ],
)
def test_colors_and_sides_are_named(change: Tensor, reasons: set[str]) -> None:
    images = colored(600)
    changed = (images[500:] + change).clamp(0, 255).to(torch.uint8)
    assert Counter(reasons_of(words_of(images[:500]), changed)).most_common(1)[0][0] in reasons


def test_what_all_channels_share_is_no_color() -> None:
    images, names = colored(4).double(), pixel_names(3)
    shared = 30 * torch.rand(4, 1, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    change = pixel_statistics(images + shared) - pixel_statistics(images)  # of logarithms
    color = torch.tensor(["color patterns" in name for name in names])
    assert change[:, color].abs().max() < 0.3
    assert change[:, names.index("fine patterns")].min() > 1
    assert describe_pixels(images).shape == (4, len(names))
    assert describe_pixels(images.flatten(1)) is None


def test_channels_that_are_no_colors_are_numbered_and_nan_is_a_reason() -> None:
    images = torch.rand(300, 2, 12, 12, generator=torch.Generator().manual_seed(0))
    words = PixelWords.fit(pixel_statistics(images), 2)
    odd = images[:3].clone()
    odd[0] += torch.tensor([-9.0, 9])[:, None, None]
    odd[1] = torch.nan
    odd[2] = 0.5
    reasons = words.reasons(pixel_statistics(odd), 2, torch.ones(3, dtype=torch.bool))
    assert "of channel" in reasons[0]
    assert reasons[1:] == ("NaN or infinite pixels", "the same everywhere")
