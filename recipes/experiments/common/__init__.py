"""What the experiments share: trainings and how they go, lines of results, curves, tables, options."""
