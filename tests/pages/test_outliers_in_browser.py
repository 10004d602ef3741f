"""The page of `find_outliers` in a real browser: lists to look through, ticks, and what is saved."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from planted import COUNTS, made_up, planted, with_columns
from reports import table
from sklearn.datasets import load_digits
from torch import nn

from lightning_anomaly import OutlierReport, find_outliers
from lightning_anomaly.__main__ import main
from lightning_anomaly.images import FolderImages
from lightning_anomaly.outliers.duplicates import DuplicateGroup
from lightning_anomaly.scores.sample_table import sample_table

HOSTILE = "/a/long/path" * 9 + '<img src=x onerror="document.title=1">"\'&</script><b>, =1+1\n'


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
        assert cards(page) == [f"1/{place}.png" for place in range(119, 99, -1)]  # where most can be done
        assert page.page.locator("h2").all_inner_texts()[0].startswith("10 to begin with")
        page.go("#/look")
        assert cards(page) == [*report.samples["name"].loc[report.top(60, by="look")]]
        page.page.get_by_role("button", name="Show more").click()
        assert len(cards(page)) == 100
        page.page.get_by_role("link", name="Cannot be read").click()
        page.settle()
        assert cards(page) == [f"40/{place}.png" for place in range(4000, 4005)]
        assert "OSError: broken" in page.text(".card >> nth=0")
        page.press("1")
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
        page.go("#/look")
        history = "window.history.length"
        before = page.page.evaluate(history)
        page.press("/")
        for typed in "9.PNG":
            page.page.keyboard.type(typed)
        page.settle()
        named = [name for name in report.samples["name"].loc[report.top(100, by="look")] if "9.png" in name]
        assert page.page.locator("[type=search]").input_value() == "9.PNG"
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
        report = with_columns(
            planted(),
            name=[f"a/{place}.png" for place in range(5000)],
            move_to=[f"/b/{place}.png" for place in range(5000)],
        )
        page = opened(report, "#/label")
        page.page.locator("[data-verdict=move]").first.check()
        page.page.locator("[data-verdict=ticked]").nth(1).check()
        page.page.locator("[data-verdict=right]").nth(1).check()  # instead
        page.page.get_by_role("button", name="The rest shown is right").click()  # of those that are less sure
        assert "0 images ticked, 1 to move, 11 right" in page.text(".ticked-bar")
        page.page.get_by_role("button", name="Move the 8").click()
        assert "0 images ticked, 9 to move, 11 right" in page.text(".ticked-bar")
        page.press("u")
        page.go("#/label/3")
        page.press("m")
        page.press("x")
        page.press("x")
        verdicts = {int(row["position"]): row for row in page.saved("Save the lists") if row["list"] == "label"}
        found = [verdicts[place]["verdict"] for place in range(119, 99, -1)]
        assert found == ["move", "right", "", "", *[""] * 6, *["right"] * 10]
        assert verdicts[119]["move_to"].endswith("/b/119.png")
        page.go("#/ticked")
        assert cards(page) == ["a/119.png"]
        assert not page.page.get_by_role("button", name="shown").filter(visible=True).count()  # a move stays one

    def test_copies_are_one_card_that_names_all_and_whose_verdict_is_that_of_one_unless_asked(self, opened):
        report = made_up()
        first, second, third = report.top(3, by="look")
        copies = DuplicateGroup(sorted([first, third]), False, [], [1.0, 0.99])
        page = opened(replace(report, duplicates=[copies]), "#/look")
        assert cards(page)[:2] == [f"image {place}" for place in (first, second)]
        assert f"image {third}" in page.text(".card >> nth=0")
        page.page.locator("[data-verdict=ticked]").first.check()
        assert "1 image ticked" in page.text(".ticked-bar")
        page.page.get_by_text("all 2 copies").first.click()
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
        page, report = opened(planted(), "#/look"), planted()
        assert len(tabs(page)) == len(COUNTS)
        page.page.locator("[data-verdict=ticked]").nth(3).click()
        for address in ("#/unreadable", "#/skipped"):
            page.go(address)
            page.page.locator("[data-verdict=ticked]").first.click()
        expected = [report.samples["name"][report.top(4, by="look")[3]], "40/4000.png", "a.txt"]
        assert tabs(page)[-1] == "Ticked 3"
        rows = page.saved("Save the lists")
        assert {row["name"] for row in rows if row["verdict"] == "ticked"} == {*expected}
        assert {row["verdict"] for row in rows} == {"ticked", ""}
        report.save_csv(tmp_path / "rows.csv")
        assert [row | {"verdict": ""} for row in rows] == table(tmp_path / "rows.csv")
        page.page.reload()
        page.settle()
        page.page.get_by_role("link", name="Ticked 3").click()
        page.settle()
        assert cards(page) == expected
        assert page.text("pre") == "lightning-anomaly move verdicts.csv"
        page.page.get_by_role("button", name="Copy").click()
        page.page.get_by_role("button", name="Untick all").click()
        page.go("#/skipped")
        assert page.page.locator(":checked").count() == 0
        assert len(tabs(page)) == len(COUNTS)

    @pytest.mark.filterwarnings("ignore::UserWarning")  # some are broken
    def test_a_folder_is_cleaned_by_mouse_and_one_command_and_comes_back(self, opened, tmp_path):
        """Wrong folders, the worse of two copies and a broken file, in classes whose names are hard."""
        photos, classes = tmp_path / "photos", ["Zwei Wörter", "-dash", "cat", "CAT", "a.b"]
        digits = load_digits()
        chosen = [place for place, label in enumerate(digits.target) if label < 5][:400]
        wrong = {f"{place}.png" for place in chosen[::20]}
        for place in chosen:
            label = digits.target[place]
            image = Image.fromarray((digits.images[place] * 15.9).astype(np.uint8)).convert("RGB")
            folder = photos / classes[(label + 1) % 5 if f"{place}.png" in wrong else label]
            folder.mkdir(parents=True, exist_ok=True)
            image.resize((64, 64)).save(folder / f"{place}.png")
        copied = photos / classes[digits.target[chosen[1]]] / f"{chosen[1]}.png"
        shutil.copy(copied, copied.with_stem("copy"))
        (photos / "cat" / "broken.png").write_bytes(b"no image")
        torch.manual_seed(0)
        model = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(192, 5))
        report = find_outliers(FolderImages(photos, 64), model)
        sure = report.samples.query("clear")
        before = {path: path.read_bytes() for path in photos.rglob("*.png")}
        page = opened(report)
        page.page.get_by_role("button", name=f"Move the {len(sure)}", exact=True).click()
        page.page.get_by_role("link", name="Identical").click()
        page.page.get_by_role("button", name="Tick the 1 that can go").click()
        page.page.get_by_role("link", name="Cannot be read").click()
        page.page.locator("[data-verdict=ticked]").first.check()
        with page.page.expect_download() as download:
            page.page.get_by_role("button", name="Save the lists").click()
        download.value.save_as(tmp_path / "verdicts.csv")
        for arguments in ([], ["--undo"]):
            with pytest.raises(SystemExit) as ended:
                main(["move", str(tmp_path / "verdicts.csv"), *arguments])
            assert ended.value.code == 0
            if not arguments:
                after = {path.name: path.parent.name for path in photos.rglob("*.png")}
                assert {*before} - {*photos.rglob("*.png")} >= {photos / "cat" / "broken.png", copied.with_stem("copy")}
                moved = {Path(name).name for name in sure["name"]}
                assert len(moved & wrong) >= 15
                assert len(moved - wrong) <= 2
                assert all(after[name] == classes[digits.target[int(Path(name).stem)]] for name in moved & wrong)
        assert {path: path.read_bytes() for path in photos.rglob("*.png")} == before
        assert not photos.with_name("photos_set_aside").exists()

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
        page = opened(report, "#/look")
        assert f"p-value {report.p_values[first]:.2g}" in page.text(".card >> nth=0")
        page.press("ArrowRight")
        page.press("x")
        page.press("ArrowRight")
        page.press("r")
        assert "1 image ticked, 1 right" in page.text(".ticked-bar")
        page.press("r")
        page.press("ArrowLeft")
        page.press("x")
        assert "0 images ticked" in page.text(".ticked-bar")
        page.press("Enter")
        page.press("ArrowRight")
        assert page.text("h1") == f"image {second}"
        assert "2 of 100" in page.text(".steps")
        scores = [f"{report.samples[name][second]:.1f}" for name in ("look_score", "content_score")]
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
        nothing = [torch.nan] * 3
        page = opened(OutlierReport(sample_table({"score": nothing, "p_value": nothing}, range(3)), 3, 0))
        assert "3 images" in page.text()
        assert tabs(page) == []

    def test_hostile_names_are_shown_as_text_within_the_window(self, opened):
        report = made_up(reason=HOSTILE, notes={"a": HOSTILE}, feature_layer=HOSTILE)
        names = [f"{i}{HOSTILE}" for i in range(300)]
        report = with_columns(report, name=names, **{"class": [HOSTILE] * 300})
        page = opened(report, width=360, title=HOSTILE, name="<img src=x onerror=alert(1)>.html")
        assert HOSTILE.split()[0] in page.page.title()
        for place in ("", "#/look/0"):
            page.go(place)
            assert page.page.evaluate("document.documentElement.scrollWidth") <= 360, place
            assert page.page.locator("main img, b").count() == 0
            assert HOSTILE.strip() in page.text("#top")
        page.press("x")
        (row,) = [row for row in page.saved("Save the lists") if row["verdict"]]
        assert row["name"] == report.samples["name"][report.top(1, by="look")[0]]
        assert row["class"] == HOSTILE
