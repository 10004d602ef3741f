"""The figure that notebooks show. A file of its own, because it imports matplotlib, which everything else does late."""

from __future__ import annotations

import io

from matplotlib.figure import Figure


class NotebookFigure(Figure):
    """A figure that Jupyter shows by itself; it shows others only once pyplot was imported."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", facecolor=self.get_facecolor())  # not the user's style's
        return buffer.getvalue()
