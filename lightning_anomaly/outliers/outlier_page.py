"""The lists of a search and their pictures: what a person should look at."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lightning_anomaly._internal.tabular import listed
from lightning_anomaly.images.folder_images import read_image
from lightning_anomaly.outliers.duplicates import DuplicateGroup
from lightning_anomaly.pages.gallery import RIGHT, Row, Tab, name_in_csv
from lightning_anomaly.pages.html_page import data_uri, usual_score

# Sides of the copies on the page: of the first images of each list, of the others, and of those beside one.
_LARGE, _SMALL, _BESIDE = 512, 256, 144
_LARGE_COUNT = 24
_SCORED = {
    "look": ("Look", "Images whose pixels are unlike those of the others"),
    "content": ("Content", "Images in which the network sees something else than in the others, or of their class"),
    "label": ("Filed elsewhere", "Images that look like another class"),
    "perhaps": ("Perhaps elsewhere", "Images that look a little more like another class than like their own"),
}


class OutlierLists:
    """What makes lists of the images of an `OutlierReport`."""

    def __init__(self, report: Any) -> None:
        self._report = report
        self._usual = {view: usual_score(known.scores) for view, known in report.views.items()}
        self._significant = {*report.significant}
        # Found right before, in order.
        places = range(len(report.scores)) if report.reviewed else ()
        self._right = dict.fromkeys(p for p in places if name_in_csv(report.image_name(p)) in report.reviewed)
        # The number of the set of copies that an image is in; one that has near duplicates is in the set of these.
        self._sets = {place: number for number, group in enumerate(report.duplicates) for place in group.positions}

    def tabs(self, top: int) -> list[Tab]:
        """Return all lists, see `OutlierReport.tabs`."""
        report, lists = self._report, list[Tab]()
        ranked = {view: report.top(len(report.scores), by=view) for view in report.views}
        if "label" in ranked:
            ranked |= {"label": report.filed_elsewhere, "perhaps": report.perhaps_elsewhere}
        for name, positions in ranked.items():
            (title, about), view = _SCORED[name], "label" if name == "perhaps" else name
            about += f", the largest score first. 95% of the images have a score below {self._usual[view]:.1f}."
            most = len(positions) if name == "label" else top
            lists.append(Tab(name, title, about, self._scored_rows(positions, view, most)))
        twice = self._copy_rows(report.filed_twice, can_go=False)
        identical, near = (
            self._copy_rows([group for group in report.duplicates if group.identical == same]) for same in (True, False)
        )
        about = "One image scaled, turned or saved again, or a still scene twice."
        broken = [
            self.row(position, reason=report.outlier_reasons(position).get("file", "gives NaN or infinite values"))
            for position in report.unusable
            if position not in self._right
        ]
        right, skipped = [self.row(place, verdict=RIGHT) for place in self._right], list[Row]()
        for name, why in report.skipped.items():
            is_right = name_in_csv(name) in report.reviewed
            row = Row(name, path=self._path(name), reason=why, verdict=RIGHT if is_right else "")
            (right if is_right else skipped).append(row)
        return [
            *lists,
            Tab("twice", "In several classes", "Identical images, side by side.", twice, copies=True),
            Tab("identical", "Identical", "Images with equal pixels.", identical, copies=True),
            Tab("near", "Near duplicates", about, near, copies=True),
            self._faulty(),
            Tab("unreadable", "Cannot be read", "Images that cannot be read, or give no finite values.", broken),
            Tab("skipped", "Skipped", "Files that are no images.", skipped),
            Tab("right", "Right", "Found right in an earlier search.", right),
        ]

    def row(self, position: int, **given: Any) -> Row:
        """Return what a list says of an image."""
        report, reasons = self._report, self._report.outlier_reasons(position)
        scores = {view: known.scores[position].item() for view, known in report.views.items()}
        name, label = report.image_name(position), ("" if report.labels is None else report.labels[position]) or ""
        looks_like = report.looks_like[position] if report.looks_like and not math.isnan(scores["label"]) else ""
        return Row(
            name,
            position,
            path="" if report.names is None else self._path(name),
            label=label,
            looks_like=looks_like,
            move_to=self._path_in_class(name, label, looks_like),
            bars=[
                (view, score, self._usual[view], reasons.get(view, ""))
                for view, score in scores.items()
                if not math.isnan(score)
            ],
            **given,
        )

    def _path(self, name: str) -> str:
        return os.path.abspath(os.path.join(self._report.folder, name))

    def _path_in_class(self, name: str, label: str, other: str) -> str:
        """Return where a file would be in another class; empty if there is no such folder."""
        *folders, file = name.split(os.sep)
        own, new = label.split("/"), other.split("/")
        starts = [start for start in range(len(folders)) if folders[start : start + len(own)] == own]
        if self._report.names is None or not starts or other in ("", label):
            return ""
        before, after = folders[: starts[-1]], folders[starts[-1] + len(own) :]  # of the innermost one
        path = self._path(os.path.join(*before, *new, *after, file))
        is_here = os.path.isdir(os.path.dirname(self._path(name)))  # else the folder is on another machine
        return "" if is_here and not os.path.isdir(os.path.dirname(path)) else path

    def _scored_rows(self, ranked: Sequence[int], view: str, top: int) -> list[Row]:
        """Return the rows of up to `top` images, each followed by its copies among them."""
        report, known, sets, rows = self._report, self._report.views[view], dict[int, list[int]](), list[Row]()
        for position in ranked:
            key = self._sets.get(position, -1 - position)
            if len(sets) == top and key not in sets:
                break
            if position not in self._right:
                sets.setdefault(key, []).append(position)
        for number, copies in enumerate(sets.values()):
            for position in copies:
                note, group = "", number if len(copies) > 1 else None
                if report.n_calibration:
                    note = f"p-value {report.view_p_values[view][position].item():.2g}"
                    note += ", significant" if position in self._significant else ""
                score, reason = known.scores[position].item(), known.reasons[position]
                rows.append(self.row(position, score=score, reason=reason, note=note, group=group))
        return rows

    def _nearest_rows(self, row: Row) -> list[tuple[str, list[Row]]]:
        """Return the images that are nearest to one that looks like another class: of its class, and of that one."""
        if row.position is None or self._report.nearest is None:
            return []
        sides = zip((row.label, row.looks_like), self._report.nearest[row.position].tolist(), strict=True)
        return [(name, [self.row(p) for p in places if p >= 0]) for name, places in sides if places[0] >= 0]

    def _copy_rows(self, groups: Sequence[DuplicateGroup], *, can_go: bool = True) -> list[Row]:
        """Return the rows of groups of duplicates, in which each image may be spared once, but for the first."""
        report, rows = self._report, list[Row]()
        in_classes = {group.positions[0] for group in report.filed_twice}
        counted = {place for group in report.duplicates if group.identical for place in group.positions[1:]}
        for number, group in enumerate(groups):
            if self._right.keys() >= {*group.positions}:
                continue
            known = [name if isinstance(name, str) else f"image {name}" for name in group.reference]
            other = f"{listed(known)} of the reference" if known else ""
            splits = report.splits_in(group)
            is_twice = group.identical and group.positions[0] in in_classes
            leak = f"a leak, in {' and '.join(splits)}" if len(splits) > 1 else ""
            for place, position in enumerate(group.positions):
                reason = other and f"{'as' if group.identical else 'like'} {other}"
                twice = report.outlier_reasons(position).get("label", "") if is_twice else ""
                if place and not group.identical:
                    reason += f", details correlate {group.correlations[place]:.2f}"
                why = "; ".join(filter(None, [reason, twice, leak]))
                spare = can_go and (place > 0 or known != []) and (group.identical or position not in counted)
                rows.append(self.row(position, group=number, reason=why, spare=spare))
                other = report.image_name(group.positions[0])
        return rows

    def _faulty(self) -> Tab:
        """Return the images that have faults whatever the others are."""
        faults = dict[int, list[str]]()
        for fault, places in self._report.faults.items():
            for place in places:
                faults.setdefault(place, []).append(fault)
        rows = [self.row(place, reason="; ".join(why)) for place, why in faults.items() if place not in self._right]
        counts = "; ".join(f"{fault}: {len(places):,}" for fault, places in self._report.faults.items())
        return Tab("faults", "Dark, plain or tiny", f"Whatever the others are. {counts.capitalize()}.", rows)

    def draw_rows(self, tabs: Sequence[Tab], top: int) -> None:
        """Give the first rows of each list small copies of their images, and of those to compare them with."""
        drawn = dict[tuple[int, int], str | None]()
        for tab in tabs:
            for place, row in enumerate(tab.rows[:top]):
                row.nearest = self._nearest_rows(row) if tab.name in ("label", "perhaps") else ()
                beside = [(other, _BESIDE) for _, others in row.nearest for other in others]
                for each, side in [(row, _LARGE if place < _LARGE_COUNT else _SMALL), *beside]:
                    if each.position is not None:
                        if (key := (each.position, side)) not in drawn:
                            drawn[key] = self._picture(each.path, each.position, side)
                        each.picture = drawn[key]

    def _picture(self, file: str, position: int, side: int) -> str | None:
        """Draw a small copy of an image's file, or of what was read, if there is one."""
        try:
            image = read_image(file, side, self._report.whites)
        except Exception:
            kept = self._report.pictures.get(position)
            return None if kept is None else data_uri(kept, side)
        return data_uri(torch.from_numpy(np.array(image)), side)
