"""Images and volumes become small pictures, scaled to the range of ordinary samples."""

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_anomaly.images.thumbnails import black_and_white, draw_images, shrink_images, to_bytes


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def scaled(values: Tensor, ordinary: Tensor) -> np.ndarray:
    """Scale to [0, 1] the range from the 0.05 quantile of the minima to the 0.95 quantile of the maxima."""
    rows = ordinary.flatten(1).numpy()
    low, high = np.quantile(rows.min(1), 0.05), np.quantile(rows.max(1), 0.95)
    return np.clip((values.numpy() - low) / (high - low), 0, 1)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_images_are_scaled_to_the_range_of_ordinary_ones(channels: int) -> None:
    images = random(60, channels, 9, 7)
    pictures = to_bytes(shrink_images(images[:5], 64), black_and_white(shrink_images(images, 64)))
    shown = range(channels if channels == 3 else 1)
    expected = np.stack([scaled(images[:5, channel], images[:, channel]) for channel in shown], -1)
    np.testing.assert_allclose(pictures.numpy() / 255, expected, atol=0.51 / 255)
    raw = images.mul(50).clamp(0, 255).to(torch.uint8)
    shrunk = shrink_images(raw, 64)
    assert torch.equal(to_bytes(shrunk[:5], black_and_white(shrunk)), raw[:5, list(shown)].permute(0, 2, 3, 1))


def test_nan_is_black_infinity_is_white_and_equal_images_are_black() -> None:
    images = random(60, 3, 5, 4)
    images[:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])[:, None, None, None]
    assert to_bytes(images[:3], black_and_white(images)).amax((1, 2, 3)).tolist() == [0, 255, 0]
    assert to_bytes(torch.zeros(1, 1, 2, 2), black_and_white(torch.zeros(60, 1, 2, 2))).max() == 0


def test_images_are_pooled_and_volumes_show_their_middle_slice() -> None:
    images = random(2, 1, 12, 20)
    assert torch.equal(shrink_images(images, 20), images)
    pooled = images.unflatten(3, (10, 2)).unflatten(2, (6, 2)).mean((3, 5))
    torch.testing.assert_close(shrink_images(images, 10), pooled)
    assert shrink_images(images.to(torch.uint8), 10).dtype == torch.uint8
    assert torch.equal(shrink_images(random(2, 1, 5, 8, 8), 8), random(2, 1, 5, 8, 8)[:, :, 2])
    shapes = [shrink_images(torch.zeros(1, 1, *sides), 20).shape[2:] for sides in ((40, 5), (5, 40))]
    assert shapes == [(20, 3), (3, 20)]


def test_only_many_images_are_pooled():
    images = torch.randint(0, 256, (20, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert torch.equal(draw_images(images), images.permute(0, 2, 3, 1))
    assert draw_images(torch.zeros(10_000, 1, 32, 32)).shape == (10_000, 16, 16, 1)
