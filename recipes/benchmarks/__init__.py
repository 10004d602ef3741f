"""How fast it is, and what it costs: `python -m recipes.benchmarks`."""
