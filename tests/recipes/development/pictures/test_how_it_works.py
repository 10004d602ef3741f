"""The picture of the method shows a network that finds the two over-exposed images."""

from pathlib import Path

import pytest
from matplotlib.image import imread
from trainers import SMALL_RUNS

from recipes.development.pictures import how_it_works

pytestmark = [*SMALL_RUNS, pytest.mark.slow]


def test_the_picture_shows_a_filter_with_the_planted_outliers(tmp_path: Path) -> None:
    path = tmp_path / "how.png"
    report = how_it_works.run(how_it_works.parse(["--epochs", "4", "--picture", str(path)]))
    assert {sample for sample, votes in enumerate(report.votes) if votes} == set(how_it_works.DAMAGED)
    assert imread(path).std() > 0.1  # something is drawn
