"""What the tables of H3 say of masks."""

import pytest
import torch

from recipes.experiments.common.store import lines_file, read_lines
from recipes.experiments.h3 import tables as h3_tables
from recipes.experiments.h3.measures import MEASURES


def test_the_runs_in_the_repository_make_tables() -> None:
    lines = read_lines(lines_file("h3"))
    assert len({line["key"] for line in lines}) == len(lines)
    assert all(line["measures"] == list(MEASURES) for line in lines)
    text = h3_tables.tables(lines)
    assert all(f"| {line['cell']['network']} | {line['cell']['data']} |" in text for line in lines)


def test_standing_is_the_share_of_other_masks_beaten() -> None:
    assert h3_tables.standing(1.0, [2.0, 1.0, 0.5, 3.0], "val_loss") == pytest.approx(2.5 / 4)
    assert h3_tables.standing(1.0, [2.0, 1.0, 0.5, 3.0], "val_acc") == pytest.approx(1.5 / 4)


def test_the_permutation_test_finds_masks_that_always_win_and_no_others() -> None:
    random = torch.Generator().manual_seed(0)
    others = torch.rand(8, 20, generator=random).tolist()
    share, p = h3_tables.permutation_p([[-1.0, *draws] for draws in others], "val_loss")
    assert share == 1
    assert p < 0.001
    share, p = h3_tables.permutation_p(others, "val_loss")
    assert 0.25 < share < 0.75
    assert p > 0.05
    assert h3_tables.permutation_p([[1.0, 1.0, 1.0]], "val_loss") == (0.5, 1.0)
