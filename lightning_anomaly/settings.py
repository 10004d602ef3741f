"""How an analysis is done, in one frozen dataclass that checks itself."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from lightning_anomaly.checks import check_bool, check_fraction, check_integer, check_one_of

EngineName = Literal["auto", "numba", "torch", "sklearn"]  # each but the first a file `clustering/NAME_engine.py`
Rule = Literal["index", "best"]


@dataclass(frozen=True)
class AnalysisSettings:
    """How feature maps are clustered and judged. The source paper's abstract leaves this open: these are our choices.

    Args:
        max_components: Mixtures of 2 to `max_components` components, at most 255, are fitted to every filter. With up
            to 5, most flagged filters stay so when 2% of the probe is left out (87 to 97%); with up to 8, fewer.
        rare_fraction: A cluster is rare if it holds at most this fraction of the probe samples. With 2%, ten images of
            512 that do not belong may sit in one cluster and still be found.
        rule: Which of a filter's mixtures decide whether a sample in a rare cluster is an outlier. `"index"` lets the
            Calinski-Harabasz index decide: each mixture votes with its index, and more than two thirds of the votes are
            needed, so that one whose index is more than twice the others' together decides alone and of near-equal ones
            most must agree. `"best"`, the paper's reading, asks only the mixture with the largest index, and its
            verdict changes with whatever changes the choice between two near-equal ones.
        n_init: Each mixture starts from the best of `n_init` k-means clusterings.
        rectify: Whether negative values of the maps are set to zero first, as a ReLU behind the layer would do.
        max_map_side: Larger maps are average-pooled until no side is larger (pixels). Maps with one or three axes are
            pooled to at most as many pixels as a square of this side has.
        engine: `"numba"` runs compiled loops on the CPU, `"torch"` plain torch where the maps are, `"sklearn"`
            scikit-learn's own estimators, for checks. `"auto"` is numba, also for maps on a GPU: they are brought to
            the CPU.
        seed: Seed of the starts. No global random number is drawn.
        max_memory_mb: Bound on the working memory of principal components and of clustering, beyond the maps themselves
            (MiB). Outlier scores take what they need: in each thread about eight times a layer's five numbers of each
            map.

    Raises:
        ValueError: If a value is not allowed; the message names it and what is.

    Examples:
        >>> AnalysisSettings.paper().max_components
        8
    """

    max_components: int = 5
    rare_fraction: float = 0.02
    rule: Rule = "index"
    n_init: int = 20
    rectify: bool = True
    max_map_side: int = 8
    engine: EngineName = "auto"
    seed: int = 0
    max_memory_mb: int = 256

    def __post_init__(self) -> None:
        plain: dict[str, Any] = {
            "rare_fraction": check_fraction("rare_fraction", self.rare_fraction, zero=False, largest=0.5),
            "rectify": check_bool("rectify", self.rectify),
            "seed": check_integer("seed", self.seed, 0, 2**64 - 1),
        }
        # A label is stored in one byte.
        plain["max_components"] = check_integer("max_components", self.max_components, 2, 255)
        for name in ("n_init", "max_map_side", "max_memory_mb"):
            plain[name] = check_integer(name, getattr(self, name), 1)
        for name, allowed in (("rule", Rule), ("engine", EngineName)):
            plain[name] = check_one_of(name, getattr(self, name), get_args(allowed))
        for name, value in plain.items():
            object.__setattr__(self, name, value)  # the way into a frozen dataclass

    @classmethod
    def paper(cls) -> AnalysisSettings:
        """Our literal reading of what is known of the source paper, with scikit-learn's defaults where it is silent.

        One k-means start a mixture, as `GaussianMixture(k)` has it, but for the draw of the first centres (plain
        k-means++, not scikit-learn's greedy one); K up to 8 chosen by Calinski-Harabasz alone, rare at 1%.
        """
        return cls(max_components=8, rare_fraction=0.01, rule="best", n_init=1)

    @property
    def smallest_probe(self) -> int:
        """The number of samples below which no cluster could be rare, or a component would have hardly a sample."""
        # The tolerance takes up rounding only, as in `rare_samples`.
        return max(math.ceil(1 / self.rare_fraction * (1 - 1e-12)), 2 * self.max_components)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values; `AnalysisSettings(**values)` is the way back."""
        return asdict(self)


def checked_settings(settings: AnalysisSettings | None) -> AnalysisSettings:
    """Return the settings, or the defaults for None; raises ValueError for anything else."""
    if settings is None:
        return AnalysisSettings()
    if not isinstance(settings, AnalysisSettings):
        raise ValueError(f"Parameter `settings` should be an AnalysisSettings or None. Found {settings!r}.")
    return settings
