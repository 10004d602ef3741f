"""Run the quickstart and take screenshots of its pages and of TensorBoard.

`python -m recipes.development.pictures.screenshots` needs Playwright (`pip install playwright`) and a Chromium
(Debian: `apt-get install chromium`).
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

from lightning_anomaly import AnomalyReport
from recipes import quickstart
from recipes.common.options import one_sentence_errors
from recipes.development.pictures.browser import IN_PAGE, figures, open_page, tensorboard

_WIDTH, _HEIGHT = 1150, 3000  # pixels
_PAGE, _GAP = (860, 920), 20
_CURVES = "val_loss", "filters/count", "rise"
_CARDS = 1440, 700  # pixels, as wide as three cards of curves


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", default="docs/pictures", help="folder of the pictures, default: %(default)s")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Run the quickstart and write `pages.png`, `run.png`, `tensorboard_images.png` and `tensorboard_curves.png`."""
    pictures = Path(options.pictures)
    pictures.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        log_dir = Path(temporary) / "logs"
        watcher = quickstart.main(log_dir=str(log_dir))
        assert watcher.report is not None
        folder = log_dir / "quickstart" / "version_0"
        photograph_pages(folder, _farthest(watcher.report), pictures / "pages.png")
        photograph_run(folder / "run.html", pictures / "run.png")
        with tensorboard(log_dir) as address:
            with open_page(_WIDTH, _HEIGHT) as page:
                figures(page, address)
                page.get_by_role("checkbox", name="Show actual image size").uncheck()
                _photograph(page, pictures / "tensorboard_images.png")
            photograph_curves(address, pictures / "tensorboard_curves.png")


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
        with open_page(*_PAGE) as page:
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
    with open_page(*_PAGE) as page:
        page.goto(file.resolve().as_uri())
        page.wait_for_selector("html[data-shown]")
        picture = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    picture.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def photograph_curves(address: str, path: Path) -> None:
    """Write a picture of the curves of the loss, of the anomaly filters and of the gap."""
    with open_page(*_CARDS) as page:
        page.goto(f"{address}#scalars&tagFilter={'%7C'.join(_CURVES)}&_smoothingWeight=0")
        page.get_by_role("checkbox", name="Ignore outliers in chart scaling").uncheck()
        _photograph(page, path, 1)  # the tags that match


def _photograph(page: Page, path: Path, categories: int | None = None) -> None:
    """Write a picture of TensorBoard's first or all categories of cards, in 128 colors, which makes a small file."""
    page.wait_for_timeout(2000)  # until the cards have moved to their places
    left, top, bottom = page.evaluate(
        f"""() => {{ {IN_PAGE}
            const boxes = all("tf-category-paginated-view").filter(shown).map(box)
                .slice(0, {categories or "undefined"});
            return [boxes[0].x, boxes[0].y, Math.max(...boxes.map(each => each.y + each.height))];
        }}"""
    )
    whole = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture = whole.crop((round(left), round(top), whole.width, round(bottom)))
    picture.quantize(128, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {picture.width} x {picture.height} pixels, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    one_sentence_errors(run, parse)
