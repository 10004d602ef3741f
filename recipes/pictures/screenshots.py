"""Run the quickstart and photograph what TensorBoard shows of it: `python -m recipes.pictures.screenshots`.

Needs a Chromium (Debian: `apt-get install chromium`). The pictures are those in the README.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from recipes import quickstart
from recipes.common.options import one_sentence_errors
from recipes.pictures.browser import Browser

__all__ = ["charts", "figures", "parse", "run", "tensorboard"]

# Everything in TensorBoard's pages hides in shadow trees, which `querySelectorAll` does not enter.
_ALL = """
const all = (selector, root = document) => [...root.querySelectorAll("*")].flatMap(element => [
    ...(element.matches(selector) ? [element] : []),
    ...(element.shadowRoot ? all(selector, element.shadowRoot) : []),
]);
const shown = element => element.getClientRects().length > 0;
const box = element => (({x, y, width, height}) => ({x, y, width, height}))(element.getBoundingClientRect());
"""


@contextlib.contextmanager
def tensorboard(log_dir: str | Path, time_limit: float = 60) -> Iterator[str]:
    """Starts a TensorBoard on a free port of this machine, and ends it.

    Args:
        log_dir: The log directory.
        time_limit: The longest that it may take to have read the logs (seconds).

    Yields:
        Its address, once it has charts and images to show.

    Raises:
        RuntimeError: If it ends without serving, or is not ready in time.
    """
    folder = Path(log_dir).resolve()
    command = [sys.executable, "-m", "tensorboard.main", "--host", "127.0.0.1", "--port", "0", "--logdir", folder.name]
    process = subprocess.Popen(
        command, cwd=folder.parent, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    end = threading.Timer(time_limit, os.killpg, (process.pid, signal.SIGKILL))
    end.start()
    said: list[str] = []
    try:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"http://\S+", line.partition(" at ")[2]):
                break
        else:
            raise RuntimeError(f"TensorBoard did not start within {time_limit:g} seconds:\n{''.join(said)}")
        # It reads the logs beside serving, and a page that is opened before it has them stays empty.
        while not _has_all(found[0]):
            if not end.is_alive():
                raise RuntimeError(f"TensorBoard found no charts and images in {log_dir} in {time_limit:g} seconds.")
            time.sleep(0.1)  # between two looks
        end.cancel()
        yield found[0]
    finally:
        end.cancel()
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=10)
        with contextlib.suppress(ProcessLookupError):  # whatever is left of it
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _has_all(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}data/plugins_listing", timeout=10) as answer:
            listing = json.load(answer)
    except OSError:
        return False
    return all(listing[plugin]["enabled"] for plugin in ("custom_scalars", "images"))


def charts(browser: Browser, address: str) -> dict[str, dict[str, Any]]:
    """Opens the tab "Custom scalars" and waits until its charts are drawn.

    Returns:
        For each chart's title: its `curves`, the `points` of each line as drawn (a curve is two lines, one of them
        smoothed), whether the axes have `labels`, and its `box` in the page.
    """
    browser.open(f"{address}#custom_scalars")
    found: list[dict[str, Any]] = browser.wait_for(
        f"""(() => {{ {_ALL}
            const charts = all("tf-custom-scalar-multi-line-chart-card").filter(shown).map(card => ({{
                title: all("tf-card-heading", card.shadowRoot)[0].displayName,
                curves: all(".match-list-entry", card.shadowRoot).map(
                    entry => entry.textContent.trim().split(/\\s+/)[1]),
                points: [...new Set(all("path.line", card.shadowRoot).map(line => line.getAttribute("d")))]
                    .filter(path => path).map(path => path.split("L").length),
                labels: all(".tick-label", card.shadowRoot).map(label => label.textContent),
                busy: all("tf-line-chart-data-loader", card.shadowRoot)[0].dataLoading,
                box: box(card),
            }}));
            const drawn = chart => chart.curves.length && chart.points.length >= chart.curves.length && !chart.busy;
            return charts.length && charts.every(drawn) && charts;
        }})()""",
        "the charts of TensorBoard's custom scalars",
    )
    return {chart.pop("title"): chart for chart in found}


def figures(browser: Browser, address: str) -> dict[str, dict[str, Any]]:
    """Opens the tab "Images" in actual size and waits until the images are there.

    Returns:
        For each image's tag: its `width` and `height` (pixels), its `step`, and its `box` in the page.
    """
    browser.open(f"{address}#images")
    label = "Show actual image size"
    browser.wait_for(
        f"""(() => {{ {_ALL}
            const [choice] = all("paper-checkbox").filter(each => each.textContent.includes("{label}"));
            choice?.checked || choice?.click();
            return choice?.checked;
        }})()""",
        f"the choice '{label}'",
    )
    found: list[dict[str, Any]] = browser.wait_for(
        f"""(() => {{ {_ALL}
            const images = all("tf-image-loader").filter(shown).map(card => ({{
                tag: card.tag,
                image: all("img", card.shadowRoot)[0],
                step: Number(card.shadowRoot.textContent.match(/\\sstep\\s+([\\d,]+)/)?.[1].replaceAll(",", "")),
            }}));
            const ready = ({{image}}) => image?.complete && image.width && image.width == image.naturalWidth;
            return images.length && images.every(ready) && images.map(({{tag, image, step}}) => (
                {{tag, step, width: image.naturalWidth, height: image.naturalHeight, box: box(image)}}));
        }})()""",
        "the images of TensorBoard",
    )
    return {image.pop("tag"): image for image in found}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30, help="epochs of the quickstart, default: %(default)s")
    parser.add_argument("--pictures", default="docs/pictures", help="where they go, default: %(default)s")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Train, photograph, and write `tensorboard_charts.png` and `tensorboard_images.png`."""
    pictures = Path(options.pictures)
    pictures.mkdir(parents=True, exist_ok=True)
    with Browser(1480, 2000) as browser, tempfile.TemporaryDirectory() as folder:
        log_dir = Path(folder) / "logs"
        quickstart.run(quickstart.parse(["--epochs", str(options.epochs), "--log-dir", str(log_dir)]))
        with tensorboard(log_dir) as address:
            charts(browser, address)
            _show_all(browser)
            _photograph(browser, pictures / "tensorboard_charts.png")
            figures(browser, address)
            _photograph(browser, pictures / "tensorboard_images.png")


def _show_all(browser: Browser) -> None:
    """What a person clicks to see all of the charts.

    Logarithms show losses and counts in one chart, the list of curves below a chart says whose each marker is, and
    nothing of a curve is cut off as an outlier.
    """
    labels = f"(() => {{ {_ALL} return all('.tick-label').map(label => label.textContent).join(' '); }})()"
    before = browser.evaluate(labels)
    browser.evaluate(
        f"""(() => {{ {_ALL}
            all("paper-icon-button[title='Toggle y-axis log scale']")[0].click();
            all("paper-checkbox").filter(each => each.textContent.includes("Ignore outliers"))[0].click();
            all(".toggle-matches-button").forEach(each => each.click());
        }})()"""
    )
    browser.wait_for(f"{labels} != {json.dumps(before)}", "axes with logarithms")


def _photograph(browser: Browser, path: Path) -> None:
    """Write the page down to where its content ends, in 128 colours, which makes a small file."""
    bottom = browser.wait_for(
        f"""(() => {{ {_ALL}
            const moving = all("iron-collapse").some(each => each.transitioning);
            return !moving && Math.max(...all("tf-category-paginated-view").filter(shown).map(
                view => box(view).y + box(view).height));
        }})()""",
        "the page to come to rest",
    )
    box = {"x": 0, "y": 0, "width": 1480, "height": bottom + 40}
    picture = Image.open(io.BytesIO(browser.screenshot(box))).convert("RGB")
    picture.quantize(128, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {picture.width} x {picture.height} pixels, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    one_sentence_errors(run, parse)
