"""The tables of the results are made from the lines."""

from pathlib import Path

import pytest

from recipes.experiments import results


def test_every_number_in_the_results_comes_from_a_line() -> None:
    pages = results.read_pages()
    assert results.fill(pages) == pages


def test_results_without_a_block_are_refused() -> None:
    with pytest.raises(ValueError, match=r"The markers in docs/results should be .*'h1 runs'.*Found \[\]"):
        results.fill({Path("nothing.md"): "# Nothing\n"})
