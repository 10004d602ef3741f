"""A real TensorBoard in a real browser shows the figures of the quickstart."""

import io
from collections.abc import Iterator

import pytest
from PIL import Image
from playwright.sync_api import Page
from trainers import SMALL_RUNS

from recipes import quickstart
from recipes.development.pictures.browser import figures, find_chromium, open_page, tensorboard

pytestmark = [
    *SMALL_RUNS,
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine, nor could CI install Debian's"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Page]]:
    """A TensorBoard of a quickstart's logs, and a browser."""
    log_dir = tmp_path_factory.mktemp("tensorboard") / "logs"
    quickstart.main(epochs=2, log_dir=str(log_dir))
    with tensorboard(log_dir) as address, open_page(1480, 4000) as empty:
        yield address, empty


def test_figures_are_shown_in_their_size(page: tuple[str, Page]) -> None:
    address, opened = page
    found = figures(opened, address)
    always = [f"anomaly_filters/{name}" for name in ("curves", "outliers", "verdicts")]
    assert len({found[name]["step"] for name in always}) == 1  # the figure of anomaly filters may be of an earlier step
    for figure in found.values():
        assert figure["width"] >= 500
        picture = Image.open(io.BytesIO(opened.screenshot(clip=figure["box"], full_page=True)))
        assert picture.size == (figure["width"], figure["height"])
        assert len(picture.getcolors(picture.width * picture.height)) > 20
