"""The figure that notebooks show, in a separate file because the other files import matplotlib late."""

from __future__ import annotations

import io

from matplotlib.figure import Figure


class NotebookFigure(Figure):
    """A figure that Jupyter shows; it shows matplotlib's own figures only after an import of pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", facecolor=self.get_facecolor())  # not that of the user's style
        return buffer.getvalue()
