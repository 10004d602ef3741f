"""TensorBoard in a headless Chromium that Playwright drives.

It is the installed Chromium (Debian: `apt-get install chromium`); Playwright need not install one.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_TIME_LIMIT = 60  # seconds, for everything
# TensorBoard's elements are in shadow trees, which `querySelectorAll` does not enter.
IN_PAGE = """
const all = (selector, root = document) => [...root.querySelectorAll("*")].flatMap(element => [
    ...(element.matches(selector) ? [element] : []),
    ...(element.shadowRoot ? all(selector, element.shadowRoot) : []),
]);
const shown = element => element.getClientRects().length > 0;
const box = element => (({x, y, width, height}) => ({x, y, width, height}))(element.getBoundingClientRect());
"""


def find_chromium() -> str | None:
    """Find the path of a Chromium or Chrome, or None."""
    return next((path for path in map(shutil.which, _NAMES) if path), None)


@contextlib.contextmanager
def open_page(width: int, height: int) -> Iterator[Page]:
    """Open an empty page of this size (pixels).

    Raises:
        FileNotFoundError: If there is no browser on this machine.
    """
    chromium = find_chromium()
    if chromium is None:
        raise FileNotFoundError(f"No browser was found. Looked for {', '.join(_NAMES)}; Debian's is `chromium`.")
    arguments = ["--disable-gpu", "--disable-sync"]
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=chromium, args=arguments) as browser,
    ):
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(1000 * _TIME_LIMIT)
        yield page


@contextlib.contextmanager
def tensorboard(log_dir: str | Path) -> Iterator[str]:
    """Start a TensorBoard on a free port, yield its address once it has images, and end it."""
    command = [sys.executable, "-m", "tensorboard.main", "--host", "127.0.0.1", "--port", "0", "--logdir", str(log_dir)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            address = next(found[1] for line in process.stderr if (found := re.search(r" at (http://\S+)", line)))
            end = time.monotonic() + _TIME_LIMIT
            # A page that is opened before TensorBoard has read the logs stays empty.
            while not _has_images(address):
                if time.monotonic() > end:
                    raise RuntimeError(f"TensorBoard found no images in {log_dir}.")
                time.sleep(0.1)
            yield address
        finally:
            process.terminate()


def _has_images(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}data/plugins_listing", timeout=10) as answer:
            return bool(json.load(answer)["images"]["enabled"])
    except OSError:
        return False


def figures(page: Page, address: str) -> dict[str, dict[str, Any]]:
    """Open the tab "Images" in actual size and wait for the images.

    Returns:
        By tag the image's `width` and `height` (pixels), its `step`, and its `box` in the page.
    """
    page.goto(f"{address}#images")
    page.get_by_role("checkbox", name="Show actual image size").check()
    found = page.wait_for_function(
        f"""() => {{ {IN_PAGE}
            const images = all("tf-image-loader").filter(shown).map(card => ({{
                tag: card.tag,
                image: all("img", card.shadowRoot)[0],
                step: Number(card.shadowRoot.textContent.match(/\\sstep\\s+([\\d,]+)/)?.[1].replaceAll(",", "")),
            }}));
            const ready = ({{image}}) => image?.complete && image.width && image.width == image.naturalWidth;
            return images.length && images.every(ready) && images.map(({{tag, image, step}}) => (
                {{tag, step, width: image.naturalWidth, height: image.naturalHeight, box: box(image)}}));
        }}"""
    )
    return {image.pop("tag"): image for image in found.json_value()}
