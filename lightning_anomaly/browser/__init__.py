"""Reports as single HTML files that need no server and no network.

`report_page.py` packs the filters and samples of an analysis, with the images and maps of `pictures.py` and the points
of earlier analyses of `epochs.py`. `outlier_page.py` packs the gallery of `find_outliers`. `page.py` puts either into
`page.html`, with `page.css` and JavaScript.
"""

from lightning_anomaly.browser.epochs import EpochPoints
from lightning_anomaly.browser.outlier_page import write_outlier_page
from lightning_anomaly.browser.page import BrowserFile, temporary_path, write
from lightning_anomaly.browser.report_page import page_text

__all__ = [
    "BrowserFile",
    "EpochPoints",
    "page_text",
    "temporary_path",
    "write",
    "write_outlier_page",
]
