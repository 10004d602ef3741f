"""A real Chromium that opens pages from disk, and a report with images."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from reports import table
from torch import Tensor

from lightning_anomaly import AnalysisSettings, AnomalyReport, OutlierReport, analyze

SWITCHES = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync"]  # fmt: skip


@pytest.fixture(scope="session")
def report(trained: Any) -> AnomalyReport:
    found = analyze(trained.model, trained.probe, settings=AnalysisSettings(n_init=2), keep_images=True)
    assert found.count > 3
    return found


@pytest.fixture(scope="module")  # a process can have only one Playwright at a time
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("no Chromium on this machine, nor could CI install Debian's")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=SWITCHES)
        yield browser
        browser.close()


class Opened:
    """A page as a user sees it; requests of other files than images beside it, errors and dialogs are `faults`."""

    def __init__(self, page: Any, file: Path) -> None:
        self.page = page
        self.file = file
        self.faults: list[str] = []
        page.on("console", lambda message: self.faults.append(message.text))
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("dialog", lambda dialog: (self.faults.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("request", self._requested)

    def _requested(self, request: Any) -> None:
        url, beside = request.url.partition("#")[0], f"{self.file.parent.as_uri()}/"
        image = request.resource_type == "image" and url.startswith(("data:", beside))
        if url != self.file.as_uri() and not image and not url.startswith("blob:"):
            self.faults.append(f"asked for {request.url}")

    def open(self, address: str = "") -> "Opened":
        self.page.goto("about:blank")
        self.page.goto(self.file.as_uri() + address)
        self.settle()
        return self

    def go(self, address: str) -> None:
        """Go to another address, as by a link, and wait for its page."""
        self.page.evaluate("address => { window.location.hash = address; }", address)
        self.settle()

    def press(self, key: str) -> None:
        self.page.keyboard.press(key)
        self.settle()

    def settle(self) -> None:
        """Wait until the page of the address is drawn; canvases are drawn when they have their sizes."""
        self.page.evaluate(  # Playwright's waiting functions evaluate text, which the page's policy forbids
            """() => new Promise((done, fail) => {
                setTimeout(() => fail(new Error("nothing is shown")), 30000);
                const all = (selector, drawn) => [...document.querySelectorAll(selector)].every(drawn);
                const look = () =>
                    document.documentElement.dataset.shown === window.location.hash
                    && all("canvas.cells", canvas => canvas.style.height)
                    && all("canvas.scatter", canvas => canvas.dataset.view)
                        ? done() : requestAnimationFrame(look);
                look();
            })"""
        )

    def text(self, selector: str = "main") -> str:
        return self.page.inner_text(selector)

    def find(self, text: str) -> None:
        self.press("/")
        self.page.keyboard.type(text)
        self.press("Enter")

    def saved(self, button: str = "Export the") -> list[dict[str, str]]:
        """Press a button that saves a CSV file, and return its rows."""
        with self.page.expect_download() as download:
            self.page.get_by_role("button", name=button).click()
        return table(Path(download.value.path()))

    @property
    def hash(self) -> str:
        return self.page.evaluate("window.location.hash")

    def place_of(self, point: Tensor) -> tuple[float, float]:
        """Return the position of a point of the shown filter on the screen (pixels)."""
        canvas = self.page.locator("canvas.scatter")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        low_x, high_x, low_y, high_y = map(float, canvas.get_attribute("data-view").split(","))
        left, top, width, height = map(float, canvas.get_attribute("data-area").split(","))
        x, y = point.tolist()
        return (
            box["x"] + left + (x - low_x) / (high_x - low_x) * width,
            box["y"] + top + (high_y - y) / (high_y - low_y) * height,
        )

    def pixels(self, selector: str) -> list[list[list[int]]]:
        """Read the red, green and blue values of an unscaled canvas, row by row."""
        return self.page.eval_on_selector(
            selector,
            """canvas => {
                const {width, height} = canvas;
                const data = canvas.getContext("2d").getImageData(0, 0, width, height).data;
                const pixel = i => Array.from(data.slice(4 * i, 4 * i + 3));
                return Array.from({length: height}, (_, row) =>
                    Array.from({length: width}, (_, column) => pixel(row * width + column)));
            }""",
        )


@pytest.fixture
def opened(chromium: Any, tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    """Write any report with `save_html` and open it; at the end no page may have faults."""
    pages: list[Opened] = []

    def write_and_open(
        report: AnomalyReport | OutlierReport,
        address: str = "",
        *,
        name: str = "browser.html",
        width: int = 1280,
        **options: Any,
    ) -> Opened:
        report.save_html(tmp_path / name, **options)
        page = chromium.new_page(viewport={"width": width, "height": 900})
        pages.append(Opened(page, tmp_path / name))
        return pages[-1].open(address)

    yield write_and_open
    faults = [fault for page in pages for fault in page.faults]
    for page in pages:
        page.page.close()
    assert faults == []
