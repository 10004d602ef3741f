"""The browser as a user meets it: opened from disk, hovered, clicked, keyed, linked to."""

import re
from dataclasses import replace
from urllib.parse import quote

import pytest
import torch
from torch import nn

from lightning_anomaly import AnalysisSettings, AnomalyReport, analyze
from lightning_anomaly.plots import clearest_filters

HOSTILE = '<img src=x onerror="document.title=1">"\'&</script><b>'


def flagged(report: AnomalyReport) -> tuple[str, int, int]:
    """The clearest anomaly filter and its first outlier."""
    layer, index = clearest_filters(report, 1)[0]
    return layer, index, report.layers[layer].outliers_of(index)[0]


def address(layer: str, index: int, query: str = "") -> str:
    return f"#/filter/{quote(layer, safe='')}/{index}{query}"


def ones(conv: nn.Module) -> nn.Module:
    """Adds up what it sees, so that no filter is dead."""
    nn.init.ones_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv


class TestOverview:
    def test_it_says_what_was_found(self, probed, opened):
        report = probed.report
        page = opened(report, title="Four hundred digits")
        assert page.page.title() == "Four hundred digits"
        text = page.text()
        assert f"{report.count}\nanomaly filters of 40" in text
        outliers = sum(votes > 0 for votes in report.outlier_samples)
        assert f"{outliers}\nof 400 samples are outliers of some filter" in text
        for layer in report.layers.values():
            assert f"{len(layer.filters('anomaly'))} of {len(layer.verdicts)}" in text

    def test_isolated_filters_are_counted_and_told_from_the_others(self, probed, opened):
        report = probed.report
        page = opened(report)
        total = sum(len(layer.isolated_filters) for layer in report.layers.values())
        assert f"{total}\nfilters set samples apart from all others" in page.text()
        kinds = [
            (layer.verdicts[index], index in layer.isolated_filters)
            for layer in report.layers.values()
            for index in range(len(layer.verdicts))
        ]
        for verdict in ("anomaly", "normal"):
            for isolated, name in ((True, f"{verdict}, isolated"), (False, verdict)):
                expected = f"{name} {kinds.count((verdict, isolated))}"
                assert (expected in page.text(".legend").split("\n")) == ((verdict, isolated) in kinds)
        page.go("#/filters?verdict=isolated")
        assert page.text("[role=status]") == f"{total} filters"
        layer, index = next(
            (name, own.isolated_filters[0]) for name, own in report.layers.items() if own.isolated.any()
        )
        sample = int(report.layers[layer].isolated[index].nonzero()[0])
        page.go(address(layer, index, f"?pin={sample}"))
        assert "Apart from all other samples." in page.text(".inspector")
        assert "isolated" in page.text(".groups")

    def test_a_number_leads_to_as_many(self, probed, opened):
        page = opened(probed.report)
        links = page.page.eval_on_selector_all(
            ".stat[href], .legend a", "all => all.map(each => [each.getAttribute('href'), each.innerText])"
        )
        assert len(links) >= 5
        for link, text in links:
            number = re.search(r"(^\d+)\n|(\d+)$", text)
            page.go(link)
            assert page.text("[role=status]").split()[0] == (number[1] or number[2]), text

    def test_a_cell_leads_to_its_filter(self, probed, opened):
        page = opened(probed.report)
        page.page.locator("canvas.cells").nth(1).click(position={"x": 11 * 5 + 4, "y": 4})
        page.settle()
        assert page.text("h1") == "Filter 5 of layer 2"

    def test_the_curves_of_a_history_are_drawn(self, probed, opened):
        history = [
            {"epoch": epoch, "metrics": {"count": 2.0 * epoch}, "losses": {"val_loss": 1.0 / (1 + epoch)}}
            for epoch in range(4)
        ]
        page = opened(probed.report, history=history)
        assert page.page.locator("polyline").count() == 2
        assert page.page.locator("circle title").all_text_contents() == [
            *(f"val_loss, epoch {epoch}: {text}" for epoch, text in enumerate(["1", "0.5", "0.333", "0.25"])),
            *(f"anomaly filters, epoch {epoch}: {2 * epoch}" for epoch in range(4)),
        ]

    def test_without_a_history_there_are_no_curves(self, probed, opened):
        assert opened(probed.report).page.locator("polyline").count() == 0


class TestFilter:
    def test_hovering_a_point_shows_that_sample_its_image_and_its_map(self, probed, opened):
        report = probed.report
        layer, index, sample = flagged(report)
        page = opened(report, address(layer, index))
        page.page.mouse.move(*page.place_of(report.layers[layer].points[index, sample]))
        assert page.text(".sample-link") == f"Sample {sample}"
        grey = report.pictures.images[sample].expand(-1, -1, 3)
        assert page.pixels(".pair figure:nth-child(1) canvas") == grey.tolist()
        kept = report.pictures.maps[layer]
        place = kept.samples[index].tolist().index(sample)
        drawn = torch.tensor(page.pixels(".pair figure:nth-child(2) canvas")).float().mean(2)
        expected = kept.maps[index, place].float()
        assert drawn.shape == expected.shape
        brightest, darkest = expected == expected.max(), expected == expected.min()
        assert drawn[brightest].min() > drawn[darkest].max()
        assert torch.corrcoef(torch.stack([drawn.flatten(), expected.flatten()]))[0, 1] > 0.95

    def test_every_point_that_stands_alone_is_found_under_the_pointer(self, probed, opened):
        layer, index, _ = flagged(probed.report)
        points = probed.report.layers[layer].points[index]
        alone = (torch.cdist(points, points).fill_diagonal_(9).amin(1) > 0.3).nonzero()[:, 0].tolist()
        assert len(alone) >= 2
        page = opened(probed.report, address(layer, index))
        for sample in alone:
            page.page.mouse.move(*page.place_of(points[sample]))
            assert page.text(".sample-link") == f"Sample {sample}"

    def test_a_click_pins_and_the_address_keeps_it(self, probed, opened):
        report = probed.report
        layer, index, sample = flagged(report)
        page = opened(report, address(layer, index))
        page.page.mouse.click(*page.place_of(report.layers[layer].points[index, sample]))
        page.page.mouse.move(2, 2)
        page.settle()
        assert page.text(".inspected") == f"Sample {sample}\npinned"
        link = page.hash
        page.open(link)
        assert page.text(".inspected") == f"Sample {sample}\npinned"
        page.press("Escape")
        assert page.hash == address(layer, index)
        assert "Hover a point" in page.text(".inspector")

    def test_a_right_click_and_a_press_from_elsewhere_pin_nothing(self, probed, opened):
        layer, index, sample = flagged(probed.report)
        page = opened(probed.report, address(layer, index))
        place = page.place_of(probed.report.layers[layer].points[index, sample])
        page.page.mouse.click(*place, button="right")
        page.page.mouse.move(2, 2)
        page.page.mouse.down()
        page.page.mouse.move(*place)
        page.page.mouse.up()
        page.settle()
        assert page.hash == address(layer, index)

    def test_a_label_stands_with_its_sample_and_colours_the_points(self, probed, opened):
        layer, index, sample = flagged(probed.report)
        labels = ["even" if place % 2 == 0 else "odd" for place in range(400)]
        page = opened(probed.report, address(layer, index, f"?pin={sample}"), labels=labels)
        assert page.text(".inspector .label") == labels[sample]
        assert "cluster 1" in page.text(".groups")
        page.page.select_option(".toolbar select", "label")
        page.settle()
        assert "even\n200" in page.text(".groups")
        assert page.hash.endswith(f"?pin={sample}&by=label") or page.hash.endswith(f"?by=label&pin={sample}")

    def test_keys_step_through_filters_and_outliers(self, probed, opened):
        report = probed.report
        order = clearest_filters(report, 1000)
        page = opened(report, address(*order[0], "?verdict=anomaly&sort=clearest"))
        page.press("ArrowRight")
        assert page.hash.startswith(address(*order[1]))
        assert f"2 of {len(order)}" in page.text(".steps")
        page.press("ArrowLeft")
        assert page.hash.startswith(address(*order[0]))
        own, index = report.layers[order[0][0]], order[0][1]
        apart = set((own.outliers | own.isolated)[index].nonzero()[:, 0].tolist())
        seen = set()
        for _ in apart:
            page.press("o")
            seen.add(int(page.text(".sample-link").removeprefix("Sample ")))
        assert seen == apart

    def test_zooming_survives_a_pin_and_is_undone(self, probed, opened):
        layer, index, _ = flagged(probed.report)
        page = opened(probed.report, address(layer, index))
        scatter = page.page.locator("canvas.scatter")
        whole = scatter.get_attribute("data-view")
        page.press("+")
        near = scatter.get_attribute("data-view")
        page.press("o")
        assert scatter.get_attribute("data-view") == near != whole
        scatter.hover(position={"x": 200, "y": 200})
        page.page.mouse.wheel(0, -100)
        page.settle()
        assert scatter.get_attribute("data-view") != near
        before = [float(value) for value in scatter.get_attribute("data-view").split(",")]
        box = scatter.bounding_box()
        page.page.mouse.move(box["x"] + 200, box["y"] + 200)
        page.page.mouse.down()
        page.page.mouse.move(box["x"] + 260, box["y"] + 200, steps=4)
        page.page.mouse.up()
        after = [float(value) for value in scatter.get_attribute("data-view").split(",")]
        assert after[0] < before[0]
        assert after[1] - after[0] == pytest.approx(before[1] - before[0])
        assert after[2:] == before[2:]
        page.press("0")
        assert scatter.get_attribute("data-view") == whole

    def test_what_is_known_of_it_is_said_in_words(self, probed, opened):
        report = probed.report
        layer, index, _ = flagged(report)
        own = report.layers[layer]
        text = opened(report, address(layer, index)).text(".facts")
        assert f"K = {int(own.n_components[index])}" in text
        assert f"{100 * own.smallest_share[index]:.3g}% of the samples" in text
        assert f"{100 * own.explained[index]:.3g}% of the maps' variance" in text
        assert f"{100 * own.sparsity[index]:.3g}% of its map's values" in text

    def test_its_outliers_and_most_and_least_active_samples_are_strips(self, probed, opened):
        report = probed.report
        layer, index, _ = flagged(report)
        page = opened(report, address(layer, index))
        kept = report.pictures.maps[layer]
        strips = [strip.split() for strip in page.page.locator(".strip").all_inner_texts()]
        own = report.layers[layer]
        isolated = (own.isolated & ~own.outliers)[index].nonzero()[:, 0].tolist()
        expected = [isolated, own.outliers_of(index), kept.most[index].tolist(), kept.least[index].tolist()]
        assert strips == [[str(sample) for sample in samples] for samples in expected if samples]
        page.page.locator("section", has_text="Most active").locator("button").first.click()
        page.settle()
        assert page.text(".inspected").startswith(f"Sample {int(kept.most[index, 0])}\n")


class TestLists:
    def test_filters_are_sorted_and_filtered(self, probed, opened):
        report = probed.report
        page = opened(report, "#/filters")
        page.page.get_by_label("Verdict").select_option("anomaly")
        page.settle()
        page.page.get_by_label("Sort by").select_option("clearest")
        page.settle()
        shown = page.page.eval_on_selector_all("a.card", "cards => cards.map(card => card.getAttribute('href'))")
        order = clearest_filters(report, 24)
        assert shown == [address(*place, "?verdict=anomaly&sort=clearest") for place in order]
        page.page.get_by_label("Layer").select_option(label="layer 2")
        page.settle()
        assert len(report.layers["2"].filters("anomaly")) == page.page.locator("a.card").count()
        page.page.locator("a.card").first.click()
        page.settle()
        assert f"1 of {len(report.layers['2'].filters('anomaly'))}, anomaly filters of layer 2" in page.text(".steps")

    def test_a_choice_without_filters_says_so(self, probed, opened):
        assert "No filter is like that" in opened(probed.report, "#/filters?verdict=dead&layer=0").text()

    def test_samples_are_sorted_by_score_and_by_votes(self, probed, opened):
        report = probed.report
        votes, scores = report.outlier_samples, report.outlier_scores
        page = opened(report, "#/samples")
        tiles = page.page.locator("a.tile").all_inner_texts()
        expected = [
            f"{i} score {scores[i]:.1f}\n{votes[i]} vote{'s' * (votes[i] != 1)}" for i in report.by_outlier_score
        ]
        assert [tile.strip() for tile in tiles] == expected[: len(tiles)]
        page.page.get_by_label("Sort by").select_option("votes")
        page.settle()
        assert page.hash == "#/samples?sort=votes"
        tiles = page.page.locator("a.tile").all_inner_texts()
        counts = [int(tile.split("\n")[1].split()[0]) for tile in tiles]
        assert counts == sorted(votes, reverse=True)[: len(counts)]

    def test_from_a_list_the_arrows_keep_to_its_order(self, probed, opened):
        votes = probed.report.outlier_samples
        order = sorted(range(400), key=lambda sample: -votes[sample])
        most = [sample for sample in order if votes[sample] > votes[order[3]]]
        page = opened(probed.report, "#/samples?sort=votes")
        page.page.locator("a.tile").first.click()
        page.settle()
        assert "by most votes" in page.text(".steps")
        found = [page.text("h1")]
        for _ in most[1:]:
            page.press("ArrowRight")
            found.append(page.text("h1"))
        assert set(found) == {f"Sample {sample}" for sample in most}
        page.go("#/sample/5")
        page.press("ArrowRight")
        assert page.text("h1") == "Sample 6"

    def test_without_scores_the_samples_with_most_votes_come_first(self, probed, opened):
        layers = {name: replace(layer, outlier_scores=torch.zeros(0)) for name, layer in probed.report.layers.items()}
        votes = probed.report.outlier_samples
        first = max(range(400), key=lambda sample: (votes[sample], -sample))
        page = opened(replace(probed.report, layers=layers), "#/samples")
        assert page.text("a.tile >> nth=0") == f"{first} {votes[first]} votes"
        assert page.text("[role=status]") == f"{sum(count > 0 for count in votes)} samples"

    def test_a_sample_leads_to_its_filters_and_back(self, probed, opened):
        report = probed.report
        votes = report.outlier_samples
        first = report.by_outlier_score[0]
        page = opened(report, "#/samples")
        page.page.locator("a.tile").first.click()
        page.settle()
        assert page.text("h1") == f"Sample {first}"
        assert "(0 left)" not in page.text()
        assert f"an outlier of {votes[first]} filters" in page.text(".sample")
        assert f"outlier score is {report.outlier_scores[first]:.1f}" in page.text(".sample")
        page.page.locator("a.card").first.click()
        page.settle()
        assert page.text(".inspected") == f"Sample {first}\npinned"
        page.page.locator(".sample-link").click()
        page.settle()
        assert page.text("h1") == f"Sample {first}"

    def test_what_is_not_there_is_said(self, probed, opened):
        page = opened(probed.report)
        for wrong in ("filter/nothing/0", "filter/0/99", "sample/400", "sample/0.5", "elsewhere", "filter/%E0/0"):
            page.go(f"#/{wrong}")
            assert "nothing of that name" in page.text(), wrong

    def test_a_pin_that_is_not_there_is_none(self, probed, opened):
        page = opened(probed.report, "#/filter/0/0?pin=400")
        assert "pinned" not in page.text()
        for wrong in ("-1", "0.5", "nothing"):
            page.go("#/filter/0/0?pin=7")
            assert page.text(".inspected").endswith("pinned")
            page.go(f"#/filter/0/0?pin={wrong}")
            assert "pinned" not in page.text()


class TestEverywhere:
    PAGES = ("", "#/filters", "#/filter/0/1?pin=3", "#/samples", "#/sample/3")

    @pytest.mark.parametrize("width", [360, 820, 1280])
    def test_no_page_is_wider_than_its_window(self, probed, opened, width):
        page = opened(probed.report, width=width, labels=list(range(400)), title="A long title " * 12)
        for place in self.PAGES:
            page.go(place)
            assert page.page.evaluate("document.documentElement.scrollWidth") <= width, place

    def test_on_a_phone_the_image_stands_above_the_plot(self, probed, opened):
        layer, index, sample = flagged(probed.report)
        page = opened(probed.report, address(layer, index), width=390)
        plot = page.page.locator("canvas.scatter").bounding_box()["y"]
        page.page.mouse.click(*page.place_of(probed.report.layers[layer].points[index, sample]))
        page.settle()
        box = page.page.locator(".pair").bounding_box()
        assert box["y"] + box["height"] < page.page.locator("canvas.scatter").bounding_box()["y"]
        page.page.evaluate("window.scrollTo(0, 0)")
        assert page.page.locator("canvas.scatter").bounding_box()["y"] == plot  # it has not moved away

    def test_dark_where_the_system_is(self, probed, opened):
        def grounds(scheme: str) -> list[int]:
            page = opened(probed.report, "#/filter/0/1", scheme=scheme)
            colour = page.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
            return [int(value) for value in colour.removeprefix("rgb(").removesuffix(")").split(",")]

        assert max(grounds("dark")) < 60
        assert min(grounds("light")) > 230

    def test_the_theme_may_change_while_it_is_open(self, probed, opened):
        page = opened(probed.report)
        cells = "canvas.cells >> nth=0"
        light = page.pixels(cells)
        page.page.eval_on_selector("main > *", "element => { element.dataset.old = true; }")
        page.page.emulate_media(color_scheme="dark")
        page.page.wait_for_selector("main > *:first-child:not([data-old])")
        page.settle()
        assert page.pixels(cells) != light

    def test_it_is_used_by_keyboard_alone(self, probed, opened):
        page = opened(probed.report)
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

    def test_hostile_names_stay_text(self, opened):
        inputs = torch.rand(60, 1, 6, 6, generator=torch.Generator().manual_seed(0))
        inputs[7] *= 30
        model = nn.Sequential()
        name = HOSTILE.replace(".", "")  # a module's name has no dots
        model.add_module(name, nn.Conv2d(1, 3, 3, bias=False))
        nn.init.ones_(model[0].weight)
        settings = AnalysisSettings(n_init=2, rare_fraction=0.05)
        report = analyze(model, inputs, settings=settings, keep_images=True)
        assert report.count == 3
        page = opened(report, title=HOSTILE, labels=[HOSTILE] * 60, name="<img src=x onerror=alert(1)>.html")
        assert page.page.title().endswith(HOSTILE)
        for place in ("", "#/filters", f"#/filter/{quote(name, safe='')}/0?pin=7&by=label", "#/samples", "#/sample/7"):
            page.go(place)
            assert HOSTILE in page.text("#top")
            assert page.page.locator("img, b:not(.stat b)").count() == 0
        assert page.text("main .label") == HOSTILE

    def test_its_policy_runs_no_code_but_its_own(self, chromium, probed, tmp_path):
        probed.report.save_html(tmp_path / "browser.html")
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
                document.body.insertAdjacentHTML("beforeend", '<img src="x" onerror="window.ran = true">');
            })"""
        )
        assert sorted(violated) == ["img-src", "script-src-attr"]
        assert page.evaluate("window.ran") is None
        page.close()


class TestOtherInputs:
    SETTINGS = AnalysisSettings(n_init=2)

    def test_without_images_points_are_still_there(self, probed, opened):
        report = AnomalyReport.from_dict(probed.report.to_dict())
        layer, index, sample = flagged(report)
        page = opened(report, address(layer, index))
        page.page.mouse.move(*page.place_of(report.layers[layer].points[index, sample]))
        assert page.text(".sample-link") == f"Sample {sample}"
        assert page.page.locator(".inspector canvas").count() == 0
        assert "null" not in page.text(".inspector")
        page.go(f"#/sample/{sample}")
        assert "no images" in page.text()

    def test_one_sample(self, trained, opened):
        with pytest.warns(UserWarning, match="at least"):
            report = analyze(trained.model, trained.probe[:1], settings=self.SETTINGS, keep_images=True)
        page = opened(report, "#/sample/0")
        assert page.pixels(".big-image canvas") == report.pictures.images[0].expand(-1, -1, 3).tolist()
        page.go("#/filter/0/0")
        assert "There are no points to show" in page.text()

    def test_linear_layers_have_maps_of_one_value(self, trained, opened):
        report = analyze(trained.model, trained.probe, layers=["9"], settings=self.SETTINGS, keep_images=True)
        page = opened(report, "#/filter/9/3?pin=5")
        assert "a single value" in page.text(".facts")
        assert len(page.pixels(".pair figure:nth-child(2) canvas")) == 1

    def test_signals_are_drawn_as_curves(self, opened):
        time = torch.linspace(0, 1, 200)
        signals = torch.stack([torch.sin(2 * torch.pi * (1 + place % 5) * time) for place in range(60)])[:, None]
        report = analyze(ones(nn.Conv1d(1, 4, 5)), signals, settings=self.SETTINGS, keep_images=True)
        page = opened(report, "#/sample/0")
        drawn = torch.tensor(page.pixels(".big-image canvas")).sum(2) < 700
        heights = drawn.float().argmax(0)  # from the top, column by column: one period of a sine
        assert drawn.any(0).all()
        assert 12 <= int(heights.argmin()) <= 20
        assert 44 <= int(heights.argmax()) <= 52

    def test_volumes_show_their_middle_slice(self, opened):
        volumes = torch.rand(60, 1, 5, 6, 7, generator=torch.Generator().manual_seed(0)).mul(255).to(torch.uint8)
        report = analyze(_AsFloat(ones(nn.Conv3d(1, 2, 3))), volumes, settings=self.SETTINGS, keep_images=True)
        page = opened(report, "#/sample/9")
        assert page.pixels(".big-image canvas") == volumes[9, 0, 2, :, :, None].expand(-1, -1, 3).tolist()
        page.go("#/filter/conv/0?pin=9")
        assert page.page.locator(".pair canvas").count() == 2

    def test_nan_images(self, opened):
        images = torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        images[4] = torch.nan
        with pytest.warns(UserWarning, match="NaN"):
            report = analyze(ones(nn.Conv2d(3, 2, 3)), images, settings=self.SETTINGS, keep_images=True)
        page = opened(report)
        assert "nonfinite" in page.text(".legend")
        page.go("#/filter//0")
        assert "NaN or infinite" in page.text()
        page.go("#/sample/4")
        assert page.pixels(".big-image canvas") == [[[0, 0, 0]] * 8] * 8

    def test_ten_thousand_samples(self, opened):
        images = torch.rand(10_000, 1, 6, 6, generator=torch.Generator().manual_seed(0))
        images[1234] *= 20
        settings = AnalysisSettings(n_init=1, max_components=2)
        report = analyze(ones(nn.Conv2d(1, 2, 3)), images, settings=settings, keep_images=True)
        page = opened(report, "#/filter//0")
        page.page.mouse.move(*page.place_of(report.layers[""].points[0, 1234]))
        assert page.text(".sample-link") == "Sample 1234"
        page.go("#/samples?show=all")
        assert "10,000 samples" in page.text(".choices")

    def test_a_report_without_layers(self, opened):
        page = opened(AnomalyReport({}, 0, notes={"no layers": "The model has no convolution."}))
        assert "No layer was analysed" in page.text()
        assert "The model has no convolution." in page.text(".notes")


class _AsFloat(nn.Module):
    """Takes uint8."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x.float() / 255)


def test_a_notebook_shows_the_page_itself_and_a_console_its_path(probed, chromium, tmp_path):
    shown = probed.report.browse(title="In a notebook")
    assert str(shown) == repr(shown) == str(shown.path)
    assert shown.path.read_text().startswith("<!doctype html>")
    notebook = tmp_path / "notebook.html"
    notebook.write_text(f"<!doctype html><meta charset=utf-8>{shown._repr_html_()}", encoding="utf-8")
    page = chromium.new_page()
    page.goto(notebook.as_uri())
    frame = page.frame_locator("iframe")
    frame.locator("html[data-shown]").wait_for()
    frame.get_by_role("link", name="Filters", exact=True).click()
    assert frame.locator("h1").inner_text() == "Filters"
    frame.locator("a.card").first.click()
    assert frame.locator("h1").inner_text() == "Filter 0 of layer 0"
    page.close()
