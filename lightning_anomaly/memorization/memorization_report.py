"""What a comparison of training with validation images found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_anomaly._internal.tabular import Tabular, listed
from lightning_anomaly.memorization.label_doubts import LabelMargins
from lightning_anomaly.memorization.ranks import SIGNIFICANCE, permutation_p_value
from lightning_anomaly.pages.gallery import Entry, SampleList, gallery_page, write_csv
from lightning_anomaly.pages.html_page import data_uri, write_page
from lightning_anomaly.scores.sample_table import first_by, sample_table

if TYPE_CHECKING:
    from pandas import DataFrame

SHOWN = 64  # images on the page


@dataclass(frozen=True, eq=False)
class LayerComparison:
    """The test results of one layer's filters; tensors are on the CPU.

    Attributes:
        tested: Whether a filter is tested `(F,)`: its values are finite, and at least five values other than the most
            common one (mostly 0) are expected in the smaller group.
        auc: Probability that a training image has a larger value than a validation image `(F,)`, ties counted half.
        p_value: P-value of the rank test `(F,)`; 1 for a filter that is not tested.
        share_p_value: How often random divisions of the same images give, in any of the layers compared, areas that
            are as far from 0.5, by what is usual for that layer.
    """

    tested: Tensor
    auc: Tensor
    p_value: Tensor
    share_p_value: float = 1.0

    @property
    def significant(self) -> Tensor:
        """Whether each filter distinguishes the images `(F,)`: its p-value is at most 1%."""
        return self.p_value <= SIGNIFICANCE


@dataclass(frozen=True, eq=False, repr=False)
class MemorizationReport(Tabular):
    """How differently a network treats training and validation images. `print(report)` gives a table.

    The confidence is the largest softmax probability, and the expected error 1 less that. A filter distinguishes
    the images if its p-value is at most 1%.

    Attributes:
        n_train: Number of training images.
        n_val: Number of validation images.
        layers: `{layer: LayerComparison}` in the network's order; empty unless filters were compared.
        chance: The `fraction` for each of 999 random divisions of the same images into two groups `(999,)`, or empty.
        notes: Sentences on what could not be compared and why.
        auc: Probability that the confidence is larger on a training image than on a validation image, ties
            counted half; like the next three, NaN if the output could not be compared.
        gap: Mean confidence on training images less that on validation images.
        error_ratio: Mean expected error on validation images, divided by that on training images.
        p_value: P-value of the rank test of the confidences.
        train_errors: Expected error on each training image `(n_train,)`; empty if not compared.
        val_errors: Expected error on each validation image `(n_val,)`; empty if not compared.
        label_margins: How much the network prefers other classes to the labels of the training images; None without
            labels.
        samples: What is known of the training images of a fit whose labels were judged, in a row of their position in
            the training set: see `docs/api/reports.md`; empty without labels.
        pictures: Small copies of the first images in `label_doubts`, uint8 `(n, H, W, C)`, after a fit; None without
            any.
    """

    n_train: int
    n_val: int
    layers: Mapping[str, LayerComparison] = field(default_factory=dict)
    chance: Tensor = field(default_factory=lambda: torch.zeros(0, device="cpu"))
    notes: Mapping[str, str] = field(default_factory=dict)
    auc: float = math.nan
    gap: float = math.nan
    error_ratio: float = math.nan
    p_value: float = math.nan
    train_errors: Tensor = field(default_factory=lambda: torch.zeros(0, device="cpu"))
    val_errors: Tensor = field(default_factory=lambda: torch.zeros(0, device="cpu"))
    label_margins: LabelMargins | None = None
    samples: DataFrame = field(default_factory=lambda: sample_table({"doubt": (), "in_doubt": ()}, ()))
    pictures: Tensor | None = None

    @property
    def label_doubts(self) -> dict[int, float]:
        """`{position in the training set: score}`, the most doubtful label first; empty without labels or a fit.

        The score tells how much the network prefers another class: the mean margins of the logits and the left-out
        margins, each divided by its standard deviation, added.
        """
        order = first_by(self.samples, "doubt")
        return dict(zip(order, self.samples["doubt"].loc[order].tolist(), strict=True))

    @property
    def doubtful_labels(self) -> list[int] | None:
        """The first positions in `label_doubts`, of as many labels as are wrong, by an estimate; None without one.

        Wrong labels of images that are hard for the network are not counted.
        """
        in_doubt = self.samples["in_doubt"].to_dict()
        measured = bool(in_doubt) and None not in in_doubt.values()
        return [position for position in self.label_doubts if in_doubt[position]] if measured else None

    @property
    def compares_output(self) -> bool:
        """Whether the output could be compared; if not, a note gives the reason."""
        return bool(len(self.train_errors))

    @property
    def compares_filters(self) -> bool:
        """Whether any filter is tested; if not, a note gives the reason."""
        return any(layer.tested.any() for layer in self.layers.values())

    @property
    def shares(self) -> dict[str, float]:
        """`{layer: share of its tested filters that distinguish the images}`, without layers that have none tested."""
        tested = {name: layer for name, layer in self.layers.items() if layer.tested.any()}
        return {name: int(layer.significant.sum()) / int(layer.tested.sum()) for name, layer in tested.items()}

    @property
    def significant_layers(self) -> dict[str, float]:
        """The `shares` of the layers with a `share_p_value` of at most 1%, the largest share first.

        Chance alone gives any such layer with a probability of at most 1%.
        """
        shares = sorted(self.shares.items(), key=lambda pair: -pair[1])
        return {name: share for name, share in shares if share > 0 and self.layers[name].share_p_value <= SIGNIFICANCE}

    @property
    def where(self) -> str:
        """The `significant_layers` in words."""
        if shares := self.significant_layers:
            names = [f"{repr(name) if name else 'the model'} ({100 * share:.0f}%)" for name, share in shares.items()]
            return f"in filters of {', '.join(names)}"
        output = "in the output, and in no layer" if self.layers else "in the output"
        return output if self.p_value <= SIGNIFICANCE else "nowhere"

    @property
    def filters(self) -> dict[str, list[int]]:
        """`{layer: [filter, ...]}` of the filters that distinguish the images, without layers that have none."""
        significant = {name: layer.significant for name, layer in self.layers.items()}
        return {name: filters.nonzero()[:, 0].tolist() for name, filters in significant.items() if filters.any()}

    @property
    def count(self) -> int:
        """Number of filters that distinguish the images."""
        return sum(map(len, self.filters.values()))

    @property
    def fraction(self) -> float:
        """`count` as a fraction of the tested filters; NaN if there are none."""
        n_tested = sum(int(layer.tested.sum()) for layer in self.layers.values())
        return self.count / n_tested if n_tested else math.nan

    @property
    def filter_p_value(self) -> float:
        """How often a random division of the same images gives at least as large a `fraction`, 0.001 to 1, or NaN.

        This permutation p-value is valid however much the filters depend on each other. But images must be independent:
        for frames of one film or slices of one patient it is too small. With few filters, or with filters that all
        respond alike, it is never much smaller than 1%, as chance finds all of them that often.
        """
        return permutation_p_value(self.fraction, self.chance) if self.compares_filters else math.nan

    def metrics(self) -> dict[str, float]:
        """Compute the logged values of what was compared; the share of a layer is named `layer/NAME`."""
        names = list[str]()
        if self.compares_output:
            names += ["auc", "gap", "error_ratio", "p_value"]
        if self.compares_filters:
            names += ["count", "fraction", "filter_p_value"]
        values = {name: float(getattr(self, name)) for name in names}
        values |= {f"layer/{name}": share for name, share in self.shares.items()}
        if (in_doubt := self.doubtful_labels) is not None:
            values["labels_in_doubt"] = len(in_doubt) / len(self.samples)
        return values

    def save_html(self, path: str | Path) -> None:
        """Write a page where a reader ticks wrong labels of training images, one file that needs no network.

        Args:
            path: Path of the file; missing folders are created.
        """
        lead = ["Tick what is mislabeled, and save the list.", f"{self._labels_sentence()}."]
        write_page(path, gallery_page("Training labels", lead, [self.label_list(SHOWN)], Path(path).parent))

    def save_csv(self, path: str | Path) -> None:
        """Write all training images by how doubtful their labels are as a CSV file, in the format of the page's.

        Args:
            path: Path of the file; missing folders are created.
        """
        write_csv(path, [self.label_list(len(self.samples))])

    def label_list(self, count: int) -> SampleList:
        """Return a list of the first images in `label_doubts`, for a page."""
        entries = [
            Entry(
                position, _reason(row), row["doubt"], "in doubt" if row["in_doubt"] else "", sure=bool(row["in_doubt"])
            )
            for position, row in self._first(count)
        ]
        sure = "About as many labels as these seem to be wrong."
        about = "By how much the network prefers another class, before it memorizes the labels."
        drawn = zip(self.label_doubts, () if self.pictures is None else self.pictures, strict=False)
        pictures = {position: data_uri(picture) for position, picture in drawn}
        return SampleList(
            "training labels", "Most doubtful", about, self.samples, entries, about_sure=sure, pictures=pictures
        )

    def _first(self, count: int) -> list[tuple[int, dict[str, Any]]]:
        """Return the positions and rows of the most doubtful images."""
        positions = first_by(self.samples, "doubt")[:count]
        return [*zip(positions, self.samples.loc[positions].to_dict("records"), strict=True)]

    def _labels_sentence(self) -> str:
        if self.doubtful_labels is None:
            return f"how many of {len(self.samples)} training labels are in doubt: not measured"
        named = [f"{row['name']} {_reason(row)}" for _, row in self._first(len(self.doubtful_labels))]
        verb = "is" if len(named) == 1 else "are"
        count = f"{len(named)} of {len(self.samples)} training labels {verb} in doubt"
        return count + (f": {listed(named, '; ')}" if named else "")

    def _table_rows(self) -> Sequence[Sequence[str]]:
        if not self.layers:
            return [("", "training", "validation"), ("images", str(self.n_train), str(self.n_val))] + [
                ("expected error", *(f"{errors.mean().item():.3f}" for errors in (self.train_errors, self.val_errors)))
            ] * self.compares_output
        rows = [("layer", "filters", "tested", "significant", "fraction", "mean area")]
        for name, layer in self.layers.items():
            tested, count, cells = int(layer.tested.sum()), int(layer.significant.sum()), ("-", "-", "-")
            if tested:
                cells = str(count), f"{count / tested:.3f}", f"{layer.auc[layer.tested].mean().item():.3f}"
            rows.append((name or "(the model)", str(len(layer.tested)), str(tested), *cells))
        return rows

    def _sentences(self) -> list[str]:
        filters = (
            f"{self.count} filters ({100 * self.fraction:.1f}% of the tested ones) differ significantly between the "
            f"{self.n_train} training and the {self.n_val} validation images; {100 * self.filter_p_value:.1f}% of "
            "random divisions of these images give as many"
        )
        output = (
            "the output is more confident on a training image than on a validation image in "
            f"{100 * self.auc:.1f}% of pairs (p = {self.p_value:.2g}), and expects "
            f"{self.error_ratio:.2f} times as many errors on validation images"
        )
        sentences = [output if self.compares_output else "the output: not measured"]
        if self.layers:
            sentences.append(filters if self.compares_filters else "the filters: not measured")
        if len(self.samples):
            sentences.append(self._labels_sentence())
        return sentences + [f"note: {note}" for note in self.notes.values()]


def _reason(row: Mapping[str, Any]) -> str:
    """Say what the network makes of a training image, by its row in the table of samples."""
    since = "" if row["since"] is None else f" (since epoch {row['since']})"
    return f"labeled {row['class']}, looks like {row['looks_like']}{since}"
