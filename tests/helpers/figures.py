"""Render figures, and check that their texts can be read."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg


def pixels(figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def assert_legible(figure, parts) -> None:
    """Check that no part lies outside the figure or overlaps another one."""
    pixels(figure)
    boxes = [part.get_window_extent(figure.canvas.get_renderer()) for part in parts]
    for place, box in enumerate(boxes):
        assert min(*box.min, *(figure.get_size_inches() * figure.dpi - box.max)) >= 0
        assert not any(box.overlaps(other) for other in boxes[:place])
