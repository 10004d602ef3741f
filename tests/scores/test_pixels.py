"""Statistics of pixels are those of NumPy and SciPy, and their words name what a person sees."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from scipy.stats import skew
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightning_anomaly.scores.look_score import PixelWords
from lightning_anomaly.scores.pixels import describe_pixels, pixel_names, pixel_statistics
from recipes.common.damage import DAMAGES
from recipes.development.reasons import ACCEPTED, PLAIN, reasons_of, words_of


def log_energies(image: np.ndarray, variance: float) -> list[float]:
    """Compute the log of the mean energy of each pattern but the constant one in blocks of four pixels a side."""
    for axis in (1, 2):
        image = np.concatenate(np.split(image, image.shape[axis] // 4, axis))
    energies = (dctn(image, axes=(1, 2), norm="ortho") ** 2).mean(0).ravel()[1:]
    return [*np.log(energies + 1e-4 * variance)]


def statistics_by_hand(image: np.ndarray) -> list[float]:
    """Compute the statistics of an image `(C, H, W)` with NumPy and SciPy."""
    grey, channels = image.mean(0), range(len(image))
    least, most, mean, variance = grey.min(), grey.max(), grey.mean(), grey.var()
    near, flat = 0.02 * (most - least), 0.01 * (most - least)
    found = [mean, least, most, np.log(variance), skew(grey, None), (grey >= most - near).mean()]
    found += [(grey <= least + near).mean()]
    for axis in (0, 1):
        steps = np.abs(np.diff(grey, axis=axis))
        first, middle, last = (part.mean() for part in np.array_split(grey, 3, axis))
        found += [steps.max(), (steps <= flat).mean(), first - last, middle - mean]
        lines = grey.var(1 - axis)
        border = sum((side < 1e-3 * variance).cumprod().sum() for side in (lines, lines[::-1]))
        found += [np.log(lines.min() + 1e-4 * variance), np.log((border + 1) / len(lines))]
    bends = np.sort(np.abs(np.diff(np.diff(grey, 2, 0), 2, 1)), None)
    found += [np.log(bends[int(share * bends.size)] + 1e-3 * variance**0.5) for share in (0.5, 0.9)]
    found += log_energies(grey[None], variance)
    if len(image) > 1:
        colour, correlations = image - grey, np.corrcoef(image.reshape(len(image), -1))
        found += [*log_energies(colour, variance), *(colour[channel].mean() for channel in channels)]
        found += [correlations[channel, channel + 1] for channel in channels[:-1]]
        found += [np.log((colour**2).mean()), (colour**2).mean(0).max() ** 0.5]
    return found


@pytest.mark.parametrize("shape", [(1, 8, 16), (3, 12, 8), (2, 4, 20)])
def test_pixel_statistics_are_those_of_numpy_and_scipy(shape):
    """In whole numbers from 20 to 120, pixels and differences of neighbours lie exactly at the limits of shares."""
    x = torch.randint(20, 121, (20, *shape), generator=torch.Generator().manual_seed(0)).double()
    x[:, :, 0], x[:, :, 1], x[10:, :, -1] = 20, 120, 70  # plain borders
    expected = [statistics_by_hand(image) for image in x.numpy()]
    torch.testing.assert_close(pixel_statistics(x), torch.tensor(expected), rtol=1e-6, atol=1e-6)
    assert len(pixel_names(shape[0])) == len(expected[0])
    for constant in (0.0, 9.0):
        assert pixel_statistics(torch.full((1, *shape), constant)).isfinite().all()


def test_images_with_too_few_pixels_have_no_statistics():
    for shape in ((4, 3, 8, 3), (4, 7), (4, 1, 20), (4, 0, 8, 8), (4, 1, 4, 4, 4)):
        assert describe_pixels(torch.rand(shape)) is None
    assert describe_pixels(torch.rand(4, 1, 4, 4)) is not None


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
