"""The page of `find_outliers` in a real browser: lists to look through, ticks, and what is saved."""

import csv
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from reports import contents, table
from torch import nn

from lightning_anomaly import OutlierReport, find_outliers
from lightning_anomaly.images import FolderImages
from lightning_anomaly.outliers.duplicates import DuplicateGroup
from lightning_anomaly.pages.gallery import read_reviewed
from lightning_anomaly.scores.views import SampleView

HOSTILE = "/a/long/path" * 9 + '<img src=x onerror="document.title=1">"\'&</script><b>, =1+1\n'


def made_up(count: int = 300, reason: str = "reason {}", **given: Any) -> OutlierReport:
    """Make a report with random scores, of which the largest 10% have small p-values; content has no reasons."""
    generator = torch.Generator().manual_seed(0)
    look, content = 30 * torch.rand(2, count, generator=generator, dtype=torch.float64)
    p_values = torch.where(look > 29, 1, torch.where(look > 27, 4, 1400)).double() / 2001
    views = {"look": SampleView(look, tuple(reason.format(place) for place in range(count)))}
    views["content"] = SampleView(content, ("",) * count)
    facts: dict[str, Any] = {
        "scores": torch.maximum(look, content),
        "p_values": p_values,
        "views": views,
        "view_p_values": dict.fromkeys(views, p_values),
        "n_reference": 4000,
        "n_calibration": 2000,
        "false_discovery_rate": 0.1,
    }
    return OutlierReport(**facts | given)


def planted() -> OutlierReport:
    """5,000 images with 60 planted things: 20 filed elsewhere, 20 copies, 4 of them in two classes, and more."""
    report = made_up(5000, n_calibration=0)
    filed = torch.full((5000,), torch.nan)
    filed[100:120] = torch.arange(20) + 0.5
    label = SampleView(filed, tuple("filed under a, looks like b" if 100 <= i < 120 else "" for i in range(5000)))
    report.scores[4000:4005] = report.views["look"].scores[4000:4005] = torch.inf
    return replace(
        report,
        views={**report.views, "label": label},
        view_p_values={**report.view_p_values, "label": report.p_values},
        names=[f"{place // 100}/{place}.png" for place in range(5000)],
        labels=["c" if place in (200, 203) else "a" for place in range(5000)],
        splits=["val" if 405 <= place < 420 else "train" for place in range(5000)],
        duplicates_left_out="Some were not sought.",
        looks_like=["b"] * 5000,
        faults={"nearly black": [7, 9], "of one shade": [9, 11]},
        nearest=torch.tensor([[[1, 2, 3], [4, 5, -1]]]).repeat(5000, 1, 1),
        duplicates=[
            *(DuplicateGroup([i, i + 1], True, []) for i in range(200, 218, 2)),
            DuplicateGroup([218, 300], True, []),
            *(
                DuplicateGroup([i, i + 1, i + 2], False, ["old.png"], [1.0, 0.97, 0.96, 0.9])
                for i in range(400, 412, 3)
            ),
        ],
        unreadable=dict.fromkeys(range(4000, 4005), "OSError: broken"),
        skipped={f"{name}.txt": "not an image" for name in "abc"},
    )


ROWS = {"look": 100, "content": 100, "label": 20, "twice": 4, "identical": 20, "near": 12, "faults": 3, "unreadable": 5}
ROWS["skipped"] = 3
COUNTS = ROWS | {"twice": 2, "identical": 10, "near": 12}  # of copies, those that can go


def test_lists_have_the_images_of_each_kind_in_order(tmp_path):
    report = planted()
    tabs = {tab.name: [row.position for row in tab.rows] for tab in report.tabs()}
    assert {name: len(rows) for name, rows in tabs.items()} == ROWS | {"perhaps": 0, "right": 0}
    assert {tab.name: tab.count for tab in report.tabs() if tab.rows} == COUNTS
    for view in ("look", "content"):
        assert tabs[view] == report.top(100, by=view)
    assert tabs["label"] == [*range(119, 99, -1)]
    assert tabs["identical"][-4:] == [216, 217, 218, 300]
    assert tabs["faults"] == [7, 9, 11]
    few = {tab.name: len(tab.rows) for tab in report.tabs(7)}
    assert few == ROWS | {"look": 7, "content": 7, "perhaps": 0, "right": 0}
    report.save_html(tmp_path / "a.html", top=7)
    assert len(contents((tmp_path / "a.html").read_text())[0]["tabs"][0]["rows"]) == 7
    report.save_csv(tmp_path / "a.csv", 7)
    rows = table(tmp_path / "a.csv")
    assert rows[0]["score"] == str(report.views["look"].scores[int(rows[0]["position"])].item())  # not the larger one
    for save in (report.save_html, report.save_csv):
        with pytest.raises(ValueError, match="`top`"):
            save(tmp_path / "b", top=0)


def test_copies_are_one_image_in_the_lists_of_scores_and_those_that_can_go_are_counted_once():
    report = made_up()
    first, second, third, fourth, fifth = report.top(5, by="look")
    copies = DuplicateGroup(sorted([first, third, fourth]), False, [], [1.0, 0.99, 0.98])
    identical = DuplicateGroup(sorted([first, third]), True, [])
    report = replace(report, duplicates=[identical, copies])
    tabs = {tab.name: tab for tab in report.tabs(3)}
    assert [row.position for row in tabs["look"].rows] == [first, third, fourth, second, fifth]
    assert [row.group is not None for row in tabs["look"].rows] == [True] * 3 + [False] * 2
    assert tabs["look"].count == 3
    assert (tabs["identical"].count, tabs["near"].count) == (1, 1)


def test_what_was_found_right_is_in_a_list_of_its_own_only_and_stays_there(tmp_path):
    report = planted()
    right = [report.top(1, by="look")[0], 119, 7, 4000, 400, 401, 402, 210]  # of two copies one, of others all
    names = {report.names[place] for place in right} | {"a.txt"}
    report.save_csv(tmp_path / "a.csv")
    for number in range(2):  # what an earlier search found stays right in the next table
        rows = table(tmp_path / "a.csv")
        with (tmp_path / "verdicts.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            judged = dict.fromkeys(names, "right") if number == 0 else {}
            writer.writerows(row | {"verdict": judged.get(row["name"], row["verdict"])} for row in rows)
        report = replace(report, reviewed=read_reviewed(tmp_path / "verdicts.csv"))
        report.save_csv(tmp_path / "a.csv")
        lists = {tab.name: [row.name for row in tab.rows] for tab in report.tabs()}
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
        ("7.png", "7.png", ""),
        ("birds/7.png", "cats", ""),
    ],
)
def test_a_file_would_move_to_the_folder_of_the_class_that_it_looks_like(name, label, expected, tmp_path):
    report = made_up(1, n_calibration=0, names=[name], labels=[label], looks_like=["dogs"], folder=str(tmp_path))
    view = SampleView(torch.ones(1).double(), ("looks like dogs",))
    report = replace(report, views=report.views | {"label": view}, view_p_values={"label": report.p_values})
    (row,) = [tab.rows[0] for tab in report.tabs() if tab.name == "label"]
    assert row.move_to == (str(tmp_path / expected) if expected else "")


def test_copies_in_two_splits_are_a_leak_at_the_top_of_the_page_and_in_the_list(tmp_path):
    report = planted()
    report.save_html(tmp_path / "a.html")
    index, _ = contents((tmp_path / "a.html").read_text())
    lead = " ".join(index["lead"])
    assert "leak: 1 set of copies lies in more than one of train and val" in lead
    assert "Some were not sought." in lead
    assert "1 set of copies" in str(report)
    (near,) = (tab.rows for tab in report.tabs() if tab.name == "near")
    assert [row.position for row in near if "a leak, in train and val" in row.reason] == [403, 404, 405]


def test_the_table_has_a_row_for_every_image_on_request_with_each_score(tmp_path):
    report = planted()
    report.save_csv(tmp_path / "a.csv", every=True)
    rows = {row["name"]: row for row in table(tmp_path / "a.csv")}
    assert len(rows) == 5003
    for place, name in enumerate(report.names):
        for view, known in report.views.items():
            score = known.scores[place].item()
            assert rows[name][f"{view}_score"] == (str(score) if math.isfinite(score) else "")
    assert sum(row["list"] == "" for row in rows.values()) == 5003 - len(
        {row.name for tab in report.tabs() for row in tab.rows}
    )


def test_a_page_of_images_without_files_has_small_copies(tmp_path):
    images = torch.rand(120, 3, 16, 8, generator=torch.Generator().manual_seed(0))
    images[7] = torch.nan
    with pytest.warns(UserWarning, match="NaN"):
        report = find_outliers(images, nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()))
    report.save_html(tmp_path / "a.html")
    index, _ = contents((tmp_path / "a.html").read_text())
    rows = {tab["name"]: tab["rows"] for tab in index["tabs"]}
    assert all(row["picture"] is not None for row in rows["look"])
    assert [row["reason"] for row in rows["unreadable"]] == ["gives NaN or infinite values"]


def photographs(folder: Path) -> OutlierReport:
    """A folder with fewer than 100 images: wide and tall ones, two that are identical, a broken one and a note."""
    (folder / "cats").mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for place in range(6):
        pixels = torch.randint(0, 256, (200, 600, 3) if place % 2 else (600, 200, 3), generator=generator)
        Image.fromarray(pixels.byte().numpy()).save(folder / "cats" / f"{place}.png")
    (folder / "cats" / "same.png").write_bytes((folder / "cats" / "3.png").read_bytes())
    (folder / "cats" / "zero.jpg").write_bytes(b"no image")
    (folder / "notes.txt").touch()
    return find_outliers(FolderImages(folder, 32), nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()))


@pytest.fixture
def planted_page(opened: Any) -> Iterator[Any]:
    return opened(planted(), title="Fruit")


def cards(page: Any) -> list[str]:
    return page.page.eval_on_selector_all(".card .frame", "links => links.map(link => link.title)")


def tabs(page: Any) -> list[str]:
    return page.page.locator("nav a:visible").all_inner_texts()


@pytest.mark.slow
class TestPage:
    def test_lists_are_tabs_with_their_numbers(self, planted_page):
        page, report = planted_page, planted()
        numbers = [text.rpartition(" ")[2] for text in tabs(page)]
        assert numbers == [*map(str, COUNTS.values())]
        lead = page.text(".lead")
        for text in ("5,000 images", "20 filed elsewhere", "5 cannot be read", "Tick what should go"):
            assert text in lead
        assert cards(page) == [report.names[place] for place in report.top(60, by="look")]
        page.page.get_by_role("button", name="Show more").click()
        assert len(cards(page)) == 100
        page.page.get_by_role("link", name="Cannot be read").click()
        page.settle()
        assert cards(page) == [f"40/{place}.png" for place in range(4000, 4005)]
        assert "OSError: broken" in page.text(".card >> nth=0")
        page.press("3")
        assert cards(page)[0] == "1/119.png"
        assert "a → b?" in page.text(".card >> nth=0")
        assert "filed under a, looks like b" in page.text(".card >> nth=0")
        assert page.page.locator(".nearest").first.locator("a").count() == 3
        assert page.page.locator(".nearest").nth(1).locator("a").count() == 2
        page.find("one shade")
        assert cards(page) == []
        page.go("#/faults")
        page.find("one shade")
        assert cards(page) == ["0/9.png", "0/11.png"]
        page.go("#/label")
        page.find("105")
        assert cards(page) == ["1/105.png"]
        page.open(page.hash)
        assert cards(page) == ["1/105.png"]

    def test_a_list_is_filtered_while_one_types_and_ticks_at_once_are_of_what_is_shown_and_can_be_undone(
        self, planted_page
    ):
        page, report = planted_page, planted()
        history = "window.history.length"
        before = page.page.evaluate(history)
        page.press("/")
        for typed in "9.png":
            page.page.keyboard.type(typed)
        page.settle()
        named = [report.names[place] for place in report.top(100, by="look") if "9.png" in report.names[place]]
        assert page.page.locator("[type=search]").input_value() == "9.png"
        assert cards(page) == named
        assert 2 < len(named) < 60
        assert page.page.evaluate(history) == before
        page.page.get_by_role("button", name=f"Tick the {len(named)} shown").click()
        assert {row["name"] for row in page.saved("Save the lists") if row["verdict"]} == {*named}
        page.page.locator("[data-verdict=ticked]").first.uncheck()
        page.page.get_by_role("button", name="Untick all").click()
        assert "0 images ticked" in page.text(".ticked-bar")
        page.press("u")
        assert f"{len(named) - 1} image" in page.text(".ticked-bar")
        assert not page.page.get_by_role("button", name="Undo").is_visible()
        page.go("#/look")
        page.page.get_by_role("button", name="Tick the").click()
        page.page.get_by_role("button", name="Undo").click()
        assert f"{len(named) - 1} image" in page.text(".ticked-bar")

    def test_an_image_can_be_moved_to_the_class_that_it_looks_like_or_be_right(self, opened):
        report = replace(planted(), names=[f"a/{place}.png" for place in range(5000)])
        page = opened(report, "#/label")
        page.page.locator("[data-verdict=move]").first.check()
        page.page.locator("[data-verdict=ticked]").nth(1).check()
        page.page.locator("[data-verdict=right]").nth(1).check()  # instead
        page.page.get_by_role("button", name="The rest shown is right").click()
        assert "0 images ticked, 1 to move, 19 right" in page.text(".ticked-bar")
        page.go("#/label/3")
        page.press("m")
        page.press("x")
        page.press("x")
        verdicts = {int(row["position"]): row for row in page.saved("Save the lists") if row["list"] == "label"}
        found = [verdicts[place]["verdict"] for place in range(119, 99, -1)]
        assert found == ["move", "right", "right", "", *["right"] * 16]
        assert verdicts[119]["move_to"].endswith("/b/119.png")
        page.go("#/ticked")
        assert cards(page) == ["a/119.png"]
        assert not page.page.get_by_role("button", name="shown").filter(visible=True).count()  # a move stays one

    def test_copies_are_one_card_whose_verdict_is_that_of_all(self, opened):
        report = made_up()
        first, second, third = report.top(3, by="look")
        copies = DuplicateGroup(sorted([first, third]), False, [], [1.0, 0.99])
        page = opened(replace(report, duplicates=[copies]))
        assert cards(page)[:2] == [f"image {place}" for place in (first, second)]
        assert "\u00d7 2" in page.text(".card >> nth=0")
        page.page.locator("[data-verdict=ticked]").first.check()
        assert "2 images ticked" in page.text(".ticked-bar")
        page.page.locator(".frame").first.click()
        page.settle()
        assert f"image {third}" in page.text(".facts")
        assert "1 of 100" in page.text(".steps")
        page.press("ArrowRight")
        assert page.text("h1") == f"image {second}"

    def test_duplicates_stand_side_by_side_and_all_but_the_first_can_be_ticked(self, planted_page):
        page = planted_page
        page.go("#/near")
        assert page.page.locator(".copies").count() == 4
        for text in ("like old.png of the reference", "like 4/400.png, details correlate 0.97"):
            assert text in page.text(".copies >> nth=0")
        page.page.get_by_role("button", name="Tick the 12 that can go").click()
        assert "12 images ticked" in page.text(".ticked-bar")
        page.page.locator(".frame").nth(2).click()
        page.settle()
        assert page.page.locator(".large figure").count() == 2  # beside the first
        assert "like 4/400.png, details correlate 0.96" in page.text(".facts")
        assert [page.page.locator(f".large [data-key$='/{place}.png']").count() for place in (400, 401, 402)] == [
            1,
            0,
            1,
        ]

    def test_ticks_are_verdicts_in_the_saved_lists_and_are_remembered(self, opened, tmp_path):
        page, report = opened(planted()), planted()
        assert len(tabs(page)) == len(COUNTS)
        page.page.locator("[data-verdict=ticked]").nth(3).click()
        for address in ("#/unreadable", "#/skipped"):
            page.go(address)
            page.page.locator("[data-verdict=ticked]").first.click()
        expected = [report.names[report.top(4, by="look")[3]], "40/4000.png", "a.txt"]
        assert tabs(page)[-1] == "Ticked 3"
        rows = page.saved("Save the lists")
        assert [row["name"] for row in rows if row["verdict"] == "ticked"] == expected
        assert {row["verdict"] for row in rows} == {"ticked", ""}
        report.save_csv(tmp_path / "rows.csv")
        assert [row | {"verdict": ""} for row in rows] == table(tmp_path / "rows.csv")
        page.page.reload()
        page.settle()
        page.page.get_by_role("link", name="Ticked 3").click()
        page.settle()
        assert cards(page) == expected
        assert "shutil.move" in page.text("pre")
        page.page.get_by_role("button", name="Untick all").click()
        page.go("#/skipped")
        assert page.page.locator(":checked").count() == 0
        assert len(tabs(page)) == len(COUNTS)

    @pytest.mark.filterwarnings("ignore::UserWarning")  # they are few, and one is broken
    def test_an_opened_image_is_the_file_in_its_shape_else_a_small_copy(self, opened, tmp_path):
        report = photographs(tmp_path / "photos")
        page = opened(report)
        assert [text.split()[0] for text in tabs(page)] == ["Identical", "Cannot", "Skipped"]
        assert cards(page) == ["cats/3.png", "cats/same.png"]
        size = "image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])"
        width, height = page.page.eval_on_selector(".card img", size)
        assert abs(width / height - 3) < 0.02
        page.page.locator(".frame").first.click()
        page.settle()
        assert page.page.eval_on_selector(".large img", size) == [600, 200]
        assert str(tmp_path / "photos" / "cats" / "3.png") in page.text(".about")
        (tmp_path / "elsewhere").mkdir()
        page.file = page.file.rename(tmp_path / "elsewhere" / "page.html")
        (tmp_path / "photos").rename(tmp_path / "moved")
        page.open("#/identical/0")
        page.page.wait_for_selector(".large img[src^='data:']")
        width, height = page.page.eval_on_selector(".large img", size)
        assert (width, round(width / height)) == (512, 3)
        missing = [fault for fault in page.faults if "ERR_FILE_NOT_FOUND" in fault]
        page.faults = [fault for fault in page.faults if fault not in missing]
        assert missing

    def test_images_can_be_viewed_and_ticked_by_keyboard_alone(self, opened):
        report = made_up()
        first, second, third = report.top(3, by="look")
        page = opened(report)
        assert f"p-value {report.p_values[first]:.2g}" in page.text(".card >> nth=0")
        page.page.locator(".frame").first.focus()
        page.press("Enter")
        page.press("ArrowRight")
        assert page.text("h1") == f"image {second}"
        assert "2 of 100" in page.text(".steps")
        scores = [f"{view.scores[second]:.1f}" for view in report.views.values()]
        assert page.text(".bars").split("\n") == ["look", scores[0], f"reason {second}", "content", scores[1]]
        page.press("x")
        assert "1 image ticked" in page.text(".ticked-bar")
        with page.page.expect_download():
            page.press("s")
        page.press("x")
        assert page.page.locator(":checked").count() == 0
        page.press("ArrowRight")
        assert page.hash == "#/look/2"
        page.press("Escape")
        assert cards(page)[:3] == [f"image {place}" for place in (first, second, third)]
        for wrong in ("#/look/100", "#/look/x", "#/elsewhere"):
            page.go(wrong)
            assert "no such page" in page.text(), wrong

    def test_a_search_that_finds_nothing_says_so(self, opened):
        nothing = torch.full((3,), torch.nan)
        page = opened(OutlierReport(nothing, nothing, {}, {}, 3, 0, 0.1))
        assert "3 images" in page.text()
        assert tabs(page) == []

    def test_hostile_names_are_shown_as_text_within_the_window(self, opened):
        report = made_up(reason=HOSTILE, notes={"a": HOSTILE}, names=[f"{i}{HOSTILE}" for i in range(300)])
        report = replace(report, labels=[HOSTILE] * 300, feature_layer=HOSTILE)
        page = opened(report, width=360, title=HOSTILE, name="<img src=x onerror=alert(1)>.html")
        assert HOSTILE.split()[0] in page.page.title()
        for place in ("", "#/look/0"):
            page.go(place)
            assert page.page.evaluate("document.documentElement.scrollWidth") <= 360, place
            assert page.page.locator("main img, b").count() == 0
            assert HOSTILE.strip() in page.text("#top")
        page.press("x")
        (row,) = [row for row in page.saved("Save the lists") if row["verdict"]]
        assert row["name"] == report.names[report.top(1, by="look")[0]]
        assert row["class"] == HOSTILE
