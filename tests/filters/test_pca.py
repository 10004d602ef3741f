"""Points are scikit-learn's principal component scores of each filter."""

import numpy as np
import oracle
import pytest
import torch
import zoo

from lightning_anomaly.filters.pca import reduce_maps

# Sizes of maps and numbers of samples, fewer and more than pixels.
SHAPES = [((1, 2), 60), ((4, 4), 10), ((5, 5), 60), ((8, 8), 300), ((14, 14), 20), ((7,), 300), ((2, 3, 4), 30)]


def up_to_sign(found, expected) -> np.ndarray:
    return np.abs(found - expected * np.sign((found * expected).sum(0))).max(0)


def spectrum(eigenvalues: list[float], samples: int, pixels: int) -> torch.Tensor:
    """Make maps `(N, P)` of one filter with these eigenvalues, up to a factor, and smaller ones."""
    generator = torch.Generator().manual_seed(0)
    rank = min(samples - 1, pixels)
    scores = torch.randn(samples, rank, generator=generator, dtype=torch.float64)
    scores = torch.linalg.qr(scores - scores.mean(0))[0]
    axes = torch.linalg.qr(torch.randn(pixels, rank, generator=generator, dtype=torch.float64))[0]
    variance = 0.5 * eigenvalues[-1] * torch.linspace(1, 0.1, rank, dtype=torch.float64)
    variance[: len(eigenvalues)] = torch.tensor(eigenvalues, dtype=torch.float64)
    return scores * variance.sqrt() @ axes.T


@pytest.mark.parametrize(("size", "samples"), SHAPES)
@pytest.mark.parametrize("kind", zoo.KINDS)
def test_scores_are_scikit_learn_s_up_to_sign(kind, size, samples):
    # Within 1e-5 of the first axis's spread would do; 6e-12 was measured, and 1e-9 has room for other BLAS libraries.
    maps = zoo.maps(kind, 2, samples, size)
    maps = maps.float() if samples == 60 else maps
    before = maps.clone()
    reduction = reduce_maps(maps)
    assert torch.equal(maps, before)
    for index in range(2):
        expected = oracle.pca_scores(maps[:, index].numpy())
        assert (up_to_sign(reduction.points[index].numpy(), expected) < 1e-9).all()


@pytest.mark.parametrize(("pixels", "samples"), [(64, 200), (196, 40)])
@pytest.mark.parametrize(("second", "gap"), [(0.5, 1e-1), (1e-4, 1e-6), (0.5, 1e-9), (1.0, 0)])
def test_scores_are_scikit_learn_s_if_the_third_eigenvalue_is_close_to_the_second(second, gap, samples, pixels):
    maps = spectrum([1.0, second, second * (1 - gap)], samples, pixels)
    reduction = reduce_maps(maps[:, None])
    points = reduction.points[0]
    # With equal eigenvalues the axes are arbitrary, but their variances are not, and they are uncorrelated.
    variance = points.square().mean(0)
    torch.testing.assert_close(variance, torch.tensor([1.0, second], dtype=torch.float64), rtol=1e-9, atol=0)
    assert (points[:, 0] * points[:, 1]).mean().abs() < 1e-9
    assert reduction.explained.item() == pytest.approx((1 + second) / maps.square().sum().item(), rel=1e-9)
    if gap:  # an axis is defined up to rounding / gap
        assert (up_to_sign(points.numpy(), oracle.pca_scores(maps.numpy())) < 1e-11 + 1e-14 / gap).all()


def test_each_axis_points_to_its_largest_loading():
    maps = zoo.maps("skewed", 3, 50, (3, 3))
    ours, theirs = reduce_maps(maps), reduce_maps(maps, "sklearn")
    torch.testing.assert_close(ours.points, theirs.points, rtol=0, atol=1e-9)
    torch.testing.assert_close(reduce_maps(-maps).points.abs(), ours.points.abs(), rtol=0, atol=1e-9)
    for index in range(3):
        rows = maps[:, index].flatten(1) - maps[:, index].flatten(1).mean(0)
        loadings = rows.T @ ours.points[index]
        assert (loadings.gather(0, loadings.abs().argmax(0, keepdim=True)) > 0).all()


@pytest.mark.parametrize("engine", ["numba", "sklearn"])
@pytest.mark.parametrize(("size", "samples"), [((2, 2), 50), ((5, 5), 61), ((8, 8), 300), ((8, 8), 40)])
def test_equal_maps_are_exactly_equal_points(size, samples, engine):
    """Otherwise rounding would decide between equal centers of a random start."""
    maps = zoo.maps("sparse", 4, samples, size)
    maps[::3] = maps[1]
    points = reduce_maps(maps, engine).points
    for index in range(4):
        distinct = len(maps[:, index].flatten(1).unique(dim=0))
        assert distinct < 0.7 * samples
        assert len(points[index].unique(dim=0)) == distinct


@pytest.mark.parametrize("engine", ["numba", "sklearn"])
def test_maps_of_one_pixel_lie_on_a_line(engine):
    for shape in ((30, 2, 1, 1), (30, 2)):
        maps = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
        reduction = reduce_maps(maps, engine)
        flat = maps.reshape(30, 2).double()
        expected = ((flat - flat.mean(0)) / flat.std(0, correction=0)).T
        torch.testing.assert_close(reduction.points[..., 0], expected, rtol=0, atol=1e-12)
        assert (reduction.points[..., 1] == 0).all()
        torch.testing.assert_close(reduction.explained, torch.ones(2).double(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_filter_is_constant_if_it_varies_only_by_rounding(dtype):
    eps = torch.finfo(dtype).eps
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(20)[:, None].expand(40, 4)
    maps = torch.stack([3 + 3 * size * eps * sign for size in (0, 1, 2, 32)], 1).to(dtype)
    maps = torch.cat([maps, torch.zeros_like(maps[:, :1])], 1)
    assert reduce_maps(maps).constant.tolist() == [True, True, True, False, True]


def test_a_filter_with_nan_or_infinity_is_not_finite_and_its_points_are_zero():
    maps = torch.randn(20, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    maps[3, 1, 0, 0], maps[3, 2, 0, 0], maps[:, 3], maps[0, 4, 1, 1] = torch.nan, torch.inf, 2.0, -torch.inf
    reduction = reduce_maps(maps)
    assert reduction.finite.tolist() == [True, False, False, True, False]
    assert reduction.constant.tolist() == [False, False, False, True, False]
    assert reduction.varying.tolist() == [True, False, False, False, False]
    assert (reduction.points[1:] == 0).all()
    assert (reduction.explained[1:] == 0).all()
