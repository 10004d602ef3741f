"""Benchmarks of time and memory, by their short name: `python -m recipes.benchmarks`; see recipes/development."""

from recipes.common.options import one_sentence_errors
from recipes.development.benchmarks.__main__ import parse, run

if __name__ == "__main__":
    one_sentence_errors(run, parse)
