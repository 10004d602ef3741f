"""The lists of a search and their pictures: what a person should look at."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from lightning_anomaly._internal.tabular import listed
from lightning_anomaly.images.folder_images import read_image
from lightning_anomaly.outliers.absolute_faults import FAULTS
from lightning_anomaly.outliers.duplicates import DuplicateGroup
from lightning_anomaly.pages.gallery import RIGHT, Entry, SampleList
from lightning_anomaly.pages.html_page import data_uri, usual_score
from lightning_anomaly.scores.sample_table import column_tensor, reasons_in_line, views_of, with_rows

# Sides of the copies on the page: of the first images of each list, of the others, and of those beside one.
_LARGE, _SMALL, _BESIDE = 512, 256, 144
_LARGE_COUNT = 24
_SCORED = {
    "content": ("Content", "Images in which the network sees something else than in the others, or of their class"),
    "look": ("Look", "Images whose pixels are unlike those of the others"),
    "label": ("Filed elsewhere", "Images that look like another class"),
    "perhaps": ("Perhaps elsewhere", "Images that look a little more like another class than like their own"),
}
# Where most can be done comes first, and is what a page opens with.
_ORDER = (
    "label",
    "twice",
    "identical",
    "near",
    "unreadable",
    "content",
    "look",
    "faults",
    "perhaps",
    "skipped",
    "right",
)
_SURE = (
    "Another class fits these far better than their own. Look at them before you move them: on four folders of "
    "photographs with planted errors 149 of 157 such images were filed wrongly, of CIFAR-10's small pictures 15 of 33."
)


class OutlierLists:
    """What makes lists of the images of an `OutlierReport`."""

    def __init__(self, report: Any) -> None:
        self._report, samples, skipped = report, report.samples, report.skipped
        # Skipped files, which have no positions, are listed by negative ones.
        self._skipped = [-1 - place for place in range(len(skipped))]
        self._samples = with_rows(samples, skipped.set_axis(self._skipped))
        self._right = {*self._samples.index[self._samples["verdict"] == RIGHT]}
        self._significant = {*report.significant}
        # The number of the set of copies that an image is in; one that has near duplicates is in the set of these.
        self._sets = {place: number for number, group in enumerate(report.duplicates) for place in group.positions}

    def lists(self, top: int) -> list[SampleList]:
        """Return all lists, see `OutlierReport.lists`."""
        report, lists, cells = self._report, list[SampleList](), self._samples["error"]
        ranked = {view: report.top(len(report.samples), by=view) for view in views_of(report.samples)}
        if "label" in ranked:
            ranked |= {"label": report.filed_elsewhere, "perhaps": report.perhaps_elsewhere}
        for name, positions in ranked.items():
            (title, about), view = _SCORED[name], "label" if name == "perhaps" else name
            usual = usual_score(column_tensor(report.samples, f"{view}_score"))
            about += f", the largest score first. 95% of the images have a score below {usual:.1f}."
            most = len(positions) if name == "label" else top
            told = {"compares": True, "about_sure": _SURE if name == "label" else ""} if view == "label" else {}
            lists.append(self._list(name, title, about, self._scored(positions, view, most), **told))
        near = "One image scaled, turned or saved again, or a still scene twice."
        groups = {same: [group for group in report.duplicates if group.identical == same] for same in (True, False)}
        broken = [
            Entry(
                position, f"cannot be read: {error}" if (error := cells[position]) else "gives NaN or infinite values"
            )
            for position in report.unusable
            if position not in self._right
        ]
        skipped = [Entry(place, cells[place]) for place in self._skipped if place not in self._right]
        right = [Entry(position) for position in self._samples.index if position in self._right]
        twice = self._copies(report.filed_twice, can_go=False)
        lists += [
            self._list("twice", "In several classes", "Identical images, side by side.", twice, copies=True),
            self._list("identical", "Identical", "Images with equal pixels.", self._copies(groups[True]), copies=True),
            self._list("near", "Near duplicates", near, self._copies(groups[False]), copies=True),
            self._faulty(),
            self._list("unreadable", "Cannot be read", "Images that cannot be read, or give no finite values.", broken),
            self._list("skipped", "Skipped", "Files that are no images.", skipped),
            self._list("right", "Right", "Found right in an earlier search.", right),
        ]
        return sorted(lists, key=lambda part: _ORDER.index(part.name))

    def all_others(self, lists: Sequence[SampleList]) -> SampleList:
        """Return the images that are in none of the lists."""
        listed_ones = {entry.position for part in lists for entry in part.entries}
        others = self._report.samples.drop(index=[position for position in listed_ones if position >= 0])
        rows = zip(others.index.tolist(), others.to_dict("records"), strict=True)
        return self._list("", "", "", [Entry(position, reasons_in_line(row)) for position, row in rows])

    def _list(self, name: str, title: str, about: str, entries: Sequence[Entry], **given: Any) -> SampleList:
        return SampleList(name, title, about, self._samples, entries, **given)

    def _scored(self, ranked: Sequence[int], view: str, top: int) -> list[Entry]:
        """Return the entries of up to `top` images, each followed by its copies among them."""
        sets = dict[int, list[int]]()
        for position in ranked:
            key = self._sets.get(position, -1 - position)
            if len(sets) == top and key not in sets:
                break
            if position not in self._right:
                sets.setdefault(key, []).append(position)
        entries, chosen = list[Entry](), [position for copies in sets.values() for position in copies]
        known = self._samples.loc[chosen]
        for number, copies in enumerate(sets.values()):
            for position in copies:
                note, group = "", number if len(copies) > 1 else None
                if self._report.n_calibration:
                    note = f"p-value {known[f'{view}_p_value'][position]:.2g}"
                    note += ", significant" if position in self._significant else ""
                score, reason = known[f"{view}_score"][position], known[f"{view}_reason"][position]
                sure = view == "label" and bool(known["clear"][position])
                entries.append(Entry(position, reason, float(score), note, group, sure=sure))
        return entries

    def _copies(self, groups: Sequence[DuplicateGroup], *, can_go: bool = True) -> list[Entry]:
        """Return the entries of groups of duplicates, in which each image may go once, but for the best."""
        report, names, entries = self._report, self._samples["name"], list[Entry]()
        in_classes = {group.positions[0] for group in report.filed_twice}
        counted = set[int]()  # of identical ones
        for group in report.duplicates:
            counted |= {*group.positions} - {self._best(group.positions)} if group.identical else set()
        for number, group in enumerate(groups):
            if self._right >= {*group.positions}:
                continue
            known = [name if isinstance(name, str) else f"image {name}" for name in group.reference]
            other = f"{listed(known)} of the reference" if known else ""
            splits = report.splits_in(group)
            is_twice = group.identical and group.positions[0] in in_classes
            best, smallest = self._best(group.positions), min(self._sizes[place] for place in group.positions)
            leak = f"a leak, in {' and '.join(splits)}" if len(splits) > 1 else ""
            for place, position in enumerate(group.positions):
                reason = other and f"{'as' if group.identical else 'like'} {other}"
                twice = report.outlier_reasons(position).get("label", "") if is_twice else ""
                if place and not group.identical:
                    reason += f", details correlate {group.correlations[place]:.2f}"
                why = "; ".join(filter(None, [reason, twice, leak]))
                stays = not known and position == best
                spare = can_go and not stays and (group.identical or position not in counted)
                note = "kept: the largest" if can_go and stays and self._sizes[best] > smallest else ""
                entries.append(Entry(position, why, note=note, group=number, can_go=spare))
                other = names[group.positions[0]]
        return entries

    @cached_property
    def _sizes(self) -> Mapping[int, tuple[int, int]]:
        """The pixels and bytes of each image's file; 0 where unknown."""
        samples = self._report.samples
        if "bytes" not in samples:
            return dict.fromkeys(samples.index, (0, 0))
        pixels = samples["width"] * samples["height"]
        return {place: (area, size) for place, area, size in zip(samples.index, pixels, samples["bytes"], strict=True)}

    def _best(self, positions: Sequence[int]) -> int:
        """Return the copy with the most pixels, then the most bytes, then the first name."""
        most = max(self._sizes[position] for position in positions)
        return min((p for p in positions if self._sizes[p] == most), key=self._samples["name"].__getitem__)

    def _faulty(self) -> SampleList:
        """Return the images that have faults whatever the others are."""
        samples, kinds = self._report.samples, dict[str, list[int]]()
        faults = samples["faults"][samples["faults"] != ""].to_dict() if "faults" in samples else {}
        for position, text in faults.items():
            for fault in text.split("; "):
                kinds.setdefault(fault, []).append(position)
        places = dict.fromkeys(place for fault in FAULTS for place in kinds.get(fault, ()))
        entries = [Entry(place, faults[place]) for place in places if place not in self._right]
        counts = "; ".join(f"{fault}: {len(kinds[fault]):,}" for fault in FAULTS if fault in kinds)
        return self._list("faults", "Dark, plain or tiny", f"Whatever the others are. {counts.capitalize()}.", entries)

    def draw_pictures(self, lists: Sequence[SampleList], top: int) -> list[SampleList]:
        """Give lists small copies of their first images, and of those to compare them with."""
        sides, nearest = dict[int, int](), self._report.samples.get("nearest", {})
        for part in lists:
            for place, entry in enumerate(part.entries[:top]):
                beside = (nearest.get(entry.position) if part.compares else None) or ()
                drawn = {other: _BESIDE for others in beside for other in others}
                drawn[entry.position] = _LARGE if place < _LARGE_COUNT else _SMALL
                sides |= {position: max(side, sides.get(position, 0)) for position, side in drawn.items()}
        drawn_at = {position: self._picture(position, side) for position, side in sides.items() if position >= 0}
        pictures = {position: uri for position, uri in drawn_at.items() if uri}
        return [replace(part, pictures=pictures) for part in lists]

    def _picture(self, position: int, side: int) -> str | None:
        """Draw a small copy of an image's file, or of what was read, if there is one."""
        try:
            image = read_image(self._samples["path"][position], side, self._report.whites)
        except Exception:
            kept = self._report.pictures.get(position)
            return None if kept is None else data_uri(kept, side)
        return data_uri(torch.from_numpy(np.array(image)), side)


def path_in_class(folder: str, name: str, label: str, other: str) -> str:
    """Return where a file would be in another class; empty if there is no such folder."""
    *folders, file = name.split(os.sep)
    own, new = label.split("/"), other.split("/")
    starts = [start for start in range(len(folders)) if folders[start : start + len(own)] == own]
    if not starts or other in ("", label):
        return ""
    before, after = folders[: starts[-1]], folders[starts[-1] + len(own) :]  # of the innermost one
    path = os.path.abspath(os.path.join(folder, *before, *new, *after, file))
    is_here = os.path.isdir(os.path.join(folder, *folders))  # else the folder is on another machine
    return "" if is_here and not os.path.isdir(os.path.dirname(path)) else path
