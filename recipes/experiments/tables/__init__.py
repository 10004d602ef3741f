"""All tables of the results by the name of their CSV file, made from the lines beside it."""

from collections.abc import Callable

from recipes.development import tables as odd_images
from recipes.experiments.tables import h1, h2, h3, harm, output, stopping, two_sample
from recipes.experiments.tables.writer import Frame

TABLES: dict[str, Callable[[], Frame]] = {
    "h1_signals": h1.signals,
    "h1_long_signals": h1.long_signals,
    "two_sample_alarms": two_sample.alarms,
    "stopping": stopping.by_network,
    "output_summary": output.summary,
    "harm": harm.new_runs,
    "harm_accuracy": harm.tried_runs,
    "harm_recorded": harm.recorded_runs,
    "harm_augmented": harm.augmented,
    "h2_gradients": h2.gradients,
    "h3_flagged": h3.what_is_flagged,
    "h3_contest": h3.contest,
    "outliers": odd_images.summary,
    "outliers_by_set": odd_images.by_set,
    "outliers_p_values": odd_images.p_values,
}
