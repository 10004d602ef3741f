"""How often a filter is flagged that has nothing to find, and how often one with outliers is found.

    python -m recipes.experiments.null

Filters of known distributions, with and without planted samples, under the default settings, the literal reading of
the paper and the rule for isolated samples; a Markdown table. A sample has one value of a distribution, as a filter
with maps of one pixel gives it, points have two independent ones, and maps 8 x 8. Axes: `F` filters, `N` samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from lightning_anomaly import AnalysisSettings
from lightning_anomaly.clustering.engine import load_engine
from lightning_anomaly.clustering.mixtures import cluster_filters
from lightning_anomaly.clustering.pca import reduce_maps
from lightning_anomaly.verdicts.isolation import isolated_samples
from lightning_anomaly.verdicts.rare import outlier_samples

_ENGINE = load_engine("auto")


def _uniform(shape: tuple[int, ...], generator: Generator) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def _gaussian(shape: tuple[int, ...], generator: Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _student(shape: tuple[int, ...], generator: Generator) -> Tensor:
    chi_squared = torch.stack([_gaussian(shape, generator).square() for _ in range(3)]).sum(0)
    return _gaussian(shape, generator) / (chi_squared / 3).sqrt()


def _sparse_exponential(shape: tuple[int, ...], generator: Generator) -> Tensor:
    return torch.where(_uniform(shape, generator) < 0.9, 0.0, -_uniform(shape, generator).log())


def _below_zero(zeros: float) -> Callable[[tuple[int, ...], Generator], Tensor]:
    """Gaussian values of which a share is below zero, to be rectified."""
    threshold = torch.special.ndtri(torch.tensor(zeros, dtype=torch.float64))
    return lambda shape, generator: _gaussian(shape, generator) - threshold


# Before they are rectified, which those named after a ReLU are.
DISTRIBUTIONS: dict[str, Callable[[tuple[int, ...], Generator], Tensor]] = {
    "Gaussian": _gaussian,
    "uniform": _uniform,
    "lognormal": lambda shape, generator: _gaussian(shape, generator).exp(),
    "Student t3": _student,
    "exponential, 90% zeros": _sparse_exponential,
    **{f"ReLU, {zeros}% zeros": _below_zero(zeros / 100) for zeros in (50, 70, 80, 85, 90, 95)},
}
SHAPES: dict[str, tuple[int, ...]] = {"values": (1,), "points": (2,), "maps": (8, 8)}
# The kind of samples and the distribution.
NULLS = [(kind, name) for kind in ("values", "points") for name in DISTRIBUTIONS if name != "ReLU, 50% zeros"]
NULLS += [("maps", name) for name in DISTRIBUTIONS if name == "Gaussian" or name.startswith("ReLU")]


@dataclass(frozen=True)
class Planted:
    """Samples that do not belong to a filter's distribution.

    Args:
        name: The distribution.
        count: How many samples.
        distance: In standard deviations of the distribution: of values from zero, and of points along the first axis,
            with a tenth of a standard deviation between them; in maps, what is added to every value.
        kind: A key of `SHAPES`.
    """

    name: str
    count: int
    distance: float
    kind: str = "points"


PLANTED = [
    *(Planted("Gaussian", 1, distance) for distance in (6, 7, 8, 10)),
    *(Planted("Gaussian", 4, distance) for distance in (5, 6, 8)),
    Planted("ReLU, 70% zeros", 1, 15),
    Planted("ReLU, 90% zeros", 1, 30),
    *(Planted("ReLU, 90% zeros", 4, distance) for distance in (15, 20, 30)),
    Planted("ReLU, 90% zeros", 10, 15),
    Planted("ReLU, 95% zeros", 4, 30),
    Planted("exponential, 90% zeros", 4, 30),
    Planted("lognormal", 1, 100),
    *(Planted("lognormal", 4, distance) for distance in (30, 60)),
    Planted("Student t3", 1, 50),
    *(Planted("Student t3", 4, distance) for distance in (15, 30)),
    Planted("Gaussian", 1, 8, kind="values"),
    Planted("Gaussian", 4, 6, kind="values"),
    *(Planted("ReLU, 90% zeros", 4, distance, kind="values") for distance in (15, 30)),
    *(Planted("ReLU, 50% zeros", 1, distance, kind="maps") for distance in (4, 6, 8)),
    Planted("ReLU, 90% zeros", 4, 8, kind="maps"),
]


def draw(
    name: str, filters: int, samples: int, seed: int, kind: str, planted: Planted | None = None
) -> tuple[Tensor, Tensor]:
    """Filters without structure, or with samples planted at the first places.

    Args:
        name: A key of `DISTRIBUTIONS`.
        filters: F.
        samples: N.
        seed: Of all draws.
        kind: A key of `SHAPES`.
        planted: What to plant.

    Returns:
        Points `(F, N, 2)`, and the largest and smallest value of each sample before rectification `(F, N, 2)`.
    """
    generator = torch.Generator().manual_seed(seed)
    values = DISTRIBUTIONS[name]((filters, samples, *SHAPES[kind]), generator)
    if planted is not None:
        std = _rectified(name, DISTRIBUTIONS[name]((100_000,), torch.Generator().manual_seed(0))).std()
        outliers = values[:, : planted.count]
        if kind == "maps":
            outliers += planted.distance * std
        else:
            outliers[:] = std / 10 * _gaussian(tuple(outliers.shape), generator)
            outliers[..., 0] += std * planted.distance
    pixels = values.flatten(2)
    extremes = torch.stack([pixels.amax(2), pixels.amin(2)], 2)
    values = _rectified(name, values)
    if kind == "maps":
        return reduce_maps(values.transpose(0, 1), _ENGINE).points, extremes
    return torch.nn.functional.pad(values, (0, 2 - values.shape[2])), extremes


def _rectified(name: str, values: Tensor) -> Tensor:
    return values.clamp(min=0) if name.startswith("ReLU") else values


def _clustered(settings: AnalysisSettings) -> Callable[[Tensor, Tensor], Tensor]:
    def outliers(points: Tensor, extremes: Tensor) -> Tensor:
        centred = points - points.mean(1, keepdim=True)
        scaled = centred / centred[..., :1].std(1, correction=0, keepdim=True)
        return outlier_samples(cluster_filters(scaled, settings, _ENGINE), settings.rare_fraction, settings.rule)

    return outliers


# Which samples `(F, N)` are outliers, from what `draw` gives.
RULES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "default": _clustered(AnalysisSettings()),
    "paper": _clustered(AnalysisSettings.paper()),
    "isolated": lambda points, extremes: isolated_samples(points, AnalysisSettings().rare_fraction, extremes),
}


def flagged(drawn: tuple[Tensor, Tensor], rule: str) -> float:
    """Share of the filters that have outliers, of what `draw` gives."""
    return RULES[rule](*drawn).any(1).double().mean().item()


def main(filters: int = 400, samples: int = 512, seed: int = 100) -> None:
    """Print the table: what is drawn, and the share of the filters that each rule flags."""
    cases: list[tuple[str, str, Planted | None]] = [(kind, name, None) for kind, name in NULLS]
    cases += [(planted.kind, planted.name, planted) for planted in PLANTED]
    print(f"| samples are | distribution | planted | {' | '.join(RULES)} |")
    print("| --- | --- | --- |" + " ---: |" * len(RULES))
    for kind, name, planted in cases:
        drawn = draw(name, filters, samples, seed, kind, planted)
        what = "nothing" if planted is None else f"{planted.count} at {planted.distance:g}"
        shares = (f"{100 * flagged(drawn, rule):.1f}%" for rule in RULES)
        print("| " + " | ".join((kind, name, what, *shares)) + " |", flush=True)


if __name__ == "__main__":
    main()
