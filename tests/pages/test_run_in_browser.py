"""The page of a run in a real browser: sentences, curves, ticks, and links from samples to filters and back."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, unquote

import pytest
import torch
from torch.utils.data import TensorDataset
from trainers import quiet_trainer

from lightning_anomaly import (
    AnomalyFilterCallback,
    AnomalyReport,
    MemorizationCallback,
    MemorizationReport,
    save_run_page,
)
from lightning_anomaly.scores.sample_table import sample_table

HOSTILE = '/a/long/path<img src=x onerror="document.title=1">"\'&</script><b>`'
LOSSES = [2.0, 1.5, 1.25, 1.0, 1.125, 1.75]
RISES = [0.0, 0.0, 0.0, 0.0, 0.25, 0.5]


def run_of(report: AnomalyReport, folder: Path, name: str = "train/{}.png") -> Any:
    """Make a Trainer whose callbacks have this report, ten training labels and six validations."""
    filters, output = AnomalyFilterCallback(), MemorizationCallback()
    filters.report = report
    columns = {"name": [name.format(p) for p in range(10)], "class": [name.format("a")] * 10, "looks_like": ["b"] * 10}
    columns |= {"since": [0] * 10, "doubt": [10.0 - p for p in range(10)], "in_doubt": [p < 3 for p in range(10)]}
    samples, pictures = sample_table(columns, range(10)).assign(path=""), torch.zeros(10, 8, 8, 1, dtype=torch.uint8)
    output.report = MemorizationReport(10, 10, samples=samples, pictures=pictures)
    for epoch, (loss, rise) in enumerate(zip(LOSSES, RISES, strict=True)):
        place = {"epoch": epoch, "step": 10 * epoch}
        seen = {
            "analyzed": True,
            "clustered": True,
            "logged": {"val_loss": loss, "val_acc": (0.25, 0.75, 0.5)[min(epoch, 2)]},
        }
        filters.history.append({**place, **seen, "metrics": report.metrics()})
        output.history.append({**place, "compares_output": True, "metrics": {"rise": rise}})
    trainer = quiet_trainer(folder, filters, output)
    trainer.fit_loop.epoch_progress.current.processed = len(LOSSES)
    return SimpleNamespace(save_html=lambda path, **options: save_run_page(trainer, path, **options))


@pytest.fixture
def run(opened: Callable[..., Any], report: AnomalyReport, tmp_path: Path) -> Any:
    return opened(run_of(report, tmp_path))


def value(page: Any, name: str) -> str:
    return page.page.locator(".curves figure .badge", has_text=name).locator("b").inner_text()


def test_the_run_is_told_and_the_keyboard_moves_through_its_curves(run: Any) -> None:
    text = run.text(".story")
    for told in ("epoch 3: 1.", "opened in epoch 4", "25%", "3 of 10 training labels", "no early stopping"):
        assert told in text
    todo = run.text(".todo").split("\n")
    assert [line.split()[0] for line in todo[:2]] == ["Keep", "3"]  # weights, labels
    assert {panel.split("\n")[0] for panel in run.page.locator(".curves figure").all_inner_texts()} >= {
        "Loss", "val_acc", "Gap", "Anomaly filters", "Isolated filters"
    }  # fmt: skip
    assert "best 75%, epoch 1" in run.text("figure:has-text('val_acc') figcaption")
    assert (value(run, "val_loss"), value(run, "rise")) == ("1.75", "50%")
    run.press("ArrowLeft")
    run.press("ArrowLeft")
    assert (run.text(".curves [role=status]"), value(run, "val_loss"), value(run, "rise")) == ("epoch 3", "1", "0%")
    area = run.page.locator(".curve-area").first.bounding_box()
    run.page.mouse.move(area["x"] + area["width"] / 5 + 2, area["y"] + 9)
    assert (run.text(".curves [role=status]"), value(run, "val_loss")) == ("epoch 1", "1.5")
    assert {"lowest val_loss: epoch 3", "gap opened: epoch 4"} <= {*run.text(".curves > .legend").split("\n")}


@pytest.mark.slow
class TestRun:
    def test_a_sample_leads_to_its_filters_and_back(self, run: Any, report: AnomalyReport) -> None:
        card = run.page.locator(".card:has(.respond a)").first
        run.go("#/strangest%20samples")
        name = card.locator(".verdicts + .cut").inner_text()
        sample = int(name.removeprefix("sample "))
        card.locator(".respond a").first.click()
        run.settle()
        _, _, layer, index = unquote(run.hash.partition("?")[0]).split("/")
        chosen = report.layers[layer]
        assert (chosen.isolated | chosen.outliers)[int(index), sample]
        assert run.text(".inspected") == f"Sample {sample}\npinned"
        run.page.locator(".sample-link").click()
        run.settle()
        assert run.text("h1") == f"Sample {sample}"
        assert run.page.locator("nav [aria-current]").inner_text().startswith("Samples")

    def test_ticks_of_all_lists_go_into_one_file_that_the_code_beside_them_reads(
        self, run: Any, report: AnomalyReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run.go("#/training%20labels")
        run.page.locator("[data-verdict=ticked]").nth(1).check()
        run.go(f"#/sample/{report.by_outlier_score[0]}")
        run.press("x")
        for key, place in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1)):
            run.press(key)
            assert run.text("h1") == f"Sample {report.by_outlier_score[place]}"
        run.go("#/ticked")
        assert run.page.locator(".card").count() == 2
        rows = run.saved("Save the lists")
        with (tmp_path / "verdicts.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        monkeypatch.chdir(tmp_path)
        known: dict[str, Any] = {"train": TensorDataset(torch.arange(10))}
        exec(run.text("pre"), known)
        assert [int(item) for (item,) in known["train"]] == [0, *range(2, 10)]
        ticked = [(row["list"].split(";")[0], int(row["position"])) for row in rows if row["verdict"]]
        assert ticked == [("training labels", 1), ("strangest samples", report.by_outlier_score[0])]
        assert len(rows) == 10 + report.n_samples

    def test_filters_that_agree_come_first_and_are_listed(self, run: Any, report: AnomalyReport) -> None:
        run.press("5")
        heading = run.text("h2 >> nth=0")
        assert heading.split()[1:3] == ["filters", "agree"]
        cards = run.page.locator("section:first-of-type a.card").count()
        assert 2 <= cards <= int(heading.split()[0])
        run.go("#/filters?agree=0")
        assert run.text("[role=status]") == f"{heading.split()[0]} filters"

    def test_hostile_names_are_text_in_a_narrow_window(
        self, opened: Callable[..., Any], report: AnomalyReport, tmp_path: Path
    ) -> None:
        layers = {HOSTILE + name: layer for name, layer in report.layers.items()}
        maps = {HOSTILE + name: kept for name, kept in report.maps.items()}
        names = [f"{HOSTILE}{sample}" for sample in range(report.n_samples)]
        hostile = replace(report, layers=layers, maps=maps, columns={**report.columns, "name": names, "class": names})
        options = {"width": 360, "title": HOSTILE, "name": "<img src=x onerror=alert(1)>.html"}
        page = opened(run_of(hostile, tmp_path, HOSTILE + "{}"), **options)
        a_filter = f"filter/{quote(HOSTILE + '0', safe='')}/0?pin=7&by=label"
        lists = "training%20labels", "strangest%20samples", "singled%20out", "filters"
        for place in ("run", *lists, "overview", a_filter, "sample/7"):
            page.go(f"#/{place}")
            assert page.page.evaluate("document.documentElement.scrollWidth") <= 360, place
            assert page.page.locator("img:not(.frame img), b:not(.stat b, .badge b)").count() == 0
            assert HOSTILE.partition("`")[0] in page.text("body")
