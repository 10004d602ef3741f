"""The tables of the results are made from the lines."""

import pytest

from recipes.experiments import results


def test_every_number_in_the_results_comes_from_a_line() -> None:
    text = results.RESULTS.read_text()
    assert results.fill(text) == text


def test_results_without_a_block_are_refused() -> None:
    with pytest.raises(ValueError, match=r"The markers in RESULTS.md should be .*'h1 runs'.*Found \[\]"):
        results.fill("# Nothing\n")
