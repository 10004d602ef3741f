"""Render figures."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg


def pixels(figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)
