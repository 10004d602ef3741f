"""A person opens TensorBoard after the quickstart: a real one, in a real browser."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page
from trainers import SMALL_RUNS

from lightning_anomaly.plots.style import VERDICT_COLOURS
from recipes import quickstart
from recipes.pictures import browser
from recipes.pictures.browser import charts, figures, find_chromium, open_page, tensorboard

EPOCHS = 4
RUN_COLOUR = (255, 112, 67)  # of the first run in TensorBoard's palette

pytestmark = [
    *SMALL_RUNS,
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine, nor could CI install Debian's"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Page]]:
    """A TensorBoard over the logs of a quickstart, and a browser."""
    log_dir = tmp_path_factory.mktemp("tensorboard") / "logs"
    watcher = quickstart.main(epochs=EPOCHS, log_dir=str(log_dir))
    assert {entry["metrics"]["fraction"] for entry in watcher.history} == {0}
    with tensorboard(log_dir) as address, open_page(1480, 3000) as empty:
        yield address, empty


def colours(page: Page, box: dict[str, float]) -> dict[tuple[int, int, int], int]:
    """How many pixels of a part of the page have which colour."""
    picture = Image.open(io.BytesIO(page.screenshot(clip=box, full_page=True))).convert("RGB")
    return {colour: count for count, colour in picture.getcolors(picture.width * picture.height)}


def test_the_overlay_has_all_three_curves_and_they_are_drawn(page: tuple[str, Page]) -> None:
    address, opened = page
    found = charts(opened, address)
    assert list(found) == ["train_loss, val_loss, anomaly_filters/fraction"]
    for title, chart in found.items():
        assert sorted(chart["curves"]) == sorted(title.split(", "))  # which is each curve once, and nothing else
        # As measured, and smoothed; the fraction is 0 throughout, and a constant is not smoothed.
        assert len(chart["points"]) == 2 * len(chart["curves"]) - 1
        assert max(chart["points"]) == EPOCHS
        assert len(chart["labels"]) > 6
        assert colours(opened, chart["box"]).get(RUN_COLOUR, 0) > 100


def test_the_figures_are_shown_as_they_were_drawn(page: tuple[str, Page]) -> None:
    address, opened = page
    found = figures(opened, address)
    assert {"anomaly_filters/outliers", "anomaly_filters/verdicts", "two_sample/layers"} <= set(found)
    assert len({figure["step"] for figure in found.values()}) == 1
    for tag, figure in found.items():
        assert figure["width"] >= 500, tag
        seen = colours(opened, figure["box"])
        assert sum(seen.values()) == figure["width"] * figure["height"], tag
        assert max(seen.values()) < 0.99 * sum(seen.values()), tag  # not a single colour
    verdicts = colours(opened, found["anomaly_filters/verdicts"]["box"])
    shades = {name: verdicts.get(tuple(bytes.fromhex(colour[1:])), 0) for name, colour in VERDICT_COLOURS.items()}
    assert shades["normal"] > 1000
    assert shades["normal, isolated"] + shades["anomaly, isolated"] > 1000


def test_without_a_browser_the_error_says_which_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser, "find_chromium", lambda: None)
    with pytest.raises(FileNotFoundError, match="Debian's is `chromium`"), open_page(800, 600):
        pass


def test_an_empty_folder_is_no_endless_wait(tmp_path: Path) -> None:
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
