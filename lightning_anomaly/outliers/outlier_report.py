"""The result of a search for outliers: scores, reasons, and the images that are significant."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_anomaly._internal.checks import check_bool, check_integer, check_one_of
from lightning_anomaly._internal.tabular import Tabular, listed
from lightning_anomaly.outliers.duplicates import DuplicateGroup
from lightning_anomaly.outliers.outlier_page import OutlierLists
from lightning_anomaly.pages.gallery import SampleList, gallery_page, mark_right, write_csv
from lightning_anomaly.pages.html_page import BrowserFile, write_page
from lightning_anomaly.scores.sample_table import (
    as_column,
    column_tensor,
    first_by,
    reasons_in_line,
    sample_reasons,
    sample_table,
    views_of,
)
from lightning_anomaly.scores.views import ODD_VIEWS

if TYPE_CHECKING:
    from pandas import DataFrame

TOP = 100  # images in the lists of look and content, by default
_ROUNDING = 1e-12  # relative difference of p-values that are ties


@dataclass(frozen=True, eq=False, repr=False)
class OutlierReport(Tabular):
    """Outlier scores of all images of a data set. `print(report)` gives a table.

    Attributes:
        samples: What is known of each image, in a row of its position in the data set: see
            `docs/api/reports.md`.
        n_reference: Number of reference images that can be read and give finite values.
        n_calibration: Number of reference images that calibrate p-values; 0 without a reference.
        false_discovery_rate: Accepted share of ordinary images among the significant ones; for another one, use
            `dataclasses.replace(report, false_discovery_rate=0.05)`.
        pictures: Small copies of images in the lists that have no files, uint8 `(H, W, C)`, by position.
        notes: Sentences about what was not used, and why.
        folder: What the files are in.
        duplicates: Groups of identical images, then of near duplicates, also with images of the reference.
        duplicates_left_out: Why near duplicates may be missing; empty if none should be.
        skipped: Files of a folder that are no images, and why (`error`), in columns of the same table.
        whites: What is white in files of more than 8 bits, see `FolderImages`.
        feature_layer: What the content scores compare, in words; empty without them.
    """

    samples: DataFrame
    n_reference: int
    n_calibration: int
    false_discovery_rate: float = 0.1
    pictures: Mapping[int, Tensor] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    folder: str = ""
    duplicates: Sequence[DuplicateGroup] = ()
    duplicates_left_out: str = ""
    skipped: DataFrame = field(default_factory=lambda: sample_table({}, ()))
    whites: Mapping[str, float] = field(default_factory=dict)
    feature_layer: str = ""

    @cached_property
    def scores(self) -> Tensor:
        """Outlier scores, the larger of the look and content scores, in nats `(N,)`.

        They are infinite for images that cannot be read or give NaN or infinite values.
        """
        return column_tensor(self.samples, "score")

    @property
    def p_values(self) -> Tensor:
        """See `OutlierDetector.p_values` `(N,)`; NaN where the score is infinite, and without a reference."""
        return column_tensor(self.samples, "p_value")

    @property
    def look_scores(self) -> Tensor:
        """How unlike the others each image looks, by its pixels, in nats `(N,)`; NaN without such a view."""
        return column_tensor(self.samples, "look_score")

    @property
    def content_scores(self) -> Tensor:
        """How unlike the others is what the network sees in each image, in nats `(N,)`; NaN without such a view."""
        return column_tensor(self.samples, "content_score")

    @property
    def label_scores(self) -> Tensor:
        """How much each image looks like another class than its own, in nats `(N,)`.

        NaN for images whose class is unknown or has only one or two images among those of the fit, and for all if
        labels tell nothing.
        """
        return column_tensor(self.samples, "label_score")

    def outlier_reasons(self, position: int) -> dict[str, str]:
        """Describe what is unusual about an image's look, content and label, the larger score first.

        Only scores above 95% of those of ordinary images get a reason, or above 80% if a single property of the pixels
        is clearly odd: what is wrong with many images looks ordinary.

        Raises:
            ValueError: If `position` is not in the data set.
        """
        position = check_integer("position", position, 0, len(self.samples) - 1)
        return sample_reasons(dict(self.samples.loc[position]))

    @cached_property
    def significant(self) -> list[int]:
        """Positions of the significant images by descending score.

        By the procedure of Benjamini and Hochberg ("Controlling the false discovery rate", 1995), the expected share of
        ordinary images among them is at most `false_discovery_rate` if the reference holds no outliers.
        """
        ordered = self.p_values[self.p_values.isfinite()].sort().values
        ranks = torch.arange(1, len(ordered) + 1, dtype=torch.float64, device=ordered.device)
        below = (ordered <= self.false_discovery_rate * ranks / len(ordered) * (1 + _ROUNDING)).nonzero()
        chosen = (self.p_values <= ordered[below[-1, 0]]).tolist() if len(below) else ()
        return [place for place in self.top(len(chosen)) if chosen[place]] if chosen else []

    @property
    def unusable(self) -> list[int]:
        """Positions of the images that cannot be read or give NaN or infinite values."""
        positions: list[int] = self.scores.isinf().nonzero()[:, 0].tolist()
        return positions

    def top(self, k: int, by: str = "all") -> list[int]:
        """Return the positions of the k images with the largest finite scores, by descending score.

        Args:
            k: Number of images.
            by: "look", "content", or "all" for the larger of the two; or "label".

        Raises:
            ValueError: If `k` is not a positive integer, or `by` is not allowed.
        """
        k = check_integer("k", k, 1)
        check_one_of("by", by, ("all", *views_of(self.samples)))
        return first_by(self.samples, "score" if by == "all" else f"{by}_score")[:k]

    @property
    def filed_elsewhere(self) -> list[int]:
        """Positions of the images that look like another class, by descending label score.

        It does not depend on how many others do so: see `docs/results/labels.md`.
        """
        return [place for place, reason in self._label_reasons if reason]

    @property
    def perhaps_elsewhere(self) -> list[int]:
        """Positions of the other images that look a little more like another class, by descending label score."""
        other = self.samples["looks_like"] != self.samples["class"] if "looks_like" in self.samples else {}
        return [place for place, reason in self._label_reasons if not reason and other[place]]

    @property
    def _label_reasons(self) -> list[tuple[int, str]]:
        """The positions and reasons of images with a label score, by descending score."""
        if "label_score" not in self.samples:
            return []
        ranked = first_by(self.samples, "label_score")
        return [*zip(ranked, self.samples["label_reason"].loc[ranked], strict=True)]

    @cached_property
    def filed_twice(self) -> list[DuplicateGroup]:
        """The groups of identical images that are in several classes, where labels tell something."""
        twice = self.samples["also_in"] != "" if "also_in" in self.samples else {}
        return [group for group in self.duplicates if group.identical and any(twice.get(p) for p in group.positions)]

    @cached_property
    def leaks(self) -> list[DuplicateGroup]:
        """The groups of duplicates that are in several parts of the data, such as train and val."""
        return [group for group in self.duplicates if len(self.splits_in(group)) > 1]

    @property
    def labels(self) -> list[str | None] | None:
        """The class of each image, None if that is unknown; None without any."""
        labels = [label or None for label in self.samples["class"]]
        return labels if any(labels) else None

    def with_reviewed(self, names: Collection[str]) -> OutlierReport:
        """Return the report with the verdict "right" on images and files of these names, see `read_reviewed`."""
        return replace(self, samples=mark_right(self.samples, names), skipped=mark_right(self.skipped, names))

    def splits_in(self, group: DuplicateGroup) -> list[str]:
        """Return the parts of the data that a group of duplicates is in."""
        return sorted({*self.samples["split"].loc[group.positions]} - {""}) if "split" in self.samples else []

    def lists(self, top: int = TOP) -> list[SampleList]:
        """Return what is to be looked at as lists.

        They are, in this order, "label" for images that look like another class, "twice" for identical images in
        several classes, "identical" and "near" for duplicates, "unreadable", "content" and "look" with up to `top`
        images, "faults", "perhaps" with up to `top` others that look a little like another class, "skipped", and
        "right" for images that a reader found right. In the lists of scores, copies count as one image for `top`.
        `save_html` and `save_csv` write them.
        """
        return OutlierLists(self).lists(top)

    def save_csv(self, path: str | Path, top: int = TOP, *, every: bool = False) -> None:
        """Write the `lists` as a CSV file, each image once.

        Columns are those of `samples`, and list, score (of the first list) and reason. The page fills the verdict:
        "ticked", "move" or "right". Texts that a spreadsheet would take for formulas begin with `./`.

        Args:
            path: Where to write it; missing folders are created.
            top: Number of images in the lists of look and content.
            every: Whether to write the images that are in no list, too.
        """
        check_bool("every", every)
        lists = self.lists(check_integer("top", top, 1))
        write_csv(path, [*lists, OutlierLists(self).all_others(lists)] if every else lists)

    def save_html(self, path: str | Path, title: str | None = None, top: int = TOP) -> BrowserFile:
        """Write the `lists` as a page to work with, a single HTML file that needs no server and no network.

        An opened image is read from its file while the page and the images stay where they are. The lists with a
        reader's ticks, which the browser remembers, can be saved in the format of `save_csv`.

        Args:
            path: Path of the file; missing folders are created.
            title: The heading, by default with the name of the folder.
            top: Number of images in the lists of look and content.

        Returns:
            The file; a notebook shows the page.
        """
        drawn = OutlierLists(self)
        lists = drawn.lists(check_integer("top", top, 1))
        counts = [
            f"{part.count:,} {part.title.lower()}" for part in lists if part.entries and part.name not in ODD_VIEWS
        ]
        odd = "the oddest come first in look and content" if views_of(self.samples) else ""
        known = "; ".join(filter(None, [", ".join(counts), odd])) or "nothing to look at"
        lead = [
            f"{_images(len(self.scores))}: {known}.",
            *self._cautions(),
            *(note for name, note in self.notes.items() if name == "labels"),
            "Tick what should go, in any list; save the lists, and run the line under Ticked.",
            *self._limits(Path(path)),
        ]
        name = os.path.basename(os.path.abspath(self.folder)) if self.folder else ""
        title = title or name or "Images that do not belong"
        details = [sentence for sentence in self._sentences() if sentence not in lead]
        lists = drawn.draw_pictures(lists, top)
        return write_page(path, gallery_page(title, lead, lists, Path(path).parent, details))

    def _limits(self, page: Path) -> list[str]:
        """Say what a reader of a page cannot do with the files of the images."""
        folder = Path(self.folder or ".").absolute()
        if not self._has_files or not folder.is_dir():
            return []
        limits = (
            [] if os.access(folder, os.W_OK) else ["The folder cannot be written to, so its files cannot be moved."]
        )
        if folder.anchor != page.absolute().anchor:
            limits.append("This page is on another drive than the images, so it cannot open them at full size.")
        return limits

    @property
    def _has_files(self) -> bool:
        return bool((self.samples["path"] != "").any())

    def _table_rows(self) -> list[tuple[str, ...]]:
        top = self.samples.loc[self.top(10)]
        columns = {"position": [*map(str, top.index)]}
        if self._has_files:
            columns["name"] = [*top["name"]]
        columns["score"] = [f"{score:.1f}" for score in top["score"]]
        if self.n_calibration:
            columns["p-value"] = [f"{p_value:.4f}" for p_value in top["p_value"]]
        columns["reason"] = [reasons_in_line(row).partition("; ")[0] for row in top.to_dict("records")]
        return [tuple(columns), *zip(*columns.values(), strict=True)]

    def _sentences(self) -> list[str]:
        """Say what is significant, and what is in the other lists; notes tell of unreadable images."""
        sentences = [self._headline()]
        if self.feature_layer:
            sentences.append(f"Content scores: {self.feature_layer}.")
        for part in self.lists(1):
            if part.entries and part.name not in (*ODD_VIEWS, "perhaps", "unreadable"):
                rows = zip(part.entries, part.rows, strict=True)
                named = [f"{row['name']} ({entry.reason})" for entry, (_, row) in rows if entry.reason]
                sentences.append(f"{part.title}: {part.count:,}." + (f" {listed(named)}." if named else ""))
        return [*sentences, *self._cautions(), *(f"note: {note}" for note in self.notes.values())]

    def _cautions(self) -> list[str]:
        """Say what nobody should miss: leaks, and what was not sought."""
        splits = sorted({name for group in self.leaks for name in self.splits_in(group)})
        count = "1 set of copies lies" if len(self.leaks) == 1 else f"{len(self.leaks):,} sets of copies lie"
        leak = f"A leak: {count} in more than one of {' and '.join(splits)}." if splits else ""
        return [sentence for sentence in (leak, self.duplicates_left_out) if sentence]

    def _headline(self) -> str:
        count, chosen, known = len(self.scores), len(self.significant), self.n_calibration
        if not self.scores.isfinite().any():
            return "No image has a score."
        if not known:
            return (
                "Without a reference there are no p-values, and no image is significant: look at the largest scores, "
                "or pass trusted images as `reference`."
            )
        subject = f"{_images(chosen)} of {count:,}" if chosen else f"None of {count:,} images"
        return (
            f"{subject} {'are' if chosen > 1 else 'is'} significant at a false discovery rate of "
            f"{100 * self.false_discovery_rate:g}%. With {known:,} calibration images, half of the reference, p-values "
            f"are at least 1 / {known + 1:,}."
        )


def mark_copies(samples: DataFrame, groups: Sequence[DuplicateGroup]) -> DataFrame:
    """Add what each image is a copy of, and where labels tell something, the other classes that it is filed under."""
    names, copies, others = samples["name"], dict[int, str](), dict[int, str]()
    for group in groups:
        known = [name if isinstance(name, str) else f"image {name} of the reference" for name in group.reference[:1]]
        first = known[0] if known else names[group.positions[0]]
        copies |= {place: first for place in group.positions[not known :] if place not in copies}
        filed = {place: label for place in group.positions if (label := samples["class"][place])}
        labels = sorted({*filed.values()})
        if group.identical and len(labels) > 1 and "label_score" in samples:
            others |= {place: listed([name for name in labels if name != own]) for place, own in filed.items()}
    columns = {"copy_of": copies} | ({"also_in": others} if others else {})
    return samples.assign(
        **{name: as_column(name, [found.get(p, "") for p in samples.index]) for name, found in columns.items()}
    )


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"
