"""Values are ranked among knots by every engine alike: NumPy's comparisons are the oracle."""

import numpy as np
import pytest
import torch

from lightning_anomaly.clustering.engines import load_engine


def drawn(samples: int, rows: int, knots: int, ties: bool) -> tuple[torch.Tensor, ...]:
    """Values, knots, how many knots are at most as large as each, and a table that holds its own places."""
    generator = torch.Generator().manual_seed(knots)
    values = torch.randn(samples, rows, generator=generator)
    sorted_knots = torch.randn(rows, knots, generator=generator).sort(1).values
    if ties:
        values, sorted_knots = values.round(decimals=1), sorted_knots.round(decimals=1)
    values[:2] = torch.tensor([[-1e30], [1e30]])
    beyond = (sorted_knots[:, :, None] >= sorted_knots[:, None]).sum(2).int()
    table = torch.randn(2 * knots + 1, generator=generator)
    return values, sorted_knots, beyond, torch.stack([torch.arange(2.0 * knots + 1), table])


@pytest.mark.parametrize("engine", ["torch", "numba"])
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize(
    ("samples", "rows", "knots"), [(300, 7, 512), (5, 300, 100), (64, 3, 1), (64, 3, 2), (64, 3, 3)]
)
def test_what_is_looked_up_is_the_table_at_twice_the_mid_rank(engine, ties, samples, rows, knots):
    values, own, beyond, tables = drawn(samples, rows, knots, ties)
    found = load_engine(engine).look_up(values, own, beyond, tables).numpy()
    below = (own.numpy() < values.numpy()[:, :, None]).sum(2)
    up_to = (own.numpy() <= values.numpy()[:, :, None]).sum(2)
    np.testing.assert_array_equal(found[0], below + up_to)
    np.testing.assert_array_equal(found[1], tables[1].numpy()[below + up_to])


@pytest.mark.parametrize("engine", ["torch", "numba"])
def test_what_is_not_finite_is_at_an_end(engine):
    values, own, beyond, tables = drawn(3, 4, 100, ties=False)
    values[:] = torch.tensor([[-np.inf], [np.inf], [np.nan]])
    lowest, highest, unknown = load_engine(engine).look_up(values, own, beyond, tables)[0]
    assert lowest.tolist() == [0] * 4
    assert highest.tolist() == [200] * 4
    assert set(unknown.tolist()) <= {0, 200}
