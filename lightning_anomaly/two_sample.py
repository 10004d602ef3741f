"""Whether a network tells training images from validation images, by its output, and by which of its filters."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_anomaly.capture.hooks import MapCapture
from lightning_anomaly.capture.layers import linear_layers, select_layers, unseen_layers
from lightning_anomaly.capture.maps import LayerMaps
from lightning_anomaly.capture.probe import check_inputs, run, usable_layers
from lightning_anomaly.checks import check_fraction
from lightning_anomaly.confidence import Confidences, compare_confidences
from lightning_anomaly.rank_test import (
    DIVISIONS,
    divided_test,
    enough_samples,
    live_filters,
    random_divisions,
    rank_test,
    samples_needed,
    samples_to_be_live,
    share_of_chance,
)
from lightning_anomaly.tables import Tabular

__all__ = ["LayerComparison", "TwoSampleReport", "two_sample_test"]


@dataclass(frozen=True, eq=False)
class LayerComparison:
    """The filters of one layer; tensors are on the CPU.

    Attributes:
        live: Whether a filter is judged `(F,)`: its values are finite, and so many of them are not the commonest one (0
            for most) that five of these are expected in the smaller group, as the rank test's approximation needs.
        auc: Probability that a training image has a larger value than a validation image `(F,)`, see `rank_test`.
        p_value: Of the rank test `(F,)`, 1 where a filter is not live.
        share_p_value: How often random divisions of the same images find as large a share of the layer's live filters.
    """

    live: Tensor
    auc: Tensor
    p_value: Tensor
    share_p_value: float = 1.0


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
        confidence_p_value: Of the rank test between the two; 1 likewise.
        units: The units of the linear layers, likewise `{layer: LayerComparison}`; none where `layers` were named. They
            have no part in `count`, `fraction` and `p_value`.
    """

    layers: Mapping[str, LayerComparison]
    n_train: int
    n_val: int
    significance: float
    chance: Tensor
    notes: Mapping[str, str] = field(default_factory=dict)
    confidence_auc: float = 0.5
    confidence_gap: float = 0.0
    confidence_p_value: float = 1.0
    units: Mapping[str, LayerComparison] = field(default_factory=dict)

    @property
    def compares_output(self) -> bool:
        """Whether the output could be compared; else a note says why not."""
        return not {"output", "few images"} & set(self.notes)

    @property
    def telling_layers(self) -> dict[str, float]:
        """`{layer: share of its live filters or units that tell the images apart}`, the largest share first.

        Only layers of which random divisions give such a share at most `significance` of the times.
        """
        shares = {
            name: self.fraction_in([name])
            for name, layer in self._all.items()
            if layer.share_p_value <= self.significance and self._told(layer).any()
        }
        return dict(sorted(shares.items(), key=lambda pair: -pair[1]))

    @property
    def where(self) -> str:
        """In which layers the images are told apart, in words."""
        shares = [f"'{name}' ({100 * share:.0f}%)" for name, share in self.telling_layers.items()]
        if shares:
            return f"in units of {', '.join(shares)}"
        return "in no single unit: the output alone" if self.compares_output else "nowhere"

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
        """`fraction` over some of the layers, linear ones too; a name that the report does not have counts nothing."""
        chosen = [self._all[name] for name in layers if name in self._all]
        live = sum(int(layer.live.sum()) for layer in chosen)
        return sum(int(self._told(layer).sum()) for layer in chosen) / live if live else 0.0

    @property
    def _all(self) -> dict[str, LayerComparison]:
        return {**self.layers, **self.units}

    def _told(self, layer: LayerComparison) -> Tensor:
        return layer.live & (layer.p_value <= self.significance)

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [("layer", "filters", "live", "tell them apart", "fraction", "mean area")]
        for name, layer in self._all.items():
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
        sure = (
            f"the output is surer of a training image than of a validation image in {100 * self.confidence_auc:.1f}% "
            f"of pairs (p = {self.confidence_p_value:.2g}), by {self.confidence_gap:+.3f} on average"
        )
        return [*[sure] * self.compares_output, found, *(f"note: {note}" for note in self.notes.values())]


def two_sample_test(
    model: nn.Module,
    train_inputs: Any,
    val_inputs: Any,
    *,
    layers: Iterable[str] | None = None,
    significance: float = 0.01,
) -> TwoSampleReport:
    """Find out whether a network knows its training images: by its output, and by which filters.

    The output says *whether*: a network that overfits is surer of training images, by its largest softmax probability.
    `confidence_auc` is 0.5 where it treats both alike. Its p-value depends on the number of images; the area does not.

    The filters say *where*. As long as a network treats both alike, `significance` of its filters are found by chance;
    a share well above it says that convolutions have learnt the training images themselves, and in which layers.
    Filters of a network see the same images, so by chance too they are found together: none for most images, a tenth of
    them for a few. The report's `p_value` knows that: it compares the share with those of random divisions of the same
    images. What is compared is a filter's largest rectified value on an image: of a convolution with a BatchNorm behind
    it, name the BatchNorm in `layers`. The units of linear layers with outputs `(N, F)` are judged in the same way, for
    `where`.

    **Give training images as validation sees them, without augmentation**, and of both kinds as they come, drawn at
    random: whatever else sets the two apart is found as well. Filters show strong overfitting of convolutions, single
    units hardly any; see `docs/results/two_sample.md`.

    The model runs in evaluation mode without gradients; its flags, buffers and hooks and the global random state are
    afterwards as before, also after an exception.

    Args:
        model: Any model, on any device. Its output is compared if it is logits `(N, C)`, or `(N, C, ...)`, of which the
            mean over the positions counts; of another kind, a note says so.
        train_inputs: Images that it was trained on; as `inputs` of `analyze`.
        val_inputs: Images that it was not trained on, likewise. A few hundred of each kind are enough.
        layers: Names of the layers to compare; None takes every convolution, and for `where` the linear layers.
        significance: The p-value up to which a filter counts.

    Returns:
        The report. Whatever could not be compared is in its `notes`, each of which is also a warning.

    Raises:
        ValueError: If a layer does not exist, there are no images, they come in another way, those of one kind have
            another shape, or `significance` is not a number in (0, 1].

    Examples:
        >>> images = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> conv = nn.Conv2d(1, 2, 3)
        >>> _ = nn.init.ones_(conv.weight)
        >>> two_sample_test(conv, images[:100] + 1, images[100:]).filters
        {'': [0, 1]}
    """
    check_fraction("significance", significance, zero=False)
    check_groups(train_inputs, val_inputs)
    watched = select_layers(model, layers)
    linear = linear_layers(model) if layers is None else {}
    notes = unseen_layers(model, layers)
    taken, sizes, sure, units = [], [], [], []
    for argument, given in (("train_inputs", train_inputs), ("val_inputs", val_inputs)):
        capture, confidences = MapCapture({**watched, **linear}, summary=_largest), Confidences()
        run(model, given, capture, argument=argument, take_output=confidences.take)
        maps = {name: capture.maps[name] for name in watched}
        usable, n_samples, left_out = usable_layers(maps, len(given) if isinstance(given, Tensor) else None)
        notes |= left_out
        n_samples = n_samples or sum(map(len, confidences.batches))  # where no layer says how many
        taken.append(usable)
        sizes.append(n_samples)
        sure.append(confidences.of(n_samples))
        fitting, _, _ = usable_layers({name: capture.maps[name] for name in linear}, n_samples)
        units.append({name: layer for name, layer in fitting.items() if layer.size == ()})
        if confidences.problem is not None:
            notes["output"] = f"The output is not compared: {confidences.problem}."
    n_train, n_val = sizes
    judged = all(taken) or all(units)  # else there may be no sample
    divisions = random_divisions(n_train, n_train + n_val) if judged else torch.zeros(0, DIVISIONS, dtype=torch.bool)
    compared: dict[str, LayerComparison] = {}
    values: dict[str, Tensor] = {}
    by_chance = torch.zeros(DIVISIONS, dtype=torch.int64)
    for name in [name for name in taken[0] if name in taken[1]]:
        layer, other = taken[0][name], taken[1][name]
        if layer.size != other.size:  # the largest of more values is larger
            notes[f"{name} left out"] = (
                f"Layer '{name}' is left out of the analysis: the size of its maps is {layer.size} for training images "
                f"and {other.size} for validation images."
            )
            continue
        values[name] = _values(layer, other)
        compared[name], of_layer = _beside_chance(values[name], n_train, divisions, significance)
        by_chance += of_layer
        nonfinite = int((~values[name].isfinite().all(1)).sum())
        if nonfinite:
            notes[f"{name} nonfinite"] = (
                f"Layer '{name}': {nonfinite} of {len(values[name])} filters have NaN or infinite values and are not "
                "compared."
            )
    live = sum(int(layer.live.sum()) for layer in compared.values())
    enough = enough_samples(n_train, n_val, significance)
    if (values or "output" not in notes) and not (live and enough):
        notes |= _too_few(list(values.values()), n_train, n_val, significance)
    for note in notes.values():
        warnings.warn(note, stacklevel=2)
    report = TwoSampleReport(
        compared,
        n_train,
        n_val,
        significance,
        by_chance.double() / max(1, live),
        notes,
        units={
            name: _beside_chance(_values(units[0][name], units[1][name]), n_train, divisions, significance)[0]
            for name in units[0]
            if name in units[1]
        },
    )
    first, second = sure
    if first is None or second is None or not enough:
        return report
    area, gap, p_value = compare_confidences(first, second)
    return replace(report, confidence_auc=area, confidence_gap=gap, confidence_p_value=p_value)


def check_groups(train_inputs: Any, val_inputs: Any) -> None:
    """Raises ValueError for what cannot be compared."""
    check_inputs(train_inputs, "train_inputs")
    check_inputs(val_inputs, "val_inputs")
    if isinstance(train_inputs, Tensor) and isinstance(val_inputs, Tensor):
        shapes = tuple(train_inputs.shape[1:]), tuple(val_inputs.shape[1:])
        if shapes[0] != shapes[1]:
            raise ValueError(
                "Parameters `train_inputs` and `val_inputs` should hold images of the same shape. "
                f"Found {shapes[0]} and {shapes[1]}."
            )


def _too_few(layers: list[Tensor], n_train: int, n_val: int, significance: float) -> dict[str, str]:
    """What is missing, of layers' values `(F, n_train + n_val)` that cannot tell, and how many images are enough."""
    if not enough_samples(n_train, n_val, significance):
        note = (
            f"Parameters `train_inputs` and `val_inputs` hold {n_train} and {n_val} images, too few for a rank test at "
            f"`significance = {significance}`: give at least {samples_needed(significance)} of each."
        )
        return {"few images": note}
    values = torch.cat([own[own.isfinite().all(1)] for own in layers]) if layers else torch.zeros(0, 1)
    if not len(values):
        return {}
    needed = samples_to_be_live(values)
    note = (
        f"None of the {len(values)} filters responds to enough of the {n_train} training and {n_val} validation images "
        "to be judged: "
    )
    return {"none live": note + ("name other `layers`." if needed is None else f"give at least {needed} of each.")}


def _largest(maps: Tensor) -> Tensor:
    """The largest value of each map: `(n, F, ...)` gives `(n, F)`."""
    return maps.flatten(2).amax(2) if maps.ndim > 2 else maps


def _values(layer: LayerMaps, other: LayerMaps) -> Tensor:
    """The values of a layer's filters `(F, n + m)` on the CPU."""
    return torch.cat([layer.maps.T, other.maps.T], 1).cpu()


def _compare(values: Tensor, n_train: int) -> LayerComparison:
    """The filters of a layer from their values on all images `(F, n + m)`, the training images first."""
    live = live_filters(values, n_train)
    area, p_value = rank_test(values[:, :n_train], values[:, n_train:])
    area[~live], p_value[~live] = 0.5, 1.0
    return LayerComparison(live, area, p_value)


def _beside_chance(
    values: Tensor, n_train: int, divisions: Tensor, significance: float
) -> tuple[LayerComparison, Tensor]:
    """As `_compare`, with the p-value of the share; and how many filters each random division finds `(999,)`."""
    layer = _compare(values, n_train)
    _, p_values = divided_test(values[layer.live], divisions)
    by_chance = (p_values <= significance).sum(0)
    told = int((layer.live & (layer.p_value <= significance)).sum())
    return replace(layer, share_p_value=share_of_chance(told, by_chance)), by_chance
