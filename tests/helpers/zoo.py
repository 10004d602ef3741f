"""Points and maps of the kinds that networks produce, each from a fixed seed."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_anomaly import AnalysisSettings
from lightning_anomaly.filters.analyze import analyze_maps
from lightning_anomaly.filters.layer_report import LayerReport
from lightning_anomaly.network.layer_maps import LayerMaps, MapCapture


def _clustered(filters: int, samples: int, generator: torch.Generator) -> Tensor:
    centers = 3 * torch.randn(filters, 4, 2, generator=generator, dtype=torch.float64)
    member = torch.randint(4, (filters, samples), generator=generator)
    return centers.gather(1, member[..., None].expand(-1, -1, 2)) + 0.4 * _normal(filters, samples, generator)


def _skewed(filters: int, samples: int, generator: torch.Generator) -> Tensor:
    return _normal(filters, samples, generator).exp()


def _sparse(filters: int, samples: int, generator: torch.Generator) -> Tensor:
    """Like rectified maps: about two thirds of the samples are the same point."""
    points = _normal(filters, samples, generator)
    fires = torch.rand(filters, samples, 1, generator=generator) < 0.4
    return points.clamp(min=0) * fires + points.abs() * fires.roll(1, 2) * 0.1


def _tied(filters: int, samples: int, generator: torch.Generator) -> Tensor:
    """Nearly singular: within a billionth of a line, with half of the samples on one of three points."""
    points = _normal(filters, samples, generator)
    points[..., 1] = 0.5 * points[..., 0] + 1e-9 * points[..., 1]
    index = torch.arange(samples)
    index[samples // 2 :] %= 3
    return points[:, index]


def _normal(filters: int, samples: int, generator: torch.Generator) -> Tensor:
    return torch.randn(filters, samples, 2, generator=generator, dtype=torch.float64)


KINDS: dict[str, Callable[[int, int, torch.Generator], Tensor]] = {
    "clustered": _clustered,
    "skewed": _skewed,
    "sparse": _sparse,
    "tied": _tied,
}


def points(kind: str, filters: int, samples: int, seed: int = 0) -> Tensor:
    """Points `(F, N, 2)`, float64, centered, in standard deviations of the first coordinate."""
    drawn = KINDS[kind](filters, samples, torch.Generator().manual_seed(seed))
    centered = drawn - drawn.mean(1, keepdim=True)
    return centered / centered[..., 0].square().mean(1).sqrt()[:, None, None]


def maps(kind: str, filters: int, samples: int, size: tuple[int, ...], seed: int = 0) -> Tensor:
    """Maps `(N, F, *size)`, float64, with `points` as their two leading components, plus a little noise."""
    generator = torch.Generator().manual_seed(seed + 1)
    pixels = int(torch.tensor(size).prod())
    patterns = torch.randn(filters, 2, pixels, generator=generator, dtype=torch.float64)
    patterns[:, 1] *= 0.5
    scores = points(kind, filters, samples, seed)
    rest = torch.randn(filters, samples, pixels, generator=generator, dtype=torch.float64)
    rest *= (scores != scores.mode(1, keepdim=True)[0]).any(2, keepdim=True)  # equal samples stay equal
    return (scores @ patterns + 0.05 * rest).transpose(0, 1).reshape(samples, filters, *size).contiguous()


def captured(values: Tensor, *, batch: int | None = None, max_map_side: int = 1000) -> LayerMaps:
    """Capture maps `(N, F, ...)` with a `MapCapture`, in batches of one size."""
    layer = nn.Identity()
    capture = MapCapture({"layer": layer}, rectify=False, max_map_side=max_map_side)
    for part in values.split(batch or max(1, len(values))):
        with capture:
            layer(part)
    return capture.maps["layer"]


def analyzed(layer: LayerMaps, settings: AnalysisSettings) -> LayerReport:
    return analyze_maps({"layer": layer}, settings).layers["layer"]
