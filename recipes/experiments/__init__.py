"""The experiments with healthy controls: runs, measures, tables and figures; their lines are in results/."""
