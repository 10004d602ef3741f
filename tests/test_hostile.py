"""Any maps give a report of finite numbers.

Filters are independent (see `test_analysis`), so that one call tests many of them. The tests count the filters, and
fail if there were fewer than they claim.
"""

import warnings

import numpy as np
import properties
import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_anomaly import AnalysisSettings
from lightning_anomaly.filters.analyze import analyze_maps
from lightning_anomaly.network.layer_maps import MapCapture

FILTERS = 50
SPECIAL = [
    0.0, -0.0, 1.0, -1.0, 1 + 1e-7, 1 + 2e-16, 3.0, 1e-8, 1e-30, -1e-30, 1e30, -1e30, 1e-160, 1e160,
    5e-324, 2e-308, 1e-45, 1e-38, 6e-8, 65504.0, 3e38, 1.7e308, -1.7e308,
]  # fmt: skip
BROKEN = [float("nan"), float("inf"), -float("inf")]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]

some_settings = st.builds(
    AnalysisSettings,
    max_components=st.integers(2, 8),
    rare_fraction=st.sampled_from([0.01, 0.1, 0.5]),
    rule=st.sampled_from(["votes", "best"]),
    n_init=st.integers(1, 4),
    seed=st.integers(0, 3),
    max_memory_mb=st.sampled_from([1, 256]),
)
finite = st.sampled_from(SPECIAL) | st.floats(allow_nan=False, allow_infinity=False)
palettes = st.lists(
    st.tuples(st.lists(finite, min_size=1, max_size=3), st.sampled_from([None] * 9 + BROKEN)),
    min_size=FILTERS,
    max_size=FILTERS,
)
shapes = st.sampled_from([(), (1, 1), (2,), (2, 2), (3, 3), (1, 2, 2), (5, 5)])


@st.composite
def hostile_maps(draw: st.DrawFn, smallest: int = 1, largest: int = 14) -> Tensor:
    """Draw maps `(N, F, ...)`. Each filter has one to three values, and sometimes a NaN or infinity.

    Some filters have only two distinct maps, and some have one map with noise at the limit of rounding.
    """
    samples, size = draw(st.integers(smallest, largest)), draw(shapes)
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    filters = []
    for values, broken in draw(palettes):
        pixels = generator.choice(np.array(values), (samples, *size))
        kind = generator.integers(4)
        if kind == 0:  # two distinct maps
            pixels = pixels[generator.integers(min(2, samples), size=samples)]
        if kind == 1:  # one map, and noise at the limit of rounding
            with np.errstate(over="ignore"):
                pixels = pixels[:1] * (1 + 1e-16 * generator.integers(0, 5, (samples, *size)))
        if broken is not None:
            pixels = pixels.copy()
            pixels.flat[generator.integers(pixels.size)] = broken
        filters.append(pixels)
    return torch.tensor(np.stack(filters, 1)).to(draw(st.sampled_from(DTYPES)))


def test_any_maps_give_a_finite_report():
    seen = 0

    @settings(max_examples=40)
    @given(hostile_maps(largest=30), some_settings)
    def check(maps: Tensor, how: AnalysisSettings) -> None:
        nonlocal seen
        seen += maps.shape[1]
        report = zoo.analyzed(zoo.captured(maps), how)
        properties.assert_finite(report)
        finite = maps.transpose(0, 1).flatten(1).isfinite().all(1)
        assert report.filters("nonfinite") == (~finite).nonzero().flatten().tolist()
        spread = report.points.double().square().mean(1)
        for (first, second), verdict in zip(spread.tolist(), report.verdicts, strict=True):
            assert first == pytest.approx(float(verdict in ("normal", "anomaly")), rel=1e-6)
            assert second <= 1 + 1e-6

    check()
    assert seen >= 2000


class Layers(nn.Module):
    """Two layers that return their inputs; a layer without an input is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Identity(), nn.Identity()

    def forward(self, first: Tensor | None, second: Tensor | None) -> None:
        for layer, value in ((self.first, first), (self.second, second)):
            if value is not None:
                layer(value)


batches = st.none() | hostile_maps(largest=4) | st.sampled_from([torch.zeros(0, FILTERS, 2, 2), torch.zeros(3)])


@settings(max_examples=40)
@given(st.lists(st.tuples(batches, batches), max_size=3), some_settings, st.booleans())
def test_any_sequence_of_batches_gives_a_report_that_can_be_printed(steps, how, rectify):
    """Batches of one or several sizes, empty ones, or none: layers whose maps do not fit are left out with a note."""
    model = Layers()
    taken = MapCapture({"first": model.first, "second": model.second}, limit=6, rectify=rectify, max_map_side=2)
    for step in steps:
        with taken, warnings.catch_warnings():
            warnings.simplefilter("error")
            model(*step)
    report = analyze_maps(taken.maps, how)
    for layer in report.layers.values():
        properties.assert_finite(layer)
    assert all(np.isfinite(value) for value in report.metrics().values())
    assert len(report.votes) == report.n_samples
    assert str(report)
    for name in ("first", "second"):
        assert (name in report.layers) != (f"{name} left out" in report.notes)
