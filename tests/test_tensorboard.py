"""A person opens TensorBoard after the quickstart: a real one, in a real browser."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from trainers import QUIET

from recipes import quickstart
from recipes.pictures import browser
from recipes.pictures.browser import Browser, find_chromium
from recipes.pictures.screenshots import charts, figures, tensorboard

EPOCHS = 4
RUN_COLOUR = (255, 112, 67)  # of the first run in TensorBoard's palette

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the logging"),
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine, nor could CI install Debian's"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A TensorBoard over the logs of a quickstart, and a browser."""
    log_dir = tmp_path_factory.mktemp("tensorboard") / "logs"
    quickstart.run(quickstart.parse(["--epochs", str(EPOCHS), "--log-dir", str(log_dir)]))
    with tensorboard(log_dir) as address, Browser(1480, 2000) as chromium:
        yield SimpleNamespace(address=address, browser=chromium)


def colours(browser: Browser, box: dict[str, float]) -> dict[tuple[int, int, int], int]:
    """How many pixels of a part of the page have which colour."""
    picture = Image.open(io.BytesIO(browser.screenshot(box))).convert("RGB")
    return {colour: count for count, colour in picture.getcolors(picture.width * picture.height)}


def test_the_overlay_has_all_three_curves_and_they_are_drawn(page: Any) -> None:
    found = charts(page.browser, page.address)
    assert list(found) == [
        "train_loss, val_loss, anomaly_filters/count",
        "train_loss, val_loss",
        "anomaly_filters/count",
    ]
    for title, chart in found.items():
        assert sorted(chart["curves"]) == sorted(title.split(", "))  # which is each curve once, and nothing else
        assert len(chart["points"]) == 2 * len(chart["curves"])  # as measured, and smoothed
        assert max(chart["points"]) == EPOCHS
        assert len(chart["labels"]) > 6
        assert colours(page.browser, chart["box"]).get(RUN_COLOUR, 0) > 100


def test_the_figures_are_shown_as_they_were_drawn(page: Any) -> None:
    found = figures(page.browser, page.address)
    assert list(found) == ["anomaly_filters/filters", "anomaly_filters/outliers", "anomaly_filters/verdicts"]
    assert len({figure["step"] for figure in found.values()}) == 1
    for tag, figure in found.items():
        assert figure["width"] >= 500, tag
        seen = colours(page.browser, figure["box"])
        assert sum(seen.values()) == figure["width"] * figure["height"], tag
        assert max(seen.values()) < 0.99 * sum(seen.values()), tag  # not a single colour
    verdicts = colours(page.browser, found["anomaly_filters/verdicts"]["box"])
    orange, pale = verdicts[(0xD5, 0x5E, 0x00)], verdicts[(0xC6, 0xDB, 0xEF)]
    assert min(orange, pale) > 1000


class TestBrowser:
    def test_a_wait_ends_in_an_error_that_says_what_for(self) -> None:
        with Browser() as chromium:
            chromium.open("data:text/html,<title>here</title>")
            assert chromium.wait_for("document.title", "the title") == "here"
            chromium.time_limit = 0.5
            with pytest.raises(TimeoutError, match=r"Waited 0.5 seconds for a miracle"):
                chromium.wait_for("document.title == 'there'", "a miracle")
            with pytest.raises(TimeoutError, match=r"did not answer Runtime.evaluate"):
                chromium.evaluate("new Promise(() => {})")

    def test_errors_of_a_page_are_raised(self) -> None:
        with Browser() as chromium:
            with pytest.raises(RuntimeError, match="nowhere is not defined"):
                chromium.evaluate("nowhere")
            with pytest.raises(RuntimeError, match=r"http://127.0.0.1:9/ could not be opened: net::ERR"):
                chromium.open("http://127.0.0.1:9/")

    def test_nothing_is_left_of_it(self) -> None:
        with Browser() as chromium:
            profile = chromium._profile.name
            assert profile in running()
        assert profile not in running()
        assert not Path(profile).exists()

    def test_without_a_browser_the_error_says_which_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(browser, "find_chromium", lambda: None)
        with pytest.raises(FileNotFoundError, match="Debian's is `chromium`"), Browser():
            pass


class TestTensorBoard:
    def test_an_empty_folder_is_no_endless_wait(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError, match=r"found no charts and images|did not start"), tensorboard(tmp_path, 6):
            pass
        assert f"--logdir {tmp_path.name}" not in running()


def running() -> str:
    """The command lines of all processes."""
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # a process that has ended meanwhile
            lines.append(file.read_text().replace("\0", " "))
    return "\n".join(lines)
