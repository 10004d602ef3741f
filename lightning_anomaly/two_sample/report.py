"""The result of a two-sample test: of the output, and of the filters and units of each layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_anomaly.tables import Tabular
from lightning_anomaly.two_sample.rank_test import MIN_P_VALUE, share_of_chance


@dataclass(frozen=True, eq=False)
class LayerComparison:
    """The filters of one layer; tensors are on the CPU.

    Attributes:
        live: Whether a filter is judged `(F,)`: its values are finite, and so many of them are not the commonest one
            (of most filters 0) that five of these are expected in the smaller group, as the approximation needs.
        auc: Probability that a training image has a larger value than a validation image `(F,)`, see `rank_test`.
        p_value: Of the rank test `(F,)`, 1 where a filter is not live.
        share_p_value: How often random divisions of the same images find, in any of the layers that were compared, a
            share of the live filters that is as rare for that layer, see `shares_of_chance`.
    """

    live: Tensor
    auc: Tensor
    p_value: Tensor
    share_p_value: float = 1.0

    def significant(self, significance: float) -> Tensor:
        """Find the filters that tell the images apart, with this p-value at most `(F,)`."""
        return self.live & (self.p_value <= significance)


@dataclass(frozen=True, eq=False, repr=False)
class TwoSampleReport(Tabular):
    """Whether the output is surer of training images, and which filters tell them apart. `print(report)` gives a table.

    Attributes:
        layers: `{layer: LayerComparison}` in the network's order.
        n_train: Number of training images.
        n_val: Number of validation images.
        significance: The p-value up to which a filter counts.
        chance: The `fraction` that each of 999 random divisions of the same images into two groups gives `(999,)`.
        notes: What could not be compared and why, as sentences.
        confidence_auc: Probability that the output is surer of a training image than of a validation image, by the
            largest softmax probability, ties counted half; 0.5 if the output could not be compared.
        confidence_gap: Mean of that probability over the training images less that over the validation images; 0
            likewise.
        confidence_error_ratio: How many times as many errors the output expects on validation images as on training
            images: the mean of 1 less that probability over the former, divided by that over the latter; 1 likewise.
        confidence_p_value: Of the rank test between the two; 1 likewise.
        units: The units of the other linear layers, likewise `{layer: LayerComparison}`. They have no part in `count`,
            `fraction` and `p_value`.
        train_errors: 1 less that probability of each training image `(n_train,)`; empty likewise.
        val_errors: Of each validation image `(n_val,)`; empty likewise.
    """

    layers: Mapping[str, LayerComparison]
    n_train: int
    n_val: int
    significance: float
    chance: Tensor
    notes: Mapping[str, str] = field(default_factory=dict)
    confidence_auc: float = 0.5
    confidence_gap: float = 0.0
    confidence_error_ratio: float = 1.0
    confidence_p_value: float = 1.0
    units: Mapping[str, LayerComparison] = field(default_factory=dict)
    train_errors: Tensor = field(default_factory=lambda: torch.zeros(0, device="cpu"))
    val_errors: Tensor = field(default_factory=lambda: torch.zeros(0, device="cpu"))

    @property
    def compares_output(self) -> bool:
        """Whether the output could be compared; else a note says why not."""
        return len(self.train_errors) > 0

    @property
    def judged(self) -> dict[str, LayerComparison]:
        """`layers` and `units` together."""
        return {**self.layers, **self.units}

    @property
    def significant_layers(self) -> dict[str, float]:
        """`{layer: share of its live filters or units that tell the images apart}`, the largest share first.

        Only layers of which random divisions hardly give such a share: their `share_p_value` is at most `significance`,
        or 0.001, the smallest that these can give. Chance alone gives any of them with at most that probability.
        """
        shares = {
            name: self.fraction_in([name])
            for name, layer in self.judged.items()
            if layer.share_p_value <= max(self.significance, MIN_P_VALUE) and layer.significant(self.significance).any()
        }
        return dict(sorted(shares.items(), key=lambda pair: -pair[1]))

    @property
    def where(self) -> str:
        """The layers in which the images are told apart, in words."""
        named = {f"'{name}'" if name else "the model": share for name, share in self.significant_layers.items()}
        if named:
            return f"in units of {', '.join(f'{name} ({100 * share:.0f}%)' for name, share in named.items())}"
        by_output = self.compares_output and self.confidence_p_value <= self.significance
        return "by the output, and in no single unit" if by_output else "nowhere"

    @property
    def filters(self) -> dict[str, list[int]]:
        """`{layer: [filter, ...]}` of the filters that tell the images apart, layers without any left out."""
        found = {name: layer.significant(self.significance) for name, layer in self.layers.items()}
        return {name: filters.nonzero()[:, 0].tolist() for name, filters in found.items() if filters.any()}

    @property
    def count(self) -> int:
        """Number of filters that tell the images apart."""
        return sum(map(len, self.filters.values()))

    @property
    def fraction(self) -> float:
        """The same as a fraction of the live filters; 0 if there is none."""
        return self.fraction_in(self.layers)

    @property
    def p_value(self) -> float:
        """How often a random division of the same images finds at least as large a fraction, 0.001 to 1.

        As long as the network treats both kinds of images alike, it is at most p with a probability of at most p,
        however much the filters depend on each other; but the images must not: of frames of one film or slices of one
        patient it is too small. Where there are few filters, or all do the same, it is never much smaller than
        `significance`, as chance finds all of them that often.
        """
        return share_of_chance(self.fraction, self.chance)

    def fraction_in(self, layers: Iterable[str]) -> float:
        """`fraction` over some of the layers, linear ones too; a name that the report does not have counts nothing."""
        judged = self.judged
        chosen = [judged[name] for name in layers if name in judged]
        live = sum(int(layer.live.sum()) for layer in chosen)
        return sum(int(layer.significant(self.significance).sum()) for layer in chosen) / live if live else 0.0

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [
            ("layer", "filters or units", "live", "tell them apart", "fraction", "mean area")
        ]
        for name, layer in self.judged.items():
            live, found = int(layer.live.sum()), int(layer.significant(self.significance).sum())
            area = f"{layer.auc[layer.live].mean().item():.3f}" if live else "-"
            counts = str(len(layer.live)), str(live), str(found), f"{found / max(1, live):.3f}"
            rows.append((name or "(the model)", *counts, area))
        return rows

    def _sentences(self) -> list[str]:
        found = (
            f"{self.count} filters ({100 * self.fraction:.1f}% of the live ones) tell the {self.n_train} training "
            f"images from the {self.n_val} validation images; {100 * self.p_value:.1f}% of random divisions of these "
            "images find as many"
        )
        sure = (
            f"the output is surer of a training image than of a validation image in {100 * self.confidence_auc:.1f}% "
            f"of pairs (p = {self.confidence_p_value:.2g}), and expects {self.confidence_error_ratio:.2f} times as "
            "many errors on the latter"
        )
        return [*[sure] * self.compares_output, found, *(f"note: {note}" for note in self.notes.values())]
