"""The picture of a comparison, from a training at a tiny size."""

from pathlib import Path

import pytest
from PIL import Image
from trainers import SMALL_RUNS

from recipes.pictures import two_samples

pytestmark = [*SMALL_RUNS, pytest.mark.slow]


def test_a_small_training_is_compared_and_drawn(tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    small = ["--data", "digits", "--epochs", "2", "--train-size", "200", "--val-size", "150", "--picture", str(file)]
    compared = two_samples.run(two_samples.parse(small))
    assert len(compared.history) == 2
    assert compared.report is not None
    assert (compared.report.n_train, compared.report.n_val) == (150, 150)
    drawn = [*compared.report.layers, *compared.report.units]
    assert drawn == [f"network.{place}" for place in (0, 3, 9, 12, 14)]
    with Image.open(file) as picture:
        assert picture.width == 700
