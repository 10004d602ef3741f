"""The measurements of a run, by the name of the file of their lines."""

from collections.abc import Callable
from typing import Any

from recipes.experiments.measures import h1, h2, h3, harm, output, two_sample
from recipes.experiments.spec import Training

# A measurement takes the run, the folder of the data and a folder for weights; it returns plain values.
MEASURES: dict[str, Callable[[Training, str | None, str | None], dict[str, Any]]] = {
    "h1": h1.measure,
    "two_sample": two_sample.measure,
    "output": output.measure,
    "harm": harm.measure,
    "h2": h2.measure,
    "h3": h3.measure,
}
