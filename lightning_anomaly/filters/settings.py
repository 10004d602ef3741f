"""Settings of an analysis: a frozen dataclass that validates its values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lightning_anomaly._internal.checks import check_bool, check_fraction, check_integer, check_one_of

EngineName = Literal["numba", "sklearn"]
Rule = Literal["votes", "best"]


@dataclass(frozen=True)
class AnalysisSettings:
    """How feature maps are clustered and filters judged. The paper's abstract leaves this open: these are our choices.

    Args:
        max_components: Largest number of components, 2 to 255. Mixtures of 2, 3, ... components are fitted to every
            filter. With 5, 85 to 97% of the flagged filters stay flagged when 2% of the probe is left out; with 8,
            fewer.
        rare_fraction: A cluster is rare if it holds at most this fraction of the probe samples. With 2%, a cluster of
            ten odd images in 512 is still found.
        rule: How mixtures decide whether a sample in a rare cluster is an outlier. `"votes"`: all mixtures vote,
            weighted by their Calinski-Harabasz index, and more than two thirds decide. `"best"`, the paper's reading:
            the mixture with the largest index decides alone; if two indices are nearly equal, its verdict can flip with
            any small change.
        n_init: Each mixture starts from the best of `n_init` k-means clusterings.
        rectify: Whether negative values of the maps are set to zero first, as by a ReLU.
        max_map_side: Larger maps are average-pooled until no side is larger (pixels). Maps with one or three axes are
            pooled to at most as many pixels as a square of this side.
        engine: `"numba"` runs compiled loops, `"sklearn"` scikit-learn's estimators, for checks; both on the CPU.
        seed: Seed of the k-means clusterings. No global random number is drawn.
        max_memory_mb: Bound on the working memory of principal components and clustering, beyond the maps (MB).

    Raises:
        TypeError: If a value has a wrong type.
        ValueError: If a value is not allowed; the message names it and the allowed values.

    Examples:
        >>> AnalysisSettings.paper().max_components
        8
    """

    max_components: int = 5
    rare_fraction: float = 0.02
    rule: Rule = "votes"
    n_init: int = 20
    rectify: bool = True
    max_map_side: int = 8
    engine: EngineName = "numba"
    seed: int = 0
    max_memory_mb: int = 256

    def __post_init__(self) -> None:
        plain: dict[str, Any] = {
            "rare_fraction": check_fraction("rare_fraction", self.rare_fraction, zero=False, largest=0.5),
            "rectify": check_bool("rectify", self.rectify),
            "seed": check_integer("seed", self.seed, 0, 2**64 - 1),
            "max_components": check_integer("max_components", self.max_components, 2, 255),  # a label is one byte
        }
        for name in ("n_init", "max_map_side", "max_memory_mb"):
            plain[name] = check_integer(name, getattr(self, name), 1)
        for name, allowed in (("rule", Rule), ("engine", EngineName)):
            plain[name] = check_one_of(name, getattr(self, name), get_args(allowed))
        for name, value in plain.items():
            object.__setattr__(self, name, value)  # as the dataclass is frozen

    @classmethod
    def paper(cls) -> AnalysisSettings:
        """Our literal reading of the paper's abstract, with scikit-learn's defaults for the rest.

        Each mixture has one k-means start as in `GaussianMixture(k)`, but from plain instead of greedy k-means++. K is
        at most 8 and chosen by Calinski-Harabasz alone; a cluster is rare at 1%.
        """
        return cls(max_components=8, rare_fraction=0.01, rule="best", n_init=1)

    @property
    def smallest_probe(self) -> int:
        """The smallest number of samples with room for a rare cluster and two samples per component."""
        # The tolerance is for rounding, as in `rare_samples`.
        return max(math.ceil(1 / self.rare_fraction * (1 - 1e-12)), 2 * self.max_components)


def checked_settings(settings: AnalysisSettings | None) -> AnalysisSettings:
    """Return the settings, or the defaults for None; raise TypeError for anything else."""
    if settings is None:
        return AnalysisSettings()
    if not isinstance(settings, AnalysisSettings):
        raise TypeError(f"Parameter `settings` should be an AnalysisSettings or None. Found {settings!r}.")
    return settings
