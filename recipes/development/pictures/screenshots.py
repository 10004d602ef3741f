"""Run the quickstart, and make pictures of its pages and of the figures that it logs.

`python -m recipes.development.pictures.screenshots` needs Playwright (`pip install playwright`) and a Chromium
(Debian: `apt-get install chromium`).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_anomaly import AnomalyReport
from recipes import quickstart
from recipes.common.options import one_sentence_errors

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_PAGE, _GAP = (860, 920), 20  # pixels
_FIGURES = {"outliers": (0, 0), "curves": (620, 0), "filters": (620, 500), "verdicts": (0, 900)}


@contextlib.contextmanager
def open_page() -> Iterator[Page]:
    """Open an empty page in the installed Chromium or Chrome; Playwright need not install one."""
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        raise FileNotFoundError(f"No browser was found. Looked for {', '.join(_BROWSERS)}; Debian's is `chromium`.")
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=browser, args=["--disable-gpu", "--disable-sync"]) as chromium,
    ):
        page = chromium.new_page(viewport={"width": _PAGE[0], "height": _PAGE[1]})
        page.set_default_timeout(60_000)  # milliseconds
        yield page


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", default="docs/pictures", help="folder of the pictures, default: %(default)s")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Run the quickstart and write `pages.png`, `run.png` and `tensorboard_images.png`."""
    pictures = Path(options.pictures).resolve()
    pictures.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(temporary)  # as the page shows the path of the checkpoint
        watcher = quickstart.main()
        assert watcher.report is not None
        folder = Path("logs/quickstart/version_0")
        photograph_pages(folder, _farthest(watcher.report), pictures / "pages.png")
        photograph_run(folder / "run.html", pictures / "run.png")
        join_figures(folder, pictures / "tensorboard_images.png")


def _farthest(report: AnomalyReport) -> str:
    """Return `LAYER/INDEX?pin=SAMPLE` of the isolated sample that lies farthest out."""
    distances = {
        f"{name}/{index}?pin={sample}": layer.points[index, sample].norm().item()
        for name, layer in report.layers.items()
        for index, sample in layer.isolated.nonzero().tolist()
    }
    return max(distances, key=distances.__getitem__)


def photograph_pages(folder: Path, shown: str, path: Path) -> None:
    """Write one picture of the gallery and the page of a filter `LAYER/INDEX`."""
    sides = []
    for file, address in (("outliers.html", ""), ("run.html", f"#/filter/{shown}")):
        with open_page() as page:
            page.goto(f"{(folder / file).resolve().as_uri()}{address}")
            page.wait_for_selector("html[data-shown]")
            page.locator("main :is(canvas, img)").first.wait_for()
            sides.append(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
    whole = Image.new("RGB", (2 * _PAGE[0] + _GAP, _PAGE[1]), "white")
    for place, side in enumerate(sides):
        whole.paste(side, (place * (_PAGE[0] + _GAP), 0))
    whole.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def photograph_run(file: Path, path: Path) -> None:
    """Write a picture of the page of a run: its sentences and curves."""
    with open_page() as page:
        page.goto(file.resolve().as_uri())
        page.wait_for_selector("html[data-shown]")
        picture = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    picture.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def join_figures(folder: Path, path: Path) -> None:
    """Write one picture of the figures of the last analysis, from TensorBoard's log."""
    log = EventAccumulator(str(folder)).Reload()
    whole = Image.new("RGB", (1320, 1180), "white")
    for name, corner in _FIGURES.items():
        logged = log.Images(f"anomaly_filters/{name}")[-1].encoded_image_string
        whole.paste(Image.open(io.BytesIO(logged)).convert("RGB"), corner)
    whole.save(path, optimize=True)


if __name__ == "__main__":
    one_sentence_errors(run, parse)
