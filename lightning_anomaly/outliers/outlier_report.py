"""The result of a search for outliers: scores, reasons, and the images that are significant."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from lightning_anomaly._internal.checks import check_bool, check_integer, check_one_of
from lightning_anomaly._internal.tabular import Tabular, listed
from lightning_anomaly.outliers.duplicates import DuplicateGroup
from lightning_anomaly.outliers.outlier_page import OutlierLists
from lightning_anomaly.pages.gallery import Tab, gallery_page, write_csv
from lightning_anomaly.pages.html_page import BrowserFile, write_page
from lightning_anomaly.scores.views import ODD_VIEWS, SampleView, ordered_reasons, scores_by_view

TOP = 100  # images in the lists of look and content, by default
_ROUNDING = 1e-12  # relative difference of p-values that are ties


@dataclass(frozen=True, eq=False, repr=False)
class OutlierReport(Tabular):
    """Outlier scores of all images of a data set. `print(report)` gives a table.

    Attributes:
        scores: Outlier scores by position in the data set, the larger of an image's look and content scores, in nats
            `(N,)`; infinite for images that cannot be read or give NaN or infinite values.
        p_values: See `OutlierDetector.p_values` `(N,)`; NaN where the score is infinite, and without a reference.
        views: Scores and reasons of the views that there are, "look", "content" and "label".
        view_p_values: P-values of their scores.
        n_reference: Number of reference images that can be read and give finite values.
        n_calibration: Number of reference images that calibrate p-values; 0 without a reference.
        false_discovery_rate: Accepted share of ordinary images among the significant ones; for another one, use
            `dataclasses.replace(report, false_discovery_rate=0.05)`.
        pictures: Small copies of images in the lists that have no files, uint8 `(H, W, C)`, by position.
        notes: Sentences about what was not used, and why.
        names: The file of each image, if the data set names its files, as torchvision's `ImageFolder` does.
        folder: What these files are in.
        unreadable: Error messages of the images that cannot be read, by position.
        duplicates: Groups of identical images, then of near duplicates, also with images of the reference.
        duplicates_left_out: Why near duplicates may be missing; empty if none should be.
        skipped: Files of a folder that are no images, and why, see `FolderImages`.
        faults: Positions of the images that are dark, tiny, narrow and the like, whatever the others are, by fault;
            empty unless a `FolderImages` was searched.
        whites: What is white in files of more than 8 bits, see `FolderImages`.
        feature_layer: What the content scores compare, in words; empty without them.
        splits: The part of the data that each image is of, such as train or val, see `FolderImages`; None if unknown.
        labels: The class of each image, None if that is unknown; None without any.
        looks_like: The class that each image looks like most; None without label scores.
        nearest: Positions of the three images of its class, and of that it looks like, whose features are nearest to
            those of each image that looks like another class `(N, 2, 3)`; -1 for none. None with a reference.
        reviewed: Names of the images that a reader found right before, see `find_outliers`: they are in a list of their
            own only.
    """

    scores: Tensor
    p_values: Tensor
    views: Mapping[str, SampleView]
    view_p_values: Mapping[str, Tensor]
    n_reference: int
    n_calibration: int
    false_discovery_rate: float = 0.1
    pictures: Mapping[int, Tensor] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    names: Sequence[str] | None = None
    folder: str = ""
    unreadable: Mapping[int, str] = field(default_factory=dict)
    duplicates: Sequence[DuplicateGroup] = ()
    duplicates_left_out: str = ""
    skipped: Mapping[str, str] = field(default_factory=dict)
    faults: Mapping[str, Sequence[int]] = field(default_factory=dict)
    whites: Mapping[str, float] = field(default_factory=dict)
    feature_layer: str = ""
    splits: Sequence[str] | None = None
    labels: Sequence[str | None] | None = None
    looks_like: Sequence[str] | None = None
    nearest: Tensor | None = None
    reviewed: Collection[str] = frozenset()

    @property
    def look_scores(self) -> Tensor:
        """How unlike the others each image looks, by its pixels, in nats `(N,)`; NaN without such a view."""
        return scores_by_view("look", self.views, len(self.scores))

    @property
    def content_scores(self) -> Tensor:
        """How unlike the others is what the network sees in each image, in nats `(N,)`; NaN without such a view."""
        return scores_by_view("content", self.views, len(self.scores))

    @property
    def label_scores(self) -> Tensor:
        """How much each image looks like another class than its own, in nats `(N,)`.

        NaN for images whose class is unknown or has only one or two images among those of the fit, and for all if
        labels tell nothing.
        """
        return scores_by_view("label", self.views, len(self.scores))

    def outlier_reasons(self, position: int) -> dict[str, str]:
        """Describe what is unusual about an image's look, content and label, the larger score first.

        Only scores above 95% of those of ordinary images get a reason, or above 80% if a single property of the pixels
        is clearly odd: what is wrong with many images looks ordinary.

        Raises:
            ValueError: If `position` is not in the data set.
        """
        position = check_integer("position", position, 0, len(self.scores) - 1)
        if position in self.unreadable:
            return {"file": f"cannot be read: {self.unreadable[position]}"}
        return ordered_reasons(self.views, position) | self._reasons_of_filed_twice.get(position, {})

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
        scores = self.scores if check_one_of("by", by, ("all", *self.views)) == "all" else self.views[by].scores
        order = scores.argsort(descending=True, stable=True)
        positions: list[int] = order[scores[order].isfinite()][:k].tolist()
        return positions

    @property
    def filed_elsewhere(self) -> list[int]:
        """Positions of the images that look like another class, by descending label score.

        It does not depend on how many others do so: see `docs/results/labels.md`.
        """
        told = self.views["label"].reasons if "label" in self.views else ()
        return [place for place in self.top(len(self.scores), by="label") if told[place]] if told else []

    @property
    def perhaps_elsewhere(self) -> list[int]:
        """Positions of the other images that look a little more like another class, by descending label score."""
        if self.labels is None or self.looks_like is None or "label" not in self.views:
            return []
        told, pairs = self.views["label"].reasons, [*zip(self.labels, self.looks_like, strict=True)]
        ranked = self.top(len(self.scores), by="label")
        return [place for place in ranked if not told[place] and pairs[place][0] != pairs[place][1]]

    @cached_property
    def filed_twice(self) -> list[DuplicateGroup]:
        """The groups of identical images that are in several classes, where labels tell something."""
        groups = self.duplicates if "label" in self.views else []
        return [group for group in groups if group.identical and len(self._labels_in(group)) > 1]

    @cached_property
    def leaks(self) -> list[DuplicateGroup]:
        """The groups of duplicates that are in several parts of the data, such as train and val."""
        return [group for group in self.duplicates if len(self.splits_in(group)) > 1]

    def _labels_in(self, group: DuplicateGroup) -> list[str]:
        return sorted({label for place in group.positions if self.labels and (label := self.labels[place])})

    def splits_in(self, group: DuplicateGroup) -> list[str]:
        """Return the parts of the data that a group of duplicates is in."""
        return sorted({self.splits[place] for place in group.positions} - {""}) if self.splits else []

    @cached_property
    def _reasons_of_filed_twice(self) -> dict[int, dict[str, str]]:
        """The reason for each image that is identical to one of another class, by position."""
        reasons = dict[int, dict[str, str]]()
        for group in self.filed_twice:
            labels = self._labels_in(group)
            for place in group.positions:
                if self.labels and (own := self.labels[place]):
                    others = listed([label for label in labels if label != own])
                    reasons[place] = {"label": f"filed under {own}, also under {others}"}
        return reasons

    def _reasons(self, position: int) -> str:
        return "; ".join(f"{view}: {reason}" for view, reason in self.outlier_reasons(position).items())

    def image_name(self, position: int) -> str:
        """Return the file of an image, or else what tells it from the others."""
        return f"image {position}" if self.names is None else self.names[position]

    def tabs(self, top: int = TOP) -> list[Tab]:
        """Return what is to be looked at as lists.

        They are "look" and "content" with up to `top` images, "label" for images that look like another class,
        "perhaps" with up to `top` others that do so a little, "twice" for identical images in several classes,
        "identical" and "near" for duplicates, "faults", "unreadable", "skipped", and "right" for images that were
        `reviewed`. Copies that are in a list of scores count as one image.
        `save_html` and `save_csv` write them.
        """
        return OutlierLists(self).tabs(top)

    def save_csv(self, path: str | Path, top: int = TOP, *, every: bool = False) -> None:
        """Write the lists of `tabs` as a CSV file, each image once.

        Columns are path (absolute), name, class, list, verdict, position, score (of the first list), looks_like,
        move_to (where the file would be in that class), reason and each of the scores, such as look_score. The page
        fills the verdict: "ticked", "move" or "right". Texts that a spreadsheet would take for formulas begin with
        `./`.

        Args:
            path: Where to write it; missing folders are created.
            top: Number of images in the lists of look and content.
            every: Whether to write the images that are in no list, too.
        """
        check_bool("every", every)
        tabs = self.tabs(check_integer("top", top, 1))
        if every:
            others = {*range(len(self.scores))}.difference(row.position for tab in tabs for row in tab.rows)
            row = OutlierLists(self).row
            tabs.append(Tab("", "", "", [row(place, reason=self._reasons(place)) for place in sorted(others)]))
        write_csv(path, tabs)

    def save_html(self, path: str | Path, title: str | None = None, top: int = TOP) -> BrowserFile:
        """Write the lists of `tabs` as a page to work with, a single HTML file that needs no server and no network.

        An opened image is read from its file while the page and the images stay where they are. The lists with a
        reader's ticks, which the browser remembers, can be saved in the format of `save_csv`.

        Args:
            path: Path of the file; missing folders are created.
            title: The heading, by default with the name of the folder.
            top: Number of images in the lists of look and content.

        Returns:
            The file; a notebook shows the page.
        """
        tabs = self.tabs(check_integer("top", top, 1))
        OutlierLists(self).draw_rows(tabs, top)
        counts = [f"{tab.count:,} {tab.title.lower()}" for tab in tabs if tab.rows and tab.name not in ODD_VIEWS]
        odd = "the oddest come first in look and content" if self.views else ""
        known = "; ".join(filter(None, [", ".join(counts), odd])) or "nothing to look at"
        lead = [
            f"{_images(len(self.scores))}: {known}.",
            *self._cautions(),
            *(note for name, note in self.notes.items() if name == "labels"),
            "Tick what should go, in any list; save the lists, and run the lines under Ticked.",
            *self._limits(Path(path)),
        ]
        name = os.path.basename(os.path.abspath(self.folder)) if self.folder else ""
        title = title or (f"{name}: images that do not belong" if name else "Images that do not belong")
        details = [sentence for sentence in self._sentences() if sentence not in lead]
        return write_page(path, gallery_page(title, lead, tabs, Path(path).parent, details))

    def _limits(self, page: Path) -> list[str]:
        """Say what a reader of a page cannot do with the files of the images."""
        folder = Path(self.folder or ".").absolute()
        if self.names is None or not folder.is_dir():
            return []
        limits = (
            [] if os.access(folder, os.W_OK) else ["The folder cannot be written to, so its files cannot be moved."]
        )
        if folder.anchor != page.absolute().anchor:
            limits.append("This page is on another drive than the images, so it cannot open them at full size.")
        return limits

    def _table_rows(self) -> list[tuple[str, ...]]:
        top = self.top(10)
        columns = {"position": [str(position) for position in top]}
        if self.names is not None:
            columns["name"] = [self.image_name(position) for position in top]
        columns["score"] = [f"{self.scores[position]:.1f}" for position in top]
        if self.n_calibration:
            columns["p-value"] = [f"{self.p_values[position]:.4f}" for position in top]
        columns["reason"] = [self._reasons(position).partition("; ")[0] for position in top]
        return [tuple(columns), *zip(*columns.values(), strict=True)]

    def _sentences(self) -> list[str]:
        """Say what is significant, and what is in the other lists; notes tell of unreadable images."""
        sentences = [self._headline()]
        if self.feature_layer:
            sentences.append(f"Content scores: {self.feature_layer}.")
        for tab in self.tabs(1):
            if tab.rows and tab.name not in (*ODD_VIEWS, "perhaps", "unreadable"):
                named = [f"{row.name} ({row.reason})" for row in tab.rows if row.reason]
                sentences.append(f"{tab.title}: {tab.count:,}." + (f" {listed(named)}." if named else ""))
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


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"
