"""Threads: results in order, torch's setting as it was, and the same numbers however many there are."""

import threading

import pytest
import torch

from lightning_anomaly import AnalysisSettings
from lightning_anomaly.clustering.choice import cluster_filters
from lightning_anomaly.clustering.pca import reduce_maps
from lightning_anomaly.clustering.threads import ranges, torch_in_threads


def test_each_thread_works_alone_and_the_setting_is_as_before(two_threads):
    points = torch.arange(7.0)
    found = torch_in_threads(lambda own: (own, torch.get_num_threads()), *ranges(points), like=points)
    assert torch.equal(torch.cat([own for own, _ in found]), points)
    assert [threads for _, threads in found] == [1, 1]
    assert torch.get_num_threads() == 2
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [2]


def test_the_setting_is_as_before_also_after_an_exception(two_threads):
    def fail(_: torch.Tensor) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        torch_in_threads(fail, *ranges(torch.zeros(4)), like=torch.zeros(4))
    assert torch.get_num_threads() == 2


def test_a_range_for_each_thread_and_one_for_no_filters(two_threads):
    assert [len(own) for own in ranges(torch.zeros(7, 2))[0]] == [4, 3]
    assert [own.shape for own in ranges(torch.zeros(0, 2))[0]] == [(0, 2)]


def test_the_number_of_threads_changes_nothing(trained, engine):
    with torch.no_grad():
        maps = trained.model[:5](trained.probe)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            reduction = reduce_maps(maps, engine)
            clustering = cluster_filters(reduction.points[reduction.live], AnalysisSettings(n_init=5), engine)
        finally:
            torch.set_num_threads(1)
        found.append((reduction.points, clustering.labels, clustering.calinski_harabasz))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
