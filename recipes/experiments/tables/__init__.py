"""Tables of the results, by the name of their CSV file; each is made from the lines beside it."""

from collections.abc import Callable

from recipes.experiments.tables import choice, h1, harm, outliers, output, stopping
from recipes.experiments.tables.writer import Frame

TABLES: dict[str, Callable[[], Frame]] = {
    "h1_signals": h1.signals,
    "h1_long_signals": h1.long_signals,
    "signals": choice.measured_signals,
    "two_sample_alarms": choice.alarms,
    "two_sample_scores": choice.two_sample_scores,
    "stopping": stopping.by_network,
    "stopping_two_sample": stopping.compared,
    "output_rises": output.rises,
    "output_summary": output.summary,
    "output_rules": output.rules,
    "output_scores": output.scores,
    "harm": harm.new_runs,
    "harm_recorded": harm.recorded_runs,
    "harm_runs": harm.each_new_run,
    "harm_augmented": harm.augmented,
    "outliers": outliers.summary,
    "outliers_by_group": outliers.by_group,
    "outliers_by_kind": outliers.by_kind,
    "outliers_by_network": outliers.by_network,
    "outliers_power": outliers.power,
    "outliers_false_discoveries": outliers.false_discoveries,
}
# Tables of experiments that are over: commit c8f6efd has what made them of the lines.
OVER = {"frozen", "h2_gradients", "h2_left_out", "h2_mislabelled", "h3_contest", "h3_flagged", "search", "stability"}
