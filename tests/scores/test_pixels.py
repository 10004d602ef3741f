"""Statistics of pixels are those of NumPy and SciPy."""

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from scipy.stats import skew

from lightning_anomaly.scores.pixels import describe_pixels, pixel_names, pixel_statistics


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
