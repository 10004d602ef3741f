"""The choice of K follows the index, which is scikit-learn's, and both engines decide alike."""

import oracle
import properties
import pytest
import torch
import zoo

from lightning_anomaly import AnalysisSettings
from lightning_anomaly.clustering import choice
from lightning_anomaly.clustering.choice import Clustering, cluster_filters
from lightning_anomaly.clustering.engines import load_engine

AUTO = load_engine("auto")
FAST = {"n_init": 4}


def parts(clustering: Clustering) -> list[torch.Tensor]:
    return [clustering.labels, clustering.calinski_harabasz, clustering.best]


def test_the_index_of_good_clusters_is_scikit_learn_s_within_1e_12():
    points = zoo.points("clustered", 5, 300)
    clustering = cluster_filters(points, AnalysisSettings(**FAST), AUTO)
    for m, k in enumerate(clustering.n_components.tolist()):
        for f in range(5):
            labels = clustering.labels[f, m].numpy()
            assert len(set(labels)) == k
            expected = oracle.calinski_harabasz(points[f].numpy(), labels)
            assert clustering.calinski_harabasz[f, m].item() == pytest.approx(expected, rel=1e-12, abs=0)


def test_the_number_of_planted_clusters_is_found(engine):
    generator = torch.Generator().manual_seed(0)
    corners = torch.tensor([[-1.0, -0.5], [1, -0.5], [-1, 0.7], [1, 0.7], [0, 2]], dtype=torch.float64)
    for k in (2, 3, 4, 5):
        member = torch.arange(100) % k
        points = corners[member] + 0.02 * torch.randn(3, 100, 2, generator=generator, dtype=torch.float64)
        clustering = cluster_filters(points, AnalysisSettings(n_init=10), engine)
        assert clustering.n_components.tolist() == [2, 3, 4, 5]
        assert clustering.n_components[clustering.best].tolist() == [k] * 3
        for f in range(3):
            found = clustering.labels[f, clustering.best[f]]
            assert len({(a, b) for a, b in zip(found.tolist(), member.tolist(), strict=True)}) == k


def test_best_is_the_first_of_the_largest_indices_up_to_rounding(engine):
    # Starts with the same samples in several components leave some of them empty: other K, the same clusters.
    equals = 0
    for settings in (AnalysisSettings(**FAST), AnalysisSettings(init="random", n_init=1, max_components=8)):
        clustering = cluster_filters(zoo.points("sparse", 20, 80), settings, engine)
        for f in range(20):
            values = clustering.calinski_harabasz[f].tolist()
            same = [m for m, value in enumerate(values) if value > max(values) * (1 - 1e-9)]
            assert clustering.best[f].item() == same[0]
            equals += len(same) > 1
    assert equals


@pytest.mark.parametrize(
    ("samples", "numbers"), [(1, []), (2, []), (3, [2]), (4, [2, 3]), (5, [2, 3, 4]), (9, [2, 3, 4, 5])]
)
@pytest.mark.parametrize("engine_name", ["numba", "torch", "sklearn"], indirect=True)
def test_fewer_samples_allow_fewer_components(engine, samples, numbers, no_processes):
    points = torch.randn(2, samples, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    clustering = cluster_filters(points, AnalysisSettings(**FAST), engine)
    assert clustering.n_components.tolist() == numbers
    assert clustering.labels.shape == (2, len(numbers), samples)
    assert clustering.calinski_harabasz.shape == (2, len(numbers))
    assert clustering.best.shape == (2,)


@pytest.mark.parametrize("engine_name", ["numba", "torch", "sklearn"], indirect=True)
def test_no_filters_give_an_empty_clustering(engine):
    clustering = cluster_filters(torch.zeros(0, 20, 2, dtype=torch.float64), AnalysisSettings(), engine)
    assert clustering.labels.shape == (0, 4, 20)
    assert clustering.best.shape == (0,)


@pytest.mark.parametrize("init", ["kmeans", "random"])
@pytest.mark.parametrize("kind", zoo.KINDS)
def test_every_engine_gives_scikit_learn_s_labels_and_choice(kind, init, engine, no_processes):
    points = zoo.points(kind, 3, 100)
    ours, theirs = (
        cluster_filters(points, AnalysisSettings(init=init, n_init=3, max_components=4), own)
        for own in (engine, load_engine("sklearn"))
    )
    assert torch.equal(ours.labels, theirs.labels)
    assert torch.equal(ours.best, theirs.best)
    torch.testing.assert_close(ours.calinski_harabasz, theirs.calinski_harabasz, rtol=1e-12, atol=0)


def test_of_several_random_starts_the_one_with_the_largest_bound_is_kept(no_processes):
    points = zoo.points("skewed", 2, 100)
    settings = AnalysisSettings(init="random", n_init=6, max_components=3)
    clustering, theirs = (cluster_filters(points, settings, own) for own in (AUTO, load_engine("sklearn")))
    centres = choice.random_samples(points, 6, 3, settings.seed)
    for m, k in enumerate((2, 3)):
        start = choice._start(points, centres[:, :, :k], settings, AUTO)
        for f in range(2):
            fits = [
                oracle.fit_mixture(points[f].numpy(), *(tensor[f, s].numpy() for tensor in start)) for s in range(6)
            ]
            largest = max(fit.lower_bound for fit in fits)
            best = next(fit for fit in fits if fit.lower_bound > largest - 1e-9)
            assert clustering.labels[f, m].tolist() == best.labels.tolist()
            assert theirs.labels[f, m].tolist() == best.labels.tolist()


@pytest.mark.parametrize("settings", [AnalysisSettings(**FAST), AnalysisSettings.paper()], ids=["default", "paper"])
@pytest.mark.parametrize("kind", zoo.KINDS)
def test_batched_equals_one_at_a_time(kind, settings, engine):
    points = zoo.points(kind, 7, 120)
    properties.assert_batched_equals_one_at_a_time(lambda own: parts(cluster_filters(own, settings, engine)), points)


def test_the_memory_bound_changes_nothing_and_cuts_the_work_into_pieces(monkeypatch, engine):
    points = zoo.points("clustered", 40, 100)
    seen = []
    work = choice._cluster
    monkeypatch.setattr(choice, "_cluster", lambda own, *rest: seen.append(len(own)) or work(own, *rest))
    whole, pieces = (cluster_filters(points, AnalysisSettings(max_memory_mb=mb), engine) for mb in (256, 1))
    assert seen[0] == 40
    assert len(seen) > 3
    assert sum(seen) == 80
    assert all(torch.equal(a, b) for a, b in zip(parts(whole), parts(pieces), strict=True))
