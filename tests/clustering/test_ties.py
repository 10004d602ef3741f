"""What is equal up to rounding, or equally near, is decided by its place."""

import torch

from lightning_anomaly.clustering.ties import first_largest


def test_the_same_clusters_numbered_in_another_way_are_equal_up_to_rounding():
    for values, position in (
        ([1, 3 - 1e-12, 3, 2], 1),
        ([0, -1e-12, 1e-12, 0], 0),
        ([1, 3 - 1e-6, 3, 2], 2),
        ([-2, -1 - 1e-12, -1, -3], 1),
        ([1e300, 2e300, 2e300 * (1 + 1e-12), 0], 1),
    ):
        assert first_largest(torch.tensor(values, dtype=torch.float64)).item() == position
