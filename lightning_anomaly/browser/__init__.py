"""A report as one HTML file that needs no server and no network: hover a point, see its image and its feature map.

`report_page.py` makes all of a report small, with the images and maps that `pictures.py` keeps and the points of
earlier analyses that `epochs.py` keeps, and `page.py` puts that into `page.html` with `page.css` and JavaScript.
`outlier_page.py` makes a page of what `find_outliers` found.
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
