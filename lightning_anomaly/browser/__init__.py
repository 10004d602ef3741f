"""Reports as single HTML files that need no server and no network.

`report_page.py` packs the filters and samples of an analysis, with the images and maps of `pictures.py`.
`outlier_page.py` packs the gallery of `find_outliers`. `page.py` puts either into `page.html`, with `page.css` and
JavaScript.
"""
