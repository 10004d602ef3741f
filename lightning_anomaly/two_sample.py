"""Which filters tell training images from validation images: a rank test for every filter, and a report."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_anomaly.capture.hooks import MapCapture
from lightning_anomaly.capture.layers import select_layers, unseen_layers
from lightning_anomaly.capture.probe import check_inputs, run, usable_layers
from lightning_anomaly.checks import check_fraction
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
    see `docs/results/two_sample.md` for where it did and where it did not.

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
        ValueError: If a layer does not exist, there are no images, they come in another way, those of one kind have
            another shape, or `significance` is not a number in (0, 1].

    Examples:
        >>> images = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> conv = nn.Conv2d(1, 1, 3)
        >>> _ = nn.init.ones_(conv.weight)
        >>> two_sample_test(conv, images[:100] + 1, images[100:]).filters
        {'': [0]}
    """
    check_fraction("significance", significance, zero=False)
    check_groups(train_inputs, val_inputs)
    watched = select_layers(model, layers)
    notes = unseen_layers(model, layers)
    taken, sizes = [], []
    for argument, given in (("train_inputs", train_inputs), ("val_inputs", val_inputs)):
        capture = MapCapture(watched, summary=_largest)
        run(model, given, capture, argument=argument)
        usable, n_samples, left_out = usable_layers(capture.maps, len(given) if isinstance(given, Tensor) else None)
        notes |= left_out
        taken.append(usable)
        sizes.append(n_samples)
    n_train, n_val = sizes
    compared: dict[str, LayerComparison] = {}
    values: dict[str, Tensor] = {}
    divisions: Tensor | None = None
    by_chance = torch.zeros(DIVISIONS, dtype=torch.int64)
    for name in [name for name in taken[0] if name in taken[1]]:
        layer, other = taken[0][name], taken[1][name]
        if layer.size != other.size:  # the largest of more values is larger
            notes[f"{name} left out"] = (
                f"Layer '{name}' is left out of the analysis: the size of its maps is {layer.size} for training images "
                f"and {other.size} for validation images."
            )
            continue
        values[name] = both = torch.cat([layer.maps.T, other.maps.T], 1).cpu()
        compared[name] = _compare(both, n_train)
        if divisions is None:
            divisions = random_divisions(n_train, n_train + n_val)
        _, p_values = divided_test(both[compared[name].live], divisions)
        by_chance += (p_values <= significance).sum(0)
        nonfinite = int((~both.isfinite().all(1)).sum())
        if nonfinite:
            notes[f"{name} nonfinite"] = (
                f"Layer '{name}': {nonfinite} of {len(both)} filters have NaN or infinite values and are not compared."
            )
    live = sum(int(layer.live.sum()) for layer in compared.values())
    if values and not (live and enough_samples(n_train, n_val, significance)):
        notes |= _too_few(torch.cat(list(values.values())), n_train, n_val, significance)
    for note in notes.values():
        warnings.warn(note, stacklevel=2)
    return TwoSampleReport(compared, n_train, n_val, significance, by_chance.double() / max(1, live), notes)


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


def _too_few(values: Tensor, n_train: int, n_val: int, significance: float) -> dict[str, str]:
    """What is missing, of values `(F, n_train + n_val)` that cannot tell, and how many images would be enough."""
    if not enough_samples(n_train, n_val, significance):
        note = (
            f"Parameters `train_inputs` and `val_inputs` hold {n_train} and {n_val} images, too few for a rank test at "
            f"`significance = {significance}`: give at least {samples_needed(significance)} of each."
        )
        return {"few images": note}
    values = values[values.isfinite().all(1)]
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


def _compare(values: Tensor, n_train: int) -> LayerComparison:
    """The filters of a layer from their values on all images `(F, n + m)`, the training images first."""
    live = live_filters(values, n_train)
    area, p_value = rank_test(values[:, :n_train], values[:, n_train:])
    area[~live], p_value[~live] = 0.5, 1.0
    return LayerComparison(live, area, p_value)
