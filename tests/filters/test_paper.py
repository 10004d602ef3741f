"""`AnalysisSettings.paper()` gives the results of a plain loop over scikit-learn with its defaults."""

import numpy as np
import torch
from sklearn import cluster
from sklearn.decomposition import PCA
from sklearn.metrics import calinski_harabasz_score
from sklearn.mixture import GaussianMixture
from torch import Tensor

from lightning_anomaly import AnalysisSettings, analyze
from lightning_anomaly.filters.mixtures import draw_centers
from lightning_anomaly.filters.pca import reduce_maps

KMEANS = cluster.KMeans


def outliers_by_hand(maps: np.ndarray) -> np.ndarray:
    """Find the outlier samples `(N,)` of one filter in its maps `(N, H, W)`."""
    points = PCA(2, svd_solver="full").fit_transform(maps.clip(min=0).reshape(len(maps), -1))
    points /= points[:, 0].std()
    clusterings = [GaussianMixture(k).fit_predict(points) for k in range(2, 9)]
    best = max(clusterings, key=lambda labels: calinski_harabasz_score(points, labels))
    return np.bincount(best)[best] <= 0.01 * len(maps)


def drawn(maps: Tensor) -> np.ndarray:
    """Return the samples `(F, 8)` from which the package starts k-means, for maps `(N, F, H, W)`."""
    points = reduce_maps(maps.clamp(min=0)).points
    centers = draw_centers(points, 1, 8, AnalysisSettings.paper().seed)[:, 0]
    return torch.cdist(centers, points).argmin(2).numpy()


def test_paper_settings_are_a_loop_over_scikit_learn_s_defaults_from_the_same_start(trained, monkeypatch):
    # `GaussianMixture(k)` gets our draw of k-means++, its only random part. k-means continues until nothing changes;
    # scikit-learn's stops when its centers move by less than 1e-4.
    def kmeans(n_clusters, n_init, random_state):
        assert n_init == 1
        return KMEANS(n_clusters, init=lambda points, *_, **__: points[start[:n_clusters]], n_init=1, tol=0)

    monkeypatch.setattr(cluster, "KMeans", kmeans)
    maps = trained.model[:3](trained.probe)
    expected = []
    for filter_maps, first_samples in zip(maps.double().transpose(0, 1).numpy(), drawn(maps), strict=True):
        start = first_samples
        expected.append(outliers_by_hand(filter_maps))
    report = analyze(trained.model, trained.probe, layers=["2"], settings=AnalysisSettings.paper())
    assert np.array_equal(report.layers["2"].outliers.numpy(), expected)
    assert 0 < report.count < len(expected)
