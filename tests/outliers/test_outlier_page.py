"""The rows of the page and of the table of `find_outliers`: what is in which list, and what is said of it."""

import base64
import csv
import io
import math
import os
from dataclasses import replace
from itertools import chain

import pytest
import torch
from datasets import photograph
from PIL import Image
from planted import COUNTS, ROWS, made_up, planted, with_columns
from reports import contents, page_rows, table
from torch import nn

from lightning_anomaly import OutlierReport, find_outliers
from lightning_anomaly.images import FolderImages
from lightning_anomaly.outliers.duplicates import DuplicateGroup
from lightning_anomaly.outliers.outlier_page import path_in_class
from lightning_anomaly.pages.gallery import read_reviewed
from lightning_anomaly.scores.sample_table import sample_table


def positions(report: OutlierReport, top: int = 100) -> dict[str, list[int]]:
    return {part.name: [entry.position for entry in part.entries] for part in report.lists(top)}


def test_lists_have_the_images_of_each_kind_in_order(tmp_path):
    report = planted()
    tabs = positions(report)
    assert {name: len(rows) for name, rows in tabs.items()} == ROWS | {"perhaps": 0, "right": 0}
    assert {part.name: part.count for part in report.lists() if part.entries} == COUNTS
    for view in ("look", "content"):
        assert tabs[view] == report.top(100, by=view)
    assert tabs["label"] == [*range(119, 99, -1)]
    assert tabs["identical"][-4:] == [216, 217, 218, 300]
    assert tabs["faults"] == [7, 9, 11]
    few = {name: len(rows) for name, rows in positions(report, 7).items()}
    assert few == ROWS | {"look": 7, "content": 7, "perhaps": 0, "right": 0}
    report.save_html(tmp_path / "a.html", top=7)
    shown = page_rows((tmp_path / "a.html").read_text())
    assert len(shown["look"]) == 7
    nearest = [(label, [row["name"] for row in rows]) for label, rows in shown["label"][0]["nearest"]]
    assert nearest == [("a", ["0/0.png", "0/2.png", "0/3.png"]), ("b", ["0/4.png", "0/5.png"])]
    report.save_csv(tmp_path / "a.csv", 7)
    rows = table(tmp_path / "a.csv")
    assert rows[0]["score"] == str(report.label_scores[int(rows[0]["position"])].item())  # not the larger one
    for save in (report.save_html, report.save_csv):
        with pytest.raises(ValueError, match="`top`"):
            save(tmp_path / "b", top=0)


def test_copies_are_one_image_in_the_lists_of_scores_and_those_that_can_go_are_counted_once():
    report = made_up()
    first, second, third, fourth, fifth = report.top(5, by="look")
    copies = DuplicateGroup(sorted([first, third, fourth]), False, [], [1.0, 0.99, 0.98])
    identical = DuplicateGroup(sorted([first, third]), True, [])
    report = replace(report, duplicates=[identical, copies])
    tabs = {part.name: part for part in report.lists(3)}
    assert [entry.position for entry in tabs["look"].entries] == [first, third, fourth, second, fifth]
    assert [entry.group is not None for entry in tabs["look"].entries] == [True] * 3 + [False] * 2
    assert tabs["look"].count == 5
    assert (tabs["identical"].count, tabs["near"].count) == (1, 1)


def test_what_was_found_right_is_in_a_list_of_its_own_only_and_stays_there(tmp_path):
    report = planted()
    right = [report.top(1, by="look")[0], 119, 7, 4000, 400, 401, 402, 210]  # of two copies one, of others all
    names = {*report.samples["name"].loc[right]} | {"a.txt"}
    report.save_csv(tmp_path / "a.csv")
    for number in range(2):  # what an earlier search found stays right in the next table
        rows = table(tmp_path / "a.csv")
        with (tmp_path / "verdicts.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            judged = dict.fromkeys(names, "right") if number == 0 else {}
            writer.writerows(row | {"verdict": judged.get(row["name"], row["verdict"])} for row in rows)
        report = report.with_reviewed(read_reviewed(tmp_path / "verdicts.csv"))
        report.save_csv(tmp_path / "a.csv")
        lists = {part.name: [row["name"] for _, row in part.rows] for part in report.lists()}
        assert {*lists.pop("right")} == names
        assert names.isdisjoint(chain(*(rows for name, rows in lists.items() if name != "identical")))
        assert len(lists["near"]) == ROWS["near"] - 3
        assert len(lists["identical"]) == ROWS["identical"]
        assert len(lists["look"]) == 100


@pytest.mark.parametrize(
    ("name", "label", "expected"),
    [
        ("train/cats/7.png", "cats", "train/dogs/7.png"),
        ("cats/images/cats.png", "cats", "dogs/images/cats.png"),
        ("cats/cats/7.png", "cats", "cats/dogs/7.png"),
        ("round/zero/7.png", "round/zero", "thin/one/7.png"),
        ("train/round/zero/7.png", "round/zero", "train/thin/one/7.png"),
        ("zero/round/7.png", "round/zero", ""),
        ("7.png", "7.png", ""),
        ("birds/7.png", "cats", ""),
    ],
)
def test_a_file_would_move_to_the_folder_of_the_class_that_it_looks_like(name, label, expected, tmp_path):
    other = "thin/one" if "/" in label else "dogs"
    for made in (None, (tmp_path / name).parent, (tmp_path / expected).parent):  # whose folders are not here, or are
        if made is not None:
            made.mkdir(parents=True, exist_ok=True)
        exists = made is None or (tmp_path / expected).parent.is_dir()
        found = path_in_class(str(tmp_path), name, label, other)
        assert found == (str(tmp_path / expected) if expected and exists else "")


def test_copies_in_two_splits_are_a_leak_at_the_top_of_the_page_and_in_the_list(tmp_path):
    report = planted()
    report.save_html(tmp_path / "a.html")
    index, _ = contents((tmp_path / "a.html").read_text())
    lead = " ".join(index["lead"])
    assert "leak: 1 set of copies lies in more than one of train and val" in lead
    assert "Some were not sought." in lead
    assert "1 set of copies" in str(report)
    (near,) = (part.entries for part in report.lists() if part.name == "near")
    assert [entry.position for entry in near if "a leak, in train and val" in entry.reason] == [403, 404, 405]


def test_the_table_has_a_row_for_every_image_on_request_with_each_score(tmp_path):
    report = planted()
    report.save_csv(tmp_path / "a.csv", every=True)
    rows = {row["name"]: row for row in table(tmp_path / "a.csv")}
    assert len(rows) == 5003
    for name, known in report.samples.set_index("name").iterrows():
        for score in ("look_score", "content_score", "label_score"):
            assert rows[name][score] == (str(known[score]) if math.isfinite(known[score]) else "")
    assert sum(row["list"] == "" for row in rows.values()) == 5003 - len({*chain(*positions(report).values())})


def test_a_page_has_small_copies_of_files_else_of_what_was_read(tmp_path):
    images = torch.rand(120, 3, 16, 8, generator=torch.Generator().manual_seed(0))
    images[7] = torch.nan
    with pytest.warns(UserWarning, match="NaN"):
        report = find_outliers(images, nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()))
    first = report.top(1, by="look")[0]
    Image.new("RGB", (90, 30)).save(tmp_path / f"{first}.png")
    report = replace(report, folder=str(tmp_path))
    with_columns(report, name=[f"{place}.png" for place in range(120)]).save_html(tmp_path / "a.html")
    index, _ = contents((tmp_path / "a.html").read_text())
    rows = page_rows((tmp_path / "a.html").read_text())
    assert all(row["picture"] is not None for row in rows["look"])
    pictures = [index["pictures"][row["picture"]].partition("base64,")[2] for row in rows["look"][:2]]
    assert [Image.open(io.BytesIO(base64.b64decode(text))).size for text in pictures] == [(90, 30), (8, 16)]
    assert [row["reason"] for row in rows["unreadable"]] == ["gives NaN or infinite values"]


def test_duplicates_unreadable_images_and_skipped_files_are_in_the_text_and_in_lists():
    scores = torch.tensor([9.0, 1, 2, 8, 7, 6, math.inf, 3])
    p_values = torch.where(scores > 7, 1 / 51, 0.5).where(scores < 99, math.nan)
    columns = {"score": scores, "p_value": p_values, "error": [""] * 6 + ["OSError: cut", ""]}
    report = OutlierReport(
        sample_table(columns | {"name": [*"abcdefgh"]}, range(8)),
        100,
        50,
        duplicates=[
            DuplicateGroup([1, 2], True, []),
            DuplicateGroup([4], True, [0]),
            DuplicateGroup([3, 5], False, ["x"], [1.0, 0.97, 0.9]),
        ],
        duplicates_left_out="There are too many.",
        skipped=sample_table({"name": ["notes.txt"], "error": ["no picture"]}, range(1)),
    )
    assert str(report).splitlines()[-4:] == [
        "Identical: 2. c (as b), e (as image 0 of the reference).",
        "Near duplicates: 2. d (like x of the reference), f (like d, details correlate 0.97).",
        "Skipped: 1. notes.txt (no picture).",
        "There are too many.",
    ]
    assert ["0", "a", "9.0"] in [line.split()[:3] for line in str(report).splitlines()]
    assert "image 2 (as image 1)" in str(replace(report, samples=sample_table(columns, range(8))))
    assert [
        (row["name"], part.name, entry.reason, entry.group)
        for part in report.lists(2)
        for entry, (_, row) in zip(part.entries, part.rows, strict=True)
    ] == [
        ("b", "identical", "", 0),
        ("c", "identical", "as b", 0),
        ("e", "identical", "as image 0 of the reference", 1),
        ("d", "near", "like x of the reference", 0),
        ("f", "near", "like d, details correlate 0.97", 0),
        ("g", "unreadable", "cannot be read: OSError: cut", None),
        ("notes.txt", "skipped", "no picture", None),
    ]


def test_what_is_written_of_many_copies_grows_with_their_number(tmp_path):
    """3,000 copies made a CSV file of 369 MB."""
    sizes = []
    for count in (1000, 2000):
        scores, group = torch.arange(count, dtype=torch.float64), DuplicateGroup([*range(count)], True, [])
        nothing = torch.full_like(scores, math.nan)
        samples = sample_table({"score": scores, "p_value": nothing}, range(count))
        report = OutlierReport(samples, count, 0, duplicates=[group])
        report.save_csv(tmp_path / "rows.csv", 5)
        sizes.append((tmp_path / "rows.csv").stat().st_size)
    assert sizes[1] < 2.2 * sizes[0] < 1_000_000
    assert "image 1 (as image 0), " in str(report)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "fault", ["nearly black", "of one shade", "at most 16 pixels", "as long as wide", "gray among", "as usual"]
)
def test_a_fault_of_a_whole_folder_is_a_list_of_every_image(tmp_path, fault):
    for number in range(8):
        size = {"at most 16 pixels": (9, 9), "as long as wide": (200, 40)}.get(fault, (64, 48))
        if fault == "as usual" and number < 2:
            size = (650, 490)
        image = photograph(number, *size)
        if fault == "nearly black":
            image = image.point(lambda value: value // 100)
        elif fault == "of one shade":
            image = Image.new("RGB", size, (number * 20, 90, 30))
        elif fault == "gray among" and number < 2:
            image = image.convert("L")
        image.save(tmp_path / f"{number}.png")
    report = find_outliers(FolderImages(tmp_path, 48), nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()))
    expected = [*range(2 if fault in ("gray among", "as usual") else 8)]
    assert [place for place, faults in report.samples["faults"].items() if fault in faults] == expected
    (faulty,) = [part for part in report.lists() if part.name == "faults"]
    assert [entry.position for entry in faulty.entries if fault in entry.reason] == expected
    assert fault in faulty.about.lower()
    report.save_csv(tmp_path / "rows.csv")
    rows = [row for row in table(tmp_path / "rows.csv") if "faults" in row["list"]]
    assert [int(row["position"]) for row in rows if fault in row["reason"]] == expected


def test_a_page_says_if_its_files_cannot_be_moved(tmp_path, monkeypatch):
    report = with_columns(made_up(1, folder=str(tmp_path)), name=["7.png"])
    said = "The folder cannot be written to, so its files cannot be moved."
    for is_writable in (True, False):
        monkeypatch.setattr(os, "access", lambda path, mode, answer=is_writable: answer)
        report.save_html(tmp_path / "page.html")
        index, _ = contents((tmp_path / "page.html").read_text(encoding="utf-8"))
        assert (said in index["lead"]) != is_writable
