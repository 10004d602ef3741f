"""Lists of images become a page and a CSV file with the same rows."""

import base64
import io
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch
from PIL import Image
from reports import contents, table

from lightning_anomaly.pages.gallery import (
    FIRST_COLUMNS,
    Entry,
    SampleList,
    gallery_page,
    name_in_csv,
    read_reviewed,
    write_csv,
)
from lightning_anomaly.pages.html_page import data_uri, usual_score, write_page
from lightning_anomaly.scores.sample_table import COLUMNS, sample_table

NAMES = ["a b#1?.png", "50%/ä:ö.png", "=1+1.png"]


def listing(name: str, names: list[str], *entries: Entry, folder: Path = Path(), **given: Any) -> SampleList:
    columns = {column: values for column, values in given.items() if column not in ("pictures", "label")}
    columns |= {"class": given["label"]} if "label" in given else {}
    samples = sample_table({"name": names, **columns}, range(len(names)), str(folder))
    return SampleList(name, name, "", samples, entries, pictures=given.get("pictures", {}))


def lists(folder: Path, **given: Any) -> list[SampleList]:
    first, second, third = Entry(0, score=1.5), Entry(1, score=1.5), Entry(2, "@dog", float("inf"))
    return [
        listing(name, NAMES, *entries, folder=folder, label=["", "", "-cat"], **given)
        for name, entries in {"look": (first, second), "empty": (), "content": (second, third)}.items()
    ]


def test_each_image_is_once_in_the_csv_file_with_its_lists(tmp_path):
    write_csv(tmp_path / "new" / "a.csv", lists(tmp_path))
    rows = table(tmp_path / "new" / "a.csv")
    assert tuple(rows[0]) == (*FIRST_COLUMNS, "error")
    assert {*rows[0]} <= {*COLUMNS, "list", "position", "reason"}
    assert [row["path"] for row in rows] == [str(tmp_path / name) for name in NAMES]
    assert [row["list"] for row in rows] == ["look", "look; content", "content"]
    assert [row["score"] for row in rows] == ["1.5", "1.5", ""]
    assert {row["verdict"] for row in rows} == {""}
    assert [rows[2][name] for name in ("name", "class", "reason")] == ["./=1+1.png", "./-cat", "./@dog"]


@pytest.mark.parametrize("text", ["=1", "\t=1", "\r1", " =1", "\n +1", " -1", "\t"])
def test_no_text_is_a_formula_for_a_spreadsheet(text, tmp_path):
    write_csv(tmp_path / "a.csv", [listing("a", ["1.png"], Entry(0)), listing("b", ["1.png"], Entry(0, text))])
    assert [row["reason"] for row in table(tmp_path / "a.csv")] == [f"./{text}"]


def test_a_page_has_the_lists_with_rows_and_links_to_the_files_that_there_are(tmp_path):
    photos, folder = tmp_path / "photos", tmp_path / "pages" / "new"
    for name in NAMES[:2]:
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).touch()
    picture = data_uri(torch.zeros(2, 3, 1, dtype=torch.uint8))
    tabs = lists(photos, pictures=dict.fromkeys((1, 2), picture))
    index, _ = contents(gallery_page("a title", ["lead"], tabs, folder))
    assert [(tab["name"], [entry[0] for entry in tab["rows"]]) for tab in index["tabs"]] == [
        ("look", [0, 1]),
        ("content", [1, 2]),
    ]
    links = [row["link"] for row in index["table"]]
    assert links[2] is None  # there is no such file
    for link, name in zip(links, NAMES[:2], strict=False):
        assert not {*link} & {"#", "?", ":", " "}
        assert (folder / unquote(link)).resolve() == photos / name
    assert index["pictures"] == [picture]
    assert [row["picture"] for row in index["table"]] == [None, 0, 0]
    assert [row["score"] for row in index["table"]] == [1.5, 1.5, None]
    assert index["tabs"][1]["rows"][1][1] is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Python closes the file as it ends
def test_the_lines_of_the_docs_move_files_by_their_verdicts_and_overwrite_and_remove_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    docs = (Path(__file__).parents[2] / "docs" / "outliers.md").read_text()
    (lines,) = [code for code in re.findall(r"```python\n(.*?)```", docs, re.DOTALL) if "shutil" in code]
    verdicts = {
        "cats/1.png": "ticked",
        "dogs/1.png": "ticked",
        "dogs/2.png": "move",
        "dogs/3.png": "right",
        "4.png": "",
    }
    for folder in ("first", "second", "third"):
        for name in verdicts:
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_text(f"{folder} {name}")
        columns = {"move_to": [str(tmp_path / "cats" / "2.png")] * 5, "verdict": [*verdicts.values()]}
        listed = listing("look", [*verdicts], *map(Entry, range(5)), folder=tmp_path / folder, **columns)
        write_csv(tmp_path / "verdicts.csv", [listed])
        for _ in range(2):  # what is moved already is left alone
            exec(lines, {})
    files = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*.png")}
    expected = {f"{folder}/{name}": f"{folder} {name}" for folder in ("first", "second", "third") for name in verdicts}
    for number, folder in (("", "first"), ("-2", "second"), ("-3", "third")):
        for old, new in (("cats/1", "set_aside/cats/1"), ("dogs/1", "set_aside/dogs/1"), ("dogs/2", "cats/2")):
            expected[f"{new}{number}.png"] = expected.pop(f"{folder}/{old}.png")
    assert files == expected


def test_what_was_found_right_is_read_by_the_names_that_the_file_has(tmp_path):
    names = ["=1.png", os.fsdecode(b"caf\xe9.png"), "a, b.png", "other.png"]
    judged = listing("look", names, *map(Entry, range(4)), verdict=["right"] * 3 + ["ticked"])
    write_csv(tmp_path / "verdicts.csv", [judged])
    assert read_reviewed(tmp_path / "verdicts.csv") == {name_in_csv(name) for name in names[:3]}
    assert read_reviewed(None) == set()
    (tmp_path / "other.csv").write_text("path,label\n1,2\n")
    with pytest.raises(ValueError, match=r"`reviewed`.*other.csv` with the columns path, label"):
        read_reviewed(tmp_path / "other.csv")


SAVED = 'path,name,verdict\n/p/a.png,a.png,right\n/p/b.png,"b,\nc.png",ticked\n/p/ä.png,ä.png,right\n'


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace(",", ";").replace("b;", "b,"),
        lambda text: text.replace("\n/", "\r/").rstrip("\n") + "\r",
        lambda text: text.replace("right", "Right ", 1).replace(",right", ",RIGHT"),
    ],
    ids=["byte order mark", "semicolons", "carriage returns", "letters"],
)
def test_verdicts_are_read_after_a_spreadsheet_has_saved_them(tmp_path, change):
    file = tmp_path / "verdicts.csv"
    file.write_bytes(change(SAVED).encode())
    assert read_reviewed(file) == {"a.png", "ä.png"}


def test_an_unknown_verdict_is_named_with_its_line_and_nothing_else_is_lost(tmp_path):
    file = tmp_path / "verdicts.csv"
    file.write_text(SAVED + "/p/d.png,d.png,ok\n/p/e.png,e.png,right\n", encoding="utf-8")
    with pytest.warns(UserWarning, match="ticked, move, right: 'ok' in line 6"):
        assert read_reviewed(file) == {"a.png", "ä.png", "e.png"}


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (SAVED.encode() + b"/p/f.png,f.png," + b"x" * 200_000, "line 6 is no row.*field larger"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "no text in UTF-8"),
        (b"", "no columns"),
        (b"{}", "the columns {}"),
    ],
    ids=["long field", "picture", "empty", "json"],
)
def test_a_file_that_is_no_table_is_named_in_one_line(tmp_path, content, found):
    (tmp_path / "verdicts.csv").write_bytes(content)
    with pytest.raises(ValueError, match=rf"`reviewed`.*verdicts.csv`.*{found}"):
        read_reviewed(tmp_path / "verdicts.csv")


def test_pictures_keep_their_shape_and_small_ones_their_pixels():
    pixels = torch.randint(0, 256, (30, 128, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)

    def opened(uri: str) -> Image.Image:
        return Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))

    for image in (pixels, pixels[..., :1]):
        assert list(opened(data_uri(image)).tobytes()) == image.flatten().tolist()
    large = pixels.repeat(10, 10, 1)
    for side in (256, 512):
        picture = opened(data_uri(large, side))
        assert (picture.format, picture.width) == ("JPEG", side)
        assert abs(picture.height - 30 / 128 * side) <= 1


def test_a_page_is_told_by_its_path_and_a_usual_score_by_its_quantile(tmp_path):
    assert str(write_page(tmp_path / "new" / "a.html", "page")) == str(tmp_path / "new" / "a.html")
    assert usual_score(torch.tensor([*range(101), torch.inf, torch.nan])) == 95
    assert usual_score(torch.tensor([torch.inf])) == 0
