"""The page of `find_outliers` in a real browser: the gallery, ticks, and tables."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from reports import contents

from lightning_anomaly import OutlierReport
from lightning_anomaly.outliers.duplicates import DuplicateGroup
from lightning_anomaly.scores.scorer import SampleView

HOSTILE = "/a/long/path" * 9 + '<img src=x onerror="document.title=1">"\'&</script><b>, =1+1\n'


def made_up(kept: int = 256, reason: str = "reason {}") -> OutlierReport:
    """Make a report with random scores, of which the largest 10% have small p-values, and small colored pictures.

    Every second image has the larger score by its look, the others by their content, which has no reasons.
    """
    generator, images = torch.Generator().manual_seed(0), 300
    scores, even = 30 * torch.rand(images, generator=generator), torch.arange(images) % 2 == 0
    p_values = torch.where(scores > 29, 1, torch.where(scores > 27, 4, 1400)).double() / 2001
    look = SampleView(torch.where(even, scores, scores / 3), tuple(reason.format(place) for place in range(images)))
    return OutlierReport(
        scores=scores,
        p_values=p_values,
        views={"look": look, "content": SampleView(torch.where(even, scores / 9, scores), ("",) * images)},
        view_p_values={"look": p_values, "content": p_values},
        n_reference=4000,
        n_calibration=2000,
        false_discovery_rate=0.1,
        images=torch.randint(0, 256, (kept, 6, 5, 3), generator=generator, dtype=torch.uint8),
    )


def cards(page: Any) -> list[int]:
    """The positions of the shown images."""
    return page.page.eval_on_selector_all("[data-position]", "boxes => boxes.map(box => Number(box.dataset.position))")


def plain(report: OutlierReport, folder: Path, count: int) -> list[dict[str, str]]:
    """Return the rows of the CSV file that `save_csv` writes."""
    report.save_csv(folder / "rows.csv", count)
    with (folder / "rows.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_key_of_ticks_does_not_depend_on_labels(tmp_path):
    pandas, file = pytest.importorskip("pandas"), tmp_path / "a.html"
    names = [f"{place}.png" for place in range(300)]
    keys = set()
    for labels in (None, ["a.png"] * 300, pandas.Series(names, index=range(299, -1, -1))):
        made_up().save_html(file, labels=labels)
        index, _ = contents(file.read_text())
        keys.add(index["key"])
    assert len(keys) == 1
    # Labels are taken in order, whatever the index of a Series.
    assert all(row["label"] == f"{row['position']}.png" for row in index["rows"])
    with pytest.raises(ValueError, match=r"`labels`.* 300 .* 2\."):
        made_up().save_html(file, labels=["a", "b"])


def without_finite_scores() -> OutlierReport:
    report = made_up()
    return replace(
        report,
        scores=torch.full_like(report.scores, torch.inf),
        p_values=torch.full_like(report.p_values, torch.nan),
        images=None,
    )


def test_a_search_without_a_finite_score_lists_the_images_apart(tmp_path):
    report = without_finite_scores()
    report.save_html(tmp_path / "a.html")
    index, _ = contents((tmp_path / "a.html").read_text())
    assert (index["shown"], len(index["rows"]), index["columns"]) == (0, 300, list(report.rows()[0]))
    assert [row["score"] for row in plain(report, tmp_path, 5)] == [""] * 300
    assert str(report).splitlines()[-1] == "No image has a score."


def hostile_names() -> OutlierReport:
    """Names that a spreadsheet takes for formulas, in a search without a reference."""
    names = ["=1+1.png", "@a.png", "-2.png", "+3.png", "caf\udce9.png", *(f"{place}.png" for place in range(5, 300))]
    nothing = torch.full((300,), torch.nan)
    report = replace(made_up(), names=names, skipped={"=2": "no picture"}, n_calibration=0, p_values=nothing)
    report.scores[:5] += 100
    report.scores[9] = report.views["look"].scores[9] = torch.inf
    return replace(report, duplicates=[DuplicateGroup([0, 9], True, [])])


def test_names_are_no_formulas_and_missing_numbers_are_empty(tmp_path):
    rows = plain(hostile_names(), tmp_path, 5)
    names = {"./=1+1.png", "./@a.png", "./-2.png", "./+3.png", r"caf\udce9.png", "9.png", "./=2"}
    assert {row["name"] for row in rows} == names
    assert {row["p_value"] for row in rows} == {""}
    assert [row["name"] for row in rows if not row["score"]] == ["9.png", "./=2"]


@pytest.mark.slow
class TestGallery:
    def test_without_a_finite_score_it_says_so(self, opened):
        page = opened(without_finite_scores())
        assert cards(page) == []
        assert "No image has a score." in page.text()
        assert "95%" not in page.text()
        duplicates = replace(without_finite_scores(), n_calibration=0, duplicates=[DuplicateGroup([1, 2], True, [])])
        duplicates.scores[:] = torch.nan  # of fewer than 100 images
        page = opened(duplicates, name="few.html")
        assert cards(page) == [1, 2]
        for address in ("#/gallery", "#/image/1"):
            page.go(address)
            assert not any(text in page.text() for text in ("95%", "largest scores", "∞"))

    def test_the_page_saves_the_same_rows_as_the_report(self, opened, tmp_path):
        report = hostile_names()
        page = opened(report)
        assert page.saved() == plain(report, tmp_path, 256)[:256]
        for place in (0, 9):
            page.go(f"#/image/{place}")
            page.press("x")
        page.go("#/gallery?show=ticked&by=look")
        assert cards(page) == [0, 9]

    def test_duplicates_unreadable_images_and_skipped_files_follow(self, opened):
        report = replace(
            made_up(kept=3),
            scores=torch.arange(300.0).where(torch.arange(300) != 9, torch.inf),
            names=[f"{place}.png" for place in range(300)],
            duplicates=[DuplicateGroup([1, 2], True, []), DuplicateGroup([299, 4], False, ["old.png"])],
            duplicate_images=torch.zeros(4, 6, 5, 3, dtype=torch.uint8),
            unreadable={9: "OSError: broken"},
            skipped={"notes.txt": "not a picture"},
        )
        page = opened(report)
        shown = page.text().partition("Identical images")[2]
        places = [
            shown.index(text) for text in ("2.png", "Near", "299.png", "old.png", "9.png cannot", "notes.txt not")
        ]
        assert places == sorted(places)
        page.page.locator("[data-position='2']").check()
        assert [row["duplicates"] for row in page.saved("Save the 1 ticked")] == ["identical: 1.png = 2.png"]

    def test_images_are_ordered_by_score_with_their_pictures(self, opened, tmp_path):
        report = made_up()
        page = opened(report, title="Fruit")
        assert page.page.title() == "Images by score · Fruit"
        assert cards(page) == report.top(48)
        first = report.rows(1)[0]
        text = page.text(".outlier >> nth=0")
        for part in ("significant", f"image {first['position']}", f"{first['score']:.1f}", "0.0005", "reason"):
            assert part in text
        for place in (0, 1, 47):
            assert page.pixels(f".outlier >> nth={place} >> canvas") == report.images[place].tolist()
        assert f"95% of the images have a score below {report.scores.quantile(0.95):.1f}" in page.text()
        assert "256 images of 300" in page.text(".choices")
        assert page.saved() == plain(report, tmp_path, 256)
        for _ in range(5):
            page.page.get_by_role("button", name="Show more").click()
        assert cards(page) == report.top(256)

    def test_images_are_ordered_by_look_or_content_and_found_by_significance_and_name(self, opened):
        report = replace(made_up(), names=[f"folder/{place}.png" for place in range(300)])
        shown = {*report.top(256)}
        page = opened(report)
        for view in ("look", "content"):
            page.page.get_by_label("Order by").select_option(label=view)
            page.settle()
            assert cards(page) == [place for place in report.top(300, view) if place in shown][:48]
        page.page.get_by_label("Show").select_option(label=f"significant ({len(report.significant)})")
        page.settle()
        expected = [place for place in report.top(300, "content") if place in report.significant]
        assert cards(page) == expected != report.significant
        page.open(page.hash)
        assert cards(page) == expected
        page.page.locator(".outlier-picture").first.click()
        page.settle()
        page.press("ArrowRight")  # the next image of this list
        assert page.text("h1") == f"Image {expected[1]}"
        page.go("#/gallery")
        page.find("11.PNG")
        assert cards(page) == [place for place in report.top(256) if place % 100 == 11]

    def test_reports_without_pictures_or_p_values_are_shown(self, opened):
        report = replace(made_up(), false_discovery_rate=1e-9, images=None)  # nothing is significant
        page = opened(report)
        assert len(cards(page)) == 48
        assert page.page.locator("main canvas").count() == 0
        few = replace(made_up(kept=2), false_discovery_rate=1e-9, n_calibration=0)
        few.scores[7], few.p_values[7] = torch.inf, torch.nan
        few.unreadable[7] = "OSError"
        page = opened(few, name="few.html")
        assert page.page.locator("main canvas").count() == 2
        assert page.text(".outlier >> nth=2").startswith("no picture")
        assert "p-value" not in page.text(".outlier >> nth=1")  # because it only ranks these images
        assert 7 not in cards(page)  # it has no score
        assert few.rows()[-1]["reasons"] == "file: cannot be read: OSError"


@pytest.mark.slow
def test_ticked_images_are_saved_as_rows_and_remembered_for_the_same_ranking(opened, tmp_path):
    report = replace(made_up(), names=[f"{place}.png" for place in range(300)])
    page = opened(report)
    assert not page.page.locator(".ticked-bar").is_visible()
    for place in (3, 0):
        page.page.locator(".tick").nth(place).click()
    assert "2 images ticked" in page.text(".ticked-bar")
    rows = plain(report, tmp_path, 4)
    assert page.saved("Save the") == [rows[0], rows[3]]
    page.page.reload()
    page.settle()
    page.go("#/gallery?show=ticked")
    assert cards(page) == [report.top(4)[0], report.top(4)[3]]
    page.page.get_by_role("button", name="Untick all").click()
    assert not page.page.locator(".ticked-bar").is_visible()
    page.go("#/gallery?show=significant")
    page.page.get_by_role("button", name="Tick all").click()
    assert [int(row["position"]) for row in page.saved("Save the")] == report.significant
    replace(report, scores=report.scores + 1).save_html(page.file)
    page.open("#/gallery?show=ticked")
    assert cards(page) == []


@pytest.mark.slow
def test_images_can_be_viewed_and_ticked_by_keyboard_alone(opened):
    report = made_up()
    rows = report.rows(256)
    page = opened(report)
    for key in ("ArrowRight", "ArrowRight", "x", "Enter"):
        page.press(key)
    assert page.text("h1") == f"Image {rows[1]['position']}"
    assert page.pixels(".big-image canvas") == report.images[1].tolist()
    assert "2 of 256" in page.text(".steps")
    assert "Significant" in page.text(".facts")
    scores = [f"{view.scores[rows[1]['position']]:.1f}" for view in report.views.values()]
    bars = ["look", scores[0], f"reason {rows[1]['position']}", "content", scores[1]]
    assert page.text(".bars").split("\n") == bars
    assert "0.0005" in page.text(".facts")
    assert "1 image ticked" in page.text(".ticked-bar")
    with page.page.expect_download():
        page.press("s")
    page.press("x")
    assert page.page.locator(":checked[data-position]").count() == 0
    page.press("ArrowRight")
    assert page.hash == f"#/image/{rows[2]['position']}"
    for key in ("Escape", "1"):
        page.press(key)
        assert page.text("h1") == "Images by score"
    for wrong in (f"#/image/{report.top(300)[-1]}", "#/image/x", "#/image", "#/elsewhere"):
        page.go(wrong)
        assert "no such page" in page.text(), wrong


@pytest.mark.slow
def test_hostile_names_are_shown_as_text_within_the_window(opened):
    report = replace(made_up(reason=HOSTILE), notes={"a": HOSTILE}, names=[HOSTILE] * 300, feature_layer=HOSTILE)
    page = opened(report, width=360, labels=[HOSTILE] * 300, title=HOSTILE, name="<img src=x onerror=alert(1)>.html")
    assert page.page.title() == "Images by score · " + " ".join(HOSTILE.split())
    for place in ("", f"#/image/{report.top(1)[0]}"):
        page.go(place)
        assert page.page.evaluate("document.documentElement.scrollWidth") <= 360, place
        assert page.page.locator("img, b").count() == 0
        assert HOSTILE.strip() in page.text("#top")
    assert HOSTILE.strip() in page.text(".facts")
    page.press("x")
    (row,) = page.saved("Save the")
    assert row["name"] == row["label"] == HOSTILE

    def test_images_that_look_like_another_class_have_a_list_of_their_own(self, opened):
        report = made_up()
        lowest = report.scores.argsort()[:3].tolist()  # none of these is among the 256 largest scores
        scores = torch.full((300,), torch.nan).index_put((torch.tensor(lowest),), torch.tensor([5.0, 1000.0, 1.0]))
        reasons = tuple("filed under a, looks like b" if place in lowest[:2] else "" for place in range(300))
        views = {**report.views, "label": SampleView(scores, reasons)}
        p_values = {**report.view_p_values, "label": report.p_values}
        labels = ["a"] * 300
        page = opened(replace(report, views=views, view_p_values=p_values, labels=labels, looks_like=labels))
        assert not {*cards(page)} & {*lowest}
        page.go("#/gallery?by=label")
        assert cards(page) == [lowest[1], lowest[0]]
        assert "filed under a, looks like b" in page.text()
        page.go(f"#/image/{lowest[0]}")
        assert "filed under a" in page.text()
