"""Which filters tell training images from validation images: a rank test for every filter, and a report."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_anomaly.capture.hooks import MapCapture
from lightning_anomaly.capture.layers import scripted_note, select_layers
from lightning_anomaly.capture.probe import check_inputs, run, usable_layers
from lightning_anomaly.checks import check_fraction
from lightning_anomaly.tables import Tabular

__all__ = [
    "LayerComparison",
    "TwoSampleReport",
    "divided_test",
    "live_filters",
    "random_divisions",
    "rank_test",
    "share_of_chance",
    "two_sample_test",
]

_EXPECTED = 5  # values other than the commonest one in the smaller group, as for a chi-squared test
_DIVISIONS = 999


def rank_test(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """How well each filter's value tells the samples of one group from those of another.

    The rank test of Mann and Whitney, "On a Test of Whether One of Two Random Variables is Stochastically Larger than
    the Other" (1947), two-sided, in SciPy's normal approximation with ties. Where both groups are drawn alike, a filter
    has a p-value of at most 1% with a probability of 1%.

    Args:
        first: Values of one group `(F, n)`.
        second: Values of the other one `(F, m)`.

    Returns:
        The area under the ROC curve `(F,)`: the probability that a sample of the first group has the larger value, ties
        counted half; and the p-value `(F,)`. 0.5 and 1 for a filter whose values are all the same.
    """
    from scipy.stats import mannwhitneyu  # late, because it is slow to import

    both = torch.cat([first, second], 1).cpu().double()  # in this order: not every device has doubles
    varies = both.amax(1) > both.amin(1)
    area, p_value = (torch.full((len(both),), value, dtype=torch.float64) for value in (0.5, 1.0))
    if varies.any():
        parts = both[varies].tensor_split([first.shape[1]], dim=1)
        test = mannwhitneyu(*(part.numpy() for part in parts), axis=1, method="asymptotic")
        area[varies] = torch.from_numpy(test.statistic) / (first.shape[1] * second.shape[1])
        p_value[varies] = torch.from_numpy(test.pvalue)
    return area, p_value


def random_divisions(n_first: int, n_samples: int) -> Tensor:
    """Random divisions of samples into two groups, always the same ones.

    Args:
        n_first: Samples in the first group.
        n_samples: All samples.

    Returns:
        Whether each sample is in the first group, bool `(n_samples, 999)`, `n_first` of each column.
    """
    noise = torch.rand(n_samples, _DIVISIONS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return noise <= noise.kthvalue(n_first, dim=0).values


def divided_test(values: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """`rank_test` for many divisions of the same samples at once.

    Args:
        values: Values of all samples `(F, N)`.
        first: Divisions, each a column that says which samples are in the first group, as many in each; bool `(N, D)`.

    Returns:
        Areas and p-values `(F, D)`.
    """
    from scipy.stats import rankdata

    n_samples = len(first)
    n_first = int(first[:, 0].sum())
    pairs = n_first * (n_samples - n_first)
    ranks = torch.from_numpy(rankdata(values.cpu().double().numpy(), axis=1)) - (n_samples + 1) / 2
    deviation = ranks @ first.double()  # of the rank sum from its mean over all divisions
    spread = (pairs / (n_samples * (n_samples - 1)) * ranks.square().sum(1, keepdim=True)).sqrt()
    scores = (deviation.abs() - 0.5) / spread  # 0.5: the correction for continuity
    p_value = torch.where(spread > 0, torch.special.erfc(scores / math.sqrt(2)).clamp_max(1), 1.0)
    return 0.5 + deviation / pairs, p_value


def share_of_chance(found: float, chance: Tensor) -> float:
    """The p-value of a number among those that random divisions gave `(D,)`: how often these are at least as large.

    The division that was made counts as one of them (Phipson and Smyth, "Permutation P-values Should Never Be Zero",
    2010).
    """
    return (1 + int((chance >= found).sum())) / (1 + len(chance))


@dataclass(frozen=True, eq=False)
class LayerComparison:
    """The filters of one layer; tensors are on the CPU.

    Attributes:
        live: Whether a filter is judged `(F,)`: its values are finite, and so many of them are not the commonest one (0
            for most) that five of these are expected in the smaller group, as the rank test's approximation needs.
        auc: Probability that a training image has a larger value than a validation image `(F,)`, see `rank_test`.
        p_value: Of the rank test `(F,)`, 1 where a filter is not live.
    """

    live: Tensor
    auc: Tensor
    p_value: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class TwoSampleReport(Tabular):
    """Which filters respond to training images otherwise than to validation images. `print(report)` gives a table.

    Attributes:
        layers: `{layer: LayerComparison}` in the network's order.
        n_train: Number of training images.
        n_val: Number of validation images.
        significance: The p-value up to which a filter counts.
        chance: The `fraction` that each of 999 random divisions of the same images into two groups gives `(999,)`.
        notes: What could not be compared and why, as sentences.
    """

    layers: Mapping[str, LayerComparison]
    n_train: int
    n_val: int
    significance: float
    chance: Tensor
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def filters(self) -> dict[str, list[int]]:
        """`{layer: [filter, ...]}` of the filters that tell the images apart, layers without any left out."""
        found = {name: self._told(layer).nonzero()[:, 0].tolist() for name, layer in self.layers.items()}
        return {name: filters for name, filters in found.items() if filters}

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
        """`fraction` over some of the layers; a name that the report does not have counts nothing."""
        chosen = [self.layers[name] for name in layers if name in self.layers]
        live = sum(int(layer.live.sum()) for layer in chosen)
        return sum(int(self._told(layer).sum()) for layer in chosen) / live if live else 0.0

    def _told(self, layer: LayerComparison) -> Tensor:
        return layer.live & (layer.p_value <= self.significance)

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [("layer", "filters", "live", "tell them apart", "fraction", "mean area")]
        for name, layer in self.layers.items():
            live = int(layer.live.sum())
            area = f"{layer.auc[layer.live].mean().item():.3f}" if live else "-"
            told = int(self._told(layer).sum())
            rows.append(
                (name or "(the model)", str(len(layer.live)), str(live), str(told), f"{told / max(1, live):.3f}", area)
            )
        return rows

    def _sentences(self) -> list[str]:
        found = (
            f"{self.count} filters ({100 * self.fraction:.1f}% of the live ones) tell the {self.n_train} training "
            f"images from the {self.n_val} validation images; {100 * self.p_value:.1f}% of random divisions of these "
            "images find as many"
        )
        return [found, *(f"note: {note}" for note in self.notes.values())]


def two_sample_test(
    model: nn.Module,
    train_inputs: Any,
    val_inputs: Any,
    *,
    layers: Iterable[str] | None = None,
    significance: float = 0.01,
) -> TwoSampleReport:
    """Find the filters that respond to training images otherwise than to validation images.

    As long as a network treats both alike, `significance` of its filters are found by chance; a share well above it
    says that convolutions have learnt the training images themselves, and in which layers. Filters of a network see the
    same images, so by chance too they are found together: none for most images, a tenth of them for a few. The report's
    `p_value` knows that: it compares the share with those of random divisions of the same images. What is compared is a
    filter's largest rectified value on an image: of a convolution with a BatchNorm behind it, name the BatchNorm in
    `layers`.

    **Give training images as validation sees them, without augmentation**, and of both kinds as they come, drawn at
    random: whatever else sets the two apart is found as well. It finds strong overfitting, and none in linear layers;
    see `recipes/RESULTS.md` for where it did and where it did not.

    The model runs in evaluation mode without gradients; its flags, buffers and hooks and the global random state are
    afterwards as before, also after an exception.

    Args:
        model: Any model, on any device.
        train_inputs: Images that it was trained on; as `inputs` of `analyze`.
        val_inputs: Images that it was not trained on, likewise. A few hundred of each kind are enough.
        layers: Names of the layers to compare; None takes every convolution.
        significance: The p-value up to which a filter counts.

    Returns:
        The report. Whatever could not be compared is in its `notes`, each of which is also a warning.

    Raises:
        ValueError: If a layer does not exist, there are no images, they come in another way, or `significance` is not a
            number in (0, 1].

    Examples:
        >>> images = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> conv = nn.Conv2d(1, 1, 3)
        >>> two_sample_test(conv, images[:100] + 1, images[100:]).filters
        {'': [0]}
    """
    check_fraction("significance", significance, zero=False)
    inputs = {"train_inputs": train_inputs, "val_inputs": val_inputs}
    for argument, given in inputs.items():
        check_inputs(given, argument)
    watched = select_layers(model, layers)
    notes = scripted_note(model) if layers is None else {}
    if not watched and not notes:
        notes["no layers"] = "The model has no convolution, so there are no filters to compare."
    taken, sizes = [], []
    for given in inputs.values():
        capture = MapCapture(watched, summary=_largest)
        run(model, given, capture)
        usable, n_samples, left_out = usable_layers(capture.maps, len(given) if isinstance(given, Tensor) else None)
        notes |= left_out
        taken.append({name: layer.maps.T for name, layer in usable.items()})
        sizes.append(n_samples)
    n_train, n_val = sizes
    compared = {}
    divisions: Tensor | None = None
    by_chance = torch.zeros(_DIVISIONS, dtype=torch.int64)
    for name, values in taken[0].items():
        if name in taken[1]:
            both = torch.cat([values, taken[1][name]], 1)
            compared[name] = _compare(both, n_train)
            if divisions is None:
                divisions = random_divisions(n_train, n_train + n_val)
            _, p_values = divided_test(both[compared[name].live.to(both.device)], divisions)
            by_chance += (p_values <= significance).sum(0)
            nonfinite = int((~both.isfinite().all(1)).sum())
            if nonfinite:
                notes[f"{name} nonfinite"] = (
                    f"Layer '{name}': {nonfinite} of {len(both)} filters have NaN or infinite values and are not "
                    "compared."
                )
    for note in notes.values():
        warnings.warn(note, stacklevel=2)
    live = sum(int(layer.live.sum()) for layer in compared.values())
    return TwoSampleReport(compared, n_train, n_val, significance, by_chance.double() / max(1, live), notes)


def _largest(maps: Tensor) -> Tensor:
    """The largest value of each map: `(n, F, ...)` gives `(n, F)`."""
    return maps.flatten(2).amax(2) if maps.ndim > 2 else maps


def live_filters(values: Tensor, n_first: int) -> Tensor:
    """Which filters can be judged from their values `(F, N)`, see `LayerComparison`; bool `(F,)`."""
    smaller = min(n_first, values.shape[1] - n_first)
    others = (values != values.mode(1, keepdim=True).values).sum(1)
    return values.isfinite().all(1) & (others * smaller >= _EXPECTED * values.shape[1])


def _compare(values: Tensor, n_train: int) -> LayerComparison:
    """The filters of a layer from their values on all images `(F, n + m)`, the training images first."""
    values = values.cpu()
    live = live_filters(values, n_train)
    area, p_value = rank_test(values[:, :n_train], values[:, n_train:])
    area[~live], p_value[~live] = 0.5, 1.0
    return LayerComparison(live, area, p_value)
