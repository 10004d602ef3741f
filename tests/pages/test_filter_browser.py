"""The filter browser in a real browser: opened from disk, with mouse, keyboard and links."""

import re
from dataclasses import replace
from urllib.parse import quote

import pytest
import torch
from reports import contents
from reports import layer as made_up

from lightning_anomaly import AnomalyReport
from lightning_anomaly.filters.filter_figures import clearest_filters
from lightning_anomaly.filters.filter_page import filter_browser_text


def flagged(report: AnomalyReport) -> tuple[str, int, int]:
    layer, index = clearest_filters(report.layers, 1)[0]
    return layer, index, report.layers[layer].outliers_of(index)[0]


def address(layer: str, index: int, query: str = "") -> str:
    return f"#/filter/{quote(layer, safe='')}/{index}{query}"


def test_hovering_a_point_shows_its_sample_image_and_map(report, opened):
    layer, index, sample = flagged(report)
    page = opened(report, address(layer, index))
    page.page.mouse.move(*page.place_of(report.layers[layer].points[index, sample]))
    assert page.text(".sample-link") == f"Sample {sample}"
    gray = report.images[sample].expand(-1, -1, 3)
    assert page.pixels(".pair figure:nth-child(1) canvas") == gray.tolist()
    kept = report.maps[layer]
    place = kept.samples[index].tolist().index(sample)
    drawn = torch.tensor(page.pixels(".pair figure:nth-child(2) canvas")).float().mean(2)
    assert torch.corrcoef(torch.stack([drawn, kept.maps[index, place]]).flatten(1))[0, 1] > 0.95
    points = report.layers[layer].points[index]
    alone = (torch.cdist(points, points).fill_diagonal_(9).amin(1) > 0.3).nonzero()[:, 0].tolist()
    assert len(alone) >= 2
    for zoomed in (False, True):
        before = page.page.get_attribute("canvas.scatter", "data-view")
        for sample in alone[-1:] if zoomed else alone:
            page.page.mouse.move(*page.place_of(points[sample]))
            assert page.text(".sample-link") == f"Sample {sample}"
        page.page.keyboard.down("Control")
        page.page.mouse.wheel(0, -200)  # about the point that the pointer is on
        page.page.keyboard.up("Control")
        page.page.wait_for_selector(f"canvas.scatter:not([data-view='{before}'])")


@pytest.mark.slow
def test_the_overview_has_counts_that_link_to_as_many_filters(report, opened):
    page = opened(report, title="Four hundred digits")
    assert page.page.title() == "Four hundred digits"
    text = page.text()
    assert f"{max(report.outlier_scores):.1f}\n" in text
    assert f"score below {report.outlier_scores.quantile(0.95):.1f}" in text
    assert f"{report.count}\nanomaly filters of 40" in text
    assert f"{sum(map(len, report.isolated_filters.values()))}\nisolated filters" in text
    for layer in report.layers.values():
        assert f"{len(layer.filters('anomaly'))} of {len(layer.verdicts)}" in text
    links = page.page.eval_on_selector_all(
        ".stat[href*=filters], .legend a", "all => all.map(each => [each.getAttribute('href'), each.innerText])"
    )
    assert len(links) >= 4
    page.page.locator("canvas.cells").nth(1).click(position={"x": 11 * 5 + 4, "y": 4})
    page.settle()
    assert page.text("h1") == "Filter 5 of layer 2"
    for link, text in links:
        number = re.search(r"(^\d+)\n|(\d+)$", text)
        page.go(link)
        assert page.text("[role=status]").split()[0] == (number[1] or number[2]), text


@pytest.mark.slow
class TestFilter:
    def test_a_filter_has_the_numbers_of_the_report_pins_and_labels(self, report, opened):
        layer, index, sample = flagged(report)
        labels = ["even" if place % 2 == 0 else "odd" for place in range(400)]
        page = opened(report, address(layer, index), labels=labels)
        expected, kept, text = report.layers[layer], report.maps[layer], page.text(".facts")
        assert f"K = {int(expected.n_components[index])}" in text
        assert f"{100 * expected.smallest_share[index]:.3g}% of the samples" in text
        assert f"{100 * expected.explained[index]:.3g}% of the maps' variance" in text
        assert f"{100 * expected.sparsity[index]:.3g}% of its map's values" in text
        strips = [strip.split() for strip in page.page.locator(".strip").all_inner_texts()]
        isolated = (expected.isolated & ~expected.outliers)[index].nonzero()[:, 0].tolist()
        groups = [isolated, expected.outliers_of(index), kept.most[index].tolist(), kept.least[index].tolist()]
        assert strips == [[str(sample) for sample in samples] for samples in groups if samples]
        page.page.mouse.click(*page.place_of(report.layers[layer].points[index, sample]))
        page.page.mouse.move(2, 2)
        page.settle()
        page.open(page.hash)
        assert page.text(".inspected") == f"Sample {sample}\npinned"
        assert f"Score {report.outlier_scores[sample]:.1f}" in page.text(".inspector")
        assert page.text(".inspector .label") == labels[sample]
        assert "cluster 1" in page.text(".groups")
        page.page.select_option(".toolbar select", "label")
        page.settle()
        assert "even\n200" in page.text(".groups")
        assert {f"pin={sample}", "by=label"} == set(page.hash.partition("?")[2].split("&"))
        page.press("Escape")
        assert page.hash == address(layer, index, "?by=label")

    def test_filters_can_be_viewed_by_keyboard_alone(self, report, opened):
        order = clearest_filters(report.layers, 1000)
        page = opened(report, address(*order[0], "?verdict=anomaly&sort=clearest"))
        page.press("ArrowRight")
        assert page.hash.startswith(address(*order[1]))
        assert f"2 of {len(order)}" in page.text(".steps")
        page.press("ArrowLeft")
        assert page.hash.startswith(address(*order[0]))
        layer, index = report.layers[order[0][0]], order[0][1]
        marked = set((layer.outliers | layer.isolated)[index].nonzero()[:, 0].tolist())
        seen = set()
        for _ in marked:
            page.press("o")
            seen.add(int(page.text(".sample-link").removeprefix("Sample ")))
        assert seen == marked
        page.press("2")
        assert page.text("h1") == "Filters"
        page.press("?")
        assert page.page.locator("dialog[open]").count() == 1
        page.press("Escape")
        assert page.page.locator("dialog[open]").count() == 0
        page.page.locator("a.card").first.focus()
        page.press("Enter")
        assert page.text("h1") == "Filter 0 of layer 0"
        page.press(".")
        assert page.text(".inspected").endswith("pinned")


@pytest.mark.slow
class TestLists:
    def test_filters_are_sorted_filtered_found_and_exported(self, report, opened):
        page = opened(report, "#/filters")
        page.page.get_by_label("Verdict").select_option("anomaly")
        page.settle()
        page.page.get_by_label("Sort by").select_option("clearest")
        page.settle()
        shown = page.page.eval_on_selector_all("a.card", "cards => cards.map(card => card.getAttribute('href'))")
        clearest = clearest_filters(report.layers, report.count)
        assert shown == [address(*place, "?verdict=anomaly&sort=clearest") for place in clearest[:24]]
        rows = page.saved()
        assert [(row["layer"], int(row["filter"])) for row in rows] == clearest
        explained = report.layers[rows[0]["layer"]].explained[int(rows[0]["filter"])].item()
        assert float(rows[0]["explained"]) == pytest.approx(explained, rel=1e-3)
        page.page.get_by_label("Layer").select_option(label="layer 2")
        page.settle()
        anomalies = report.layers["2"].filters("anomaly")
        assert len(anomalies) == page.page.locator("a.card").count()
        page.page.locator("a.card").first.click()
        page.settle()
        assert f"1 of {len(anomalies)}, anomaly filters of layer 2" in page.text(".steps")
        page.go("#/filters")
        page.find("filter 5")
        assert page.text("[role=status]") == "3 filters"
        assert {row["filter"] for row in page.saved()} == {"5"}

    def test_a_sample_has_a_bar_for_each_view_and_the_filters_that_react_to_it(self, report, opened):
        stored = contents(filter_browser_text(report, "", None))[0]["reactions"]
        rank, first = next(pair for pair in enumerate(report.by_outlier_score, 1) if stored[pair[1]])
        page = opened(report, f"#/sample/{first}")
        assert f"Score {report.outlier_scores[first]:.1f} {rank} of 400" in page.text(".score")
        lefts = "all => all.map(each => each.getBoundingClientRect().left)"
        assert len({*page.page.eval_on_selector_all(".bars .cut", lefts)}) == 1  # a row for each view, with its reason
        reasons = report.outlier_reasons(first)
        scores = {view: report.samples[f"{view}_score"][first] for view in ("look", "content")}
        expected = [(view, f"{score:.1f}", reasons.get(view)) for view, score in scores.items()]
        assert page.text(".bars").split("\n") == [text for row in expected for text in row if text]
        filters = [(name, index) for name, layer in report.layers.items() for index in range(len(layer.verdicts))]
        shown = page.page.eval_on_selector_all("a.card", "cards => cards.map(card => card.getAttribute('href'))")
        assert shown == [address(*filters[number], f"?pin={first}") for number, _ in stored[first]]
        assert page.text(".card-note >> nth=0") == f"{stored[first][0][1]:.3g}"
        page.page.locator("summary").click()
        assert f"outlier of {report.votes[first]} filters (votes)" in page.text("details")
        isolating = sum(int(layer.isolated[:, first].sum()) for layer in report.layers.values())
        assert f"isolated by {isolating} filter" in page.text("details")

    def test_unknown_addresses_give_a_message(self, report, opened):
        page = opened(report)
        for wrong in ("filter/nothing/0", "filter/0/99", "sample/400", "sample/0.5", "elsewhere", "filter/%E0/0"):
            page.go(f"#/{wrong}")
            assert "no such page" in page.text(), wrong
        page.go("#/filter/0/0?pin=400")
        assert "pinned" not in page.text()


@pytest.mark.slow
class TestEverywhere:
    def test_the_page_follows_the_color_scheme_of_the_system(self, report, opened):
        page = opened(report)
        color = "getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/g).map(Number)"
        light = page.pixels("canvas.cells >> nth=0")
        assert min(page.page.evaluate(color)) > 230
        page.page.eval_on_selector("main > *", "element => { element.dataset.old = true; }")
        page.page.emulate_media(color_scheme="dark")
        page.page.wait_for_selector("main > *:first-child:not([data-old])")
        page.settle()
        assert page.pixels("canvas.cells >> nth=0") != light
        assert max(page.page.evaluate(color)) < 60

    def test_the_policy_of_the_page_blocks_foreign_code(self, chromium, report, tmp_path):
        report.save_html(tmp_path / "browser.html")
        page = chromium.new_page()
        page.goto((tmp_path / "browser.html").as_uri())
        page.wait_for_selector("html[data-shown]")
        violated = page.evaluate(
            """() => new Promise((done, fail) => {
                setTimeout(() => fail(new Error("the policy allows something")), 30000);
                const violated = [];
                addEventListener("securitypolicyviolation", event => {
                    violated.push(event.effectiveDirective);
                    if (violated.length == 2) done(violated);
                });
                const image = '<img src="https://example.invalid/x" onerror="window.ran = true">';
                document.body.insertAdjacentHTML("beforeend", image);
            })"""
        )
        assert sorted(violated) == ["img-src", "script-src-attr"]
        assert page.evaluate("window.ran") is None
        page.close()

    def test_a_notebook_shows_the_page_and_a_console_its_path(self, report, chromium, tmp_path):
        shown, file = report.save_html(tmp_path / "page.html"), tmp_path / "notebook.html"
        assert str(shown) == str(shown.path)
        file.write_text(f"<!doctype html><meta charset=utf-8>{shown._repr_html_()}", encoding="utf-8")
        page = chromium.new_page()
        page.goto(file.as_uri())
        frame = page.frame_locator("iframe")
        frame.get_by_role("link", name="Filters", exact=True).click()
        frame.locator("a.card").first.click()
        frame.locator("h1", has_text="Filter 0 of layer 0").wait_for()
        page.close()


@pytest.mark.slow
def test_reports_without_images_with_nan_or_without_layers_are_shown(report, opened):
    plain = replace(report, images=None, maps={})
    layer, index, sample = flagged(plain)
    page = opened(plain, address(layer, index))
    page.page.mouse.move(*page.place_of(plain.layers[layer].points[index, sample]))
    assert page.text(".sample-link") == f"Sample {sample}"
    assert page.page.locator(".inspector canvas").count() == 0
    assert "null" not in page.text(".inspector")
    page = opened(AnomalyReport({"": made_up("nonfinite")}, 60), "#/filter//0", name="nan.html")
    assert "NaN or infinite" in page.text()
    page.go("")
    assert page.text(".stats") == "not measured\nanomaly and isolated filters; the notes say why"
    assert page.text(".layer:not(.layer-heading) .layer-count") == "not measured"
    empty = AnomalyReport({}, 0, notes={"no layers": "The model has no convolution."})
    assert "The model has no convolution." in opened(empty, name="empty.html", labels=["a", "b"]).text(".notes")
