"""A report as one HTML file that needs no server and no network: hover a point, see its image and its feature map.

`pictures.py` keeps the images of a probe and some of the maps, `pack.py` makes all of a report small, `page.py` puts it
into `page.html` with `page.css` and the JavaScript beside it, and `notebook.py` shows the file.
"""

from lightning_anomaly.browser.notebook import BrowserFile
from lightning_anomaly.browser.page import page_text, write_page
from lightning_anomaly.browser.pictures import KeptMaps, Pictures, join_pictures, take_pictures

__all__ = ["BrowserFile", "KeptMaps", "Pictures", "join_pictures", "page_text", "take_pictures", "write_page"]
