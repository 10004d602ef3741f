"""What is stored of the maps of a layer: pooled maps, their extremes and zeros."""

import numpy as np
import oracle
import pytest
import torch
from torch import Tensor

from lightning_anomaly.network.layer_maps import LayerMaps, pool_maps, summarize_maps


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("size", "side", "windows"),
    [
        ((8, 8), 8, (1, 1)),
        ((9, 9), 8, (2, 2)),
        ((13, 30), 4, (4, 8)),
        ((65,), 8, (2,)),
        ((200,), 3, (23,)),
        ((5, 4, 9), 8, (2, 1, 3)),
    ],
)
def test_pooling_averages_windows_until_no_side_is_larger(size, side, windows):
    maps = drawn(2, 3, *size).double()
    expected = [[oracle.pooled(image.numpy(), windows) for image in sample] for sample in maps]
    np.testing.assert_allclose(pool_maps(maps, side).numpy(), expected, rtol=0, atol=1e-12)


def test_pooling_never_leaves_more_pixels_than_allowed():
    for side in range(1, 10):
        for size in range(1, 40):
            assert max(pool_maps(torch.zeros(1, 1, size, 5), side).shape[2:]) <= side
            assert pool_maps(torch.zeros(1, 1, size), side).shape[2] <= side**2
            assert pool_maps(torch.zeros(1, 1, size, size, 2), side).shape[2:].numel() <= max(1, side**2)
    assert pool_maps(maps := torch.zeros(3, 2), 1) is maps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(), (7,), (200,), (16, 16), (13, 30), (3, 4, 2), (5, 4, 9)])
def test_maps_are_pooled_and_their_extremes_and_zeros_found_as_by_plain_operations(size, dtype):
    maps = (drawn(4, 3, *size) * 3 + 1).to(dtype)
    maps[0, 0] = 0
    pixels = maps.reshape(4, 3, -1)
    for rectify in (True, False):
        pooled, extremes, zeros = summarize_maps(maps, 4, rectify)
        expected = maps.clamp(min=0) if rectify else maps
        torch.testing.assert_close(pooled, pool_maps(expected, 4), rtol=1e-6, atol=1e-6)
        assert torch.equal(extremes, torch.stack([pixels.amax(2), pixels.amin(2)], 2))
        assert torch.equal(zeros, (pixels <= 0).sum((0, 2)))
    mirrored = maps.flip(-1).contiguous().flip(-1) if size else maps
    assert all(map(torch.equal, summarize_maps(mirrored, 4, True), summarize_maps(maps, 4, True)))


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_a_map_that_is_not_finite_stays_so_and_changes_no_other(broken):
    maps = drawn(3, 2, 16, 16)
    (alone, *_), changed = summarize_maps(maps, 4, True), maps.clone()
    changed[2, 1, 3, 3] = broken
    pooled, extremes, _ = summarize_maps(changed, 4, True)
    for finite in (pooled.isfinite().all((2, 3)), extremes.isfinite().all(2)):
        assert (~finite).nonzero().tolist() == [[2, 1]]
    pooled[2, 1] = alone[2, 1]
    assert torch.equal(pooled, alone)


def test_a_sample_is_not_finite_where_it_alone_is_not():
    extremes = torch.zeros(4, 3, 2)
    extremes[2, 0, 1] = torch.nan
    extremes[:2, 1] = torch.inf  # of half of the samples
    extremes[1:, 2] = -torch.inf
    assert LayerMaps(extremes=[extremes]).nonfinite.tolist() == [False, False, True, False]
