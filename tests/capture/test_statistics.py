"""Five numbers of a map, as the layer gives it, whatever is kept beside them."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_anomaly.capture.hooks import MapCapture
from lightning_anomaly.capture.maps import STATISTICS, map_statistics


def maps(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_they_are_those_of_numpy(memory_format):
    given = maps(4, 3, 16, 16).to(memory_format=memory_format)
    found = map_statistics(given).numpy()
    pixels = given.reshape(4, 3, -1).numpy()
    coarse = given.reshape(4, 3, 8, 2, 8, 2).mean((3, 5)).reshape(4, 3, -1).numpy()
    assert found.shape == (4, 3, len(STATISTICS))
    for place, theirs in enumerate((pixels.mean(2), pixels.std(2), pixels.max(2), pixels.min(2), coarse.std(2))):
        np.testing.assert_allclose(found[..., place], theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 2), (5, 2, 7), (5, 2, 3, 3), (5, 2, 3, 4, 2)])
def test_maps_of_any_number_of_axes_have_them(shape):
    found = map_statistics(maps(*shape))
    assert found.shape == (5, 2, 5)
    assert found.isfinite().all()
    if len(shape) == 2:
        assert torch.equal(found[..., 0], maps(*shape))
        assert not found[..., [1, 4]].any()


def test_a_capture_takes_them_before_it_rectifies():
    layer = nn.Conv2d(1, 3, 3)
    capture = MapCapture({"conv": layer}, limit=9)
    inputs = maps(12, 1, 9, 9)
    with capture, torch.no_grad():
        layer(inputs[:5])
        capture.remove()
        capture.attach()
        output = layer(inputs)
    found = torch.cat(capture.maps["conv"].statistics)
    assert len(found) == 9
    assert (found[..., 3] < 0).any()
    torch.testing.assert_close(found[5:], map_statistics(output[:4]))
    assert (capture.maps["conv"].maps >= 0).all()
