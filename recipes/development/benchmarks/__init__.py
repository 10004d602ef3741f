"""Benchmarks of time and memory: `python -m recipes.benchmarks`."""
