"""A report as one HTML file that needs no server and no network: hover a point, see its image and its feature map.

`pack.py` makes all of a report small, with the images and maps that `report/pictures.py` keeps, and `page.py` puts that
into `page.html` with `page.css` and the JavaScript that `report_page.py` names; `notebook.py` shows the file.
`outlier_page.py` makes a page of what `find_outliers` found.
"""

from lightning_anomaly.browser.notebook import BrowserFile
from lightning_anomaly.browser.outlier_page import write_outlier_page
from lightning_anomaly.browser.report_page import page_text, write_page

__all__ = [
    "BrowserFile",
    "page_text",
    "write_outlier_page",
    "write_page",
]
