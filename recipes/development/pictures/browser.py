"""A headless Chromium that Playwright drives.

It is the installed Chromium (Debian: `apt-get install chromium`); Playwright need not install one.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator

from playwright.sync_api import Page, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_TIME_LIMIT = 60  # seconds, for everything


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
