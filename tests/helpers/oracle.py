"""The reference by scikit-learn and NumPy, one filter and one start at a time. It uses nothing of the package."""

import warnings
from typing import NamedTuple

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import calinski_harabasz_score
from sklearn.mixture import GaussianMixture


class Fit(NamedTuple):
    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray
    lower_bound: float
    labels: np.ndarray
    n_iter: int
    converged: bool


def random_start(points: np.ndarray, n_components: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw weights `(K,)`, means `(K, 2)` and precisions `(K, 2, 2)` of components of many shapes."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(n_components, 5.0))
    distinct = np.unique(points, axis=0)
    means = distinct[rng.permutation(len(distinct))[:n_components]]
    means = np.concatenate([means, rng.normal(size=(n_components - len(means), 2))])
    factors = rng.normal(size=(n_components, 2, 2)) * 0.3 + np.eye(2)
    return weights, means, np.linalg.inv(factors @ factors.transpose(0, 2, 1) + 0.05 * np.eye(2))


def fit_mixture(points, weights, means, precisions, *, max_iter=100, tol=1e-3, reg_covar=1e-6) -> Fit:
    options = {"weights_init": weights / weights.sum(), "means_init": means, "precisions_init": precisions}
    options |= {"init_params": "random", "random_state": 0, "max_iter": max_iter, "tol": tol, "reg_covar": reg_covar}
    mixture = GaussianMixture(len(weights), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels = mixture.fit_predict(points)
    parameters = [getattr(mixture, f"{name}_") for name in ("weights", "means", "covariances", "lower_bound")]
    return Fit(*parameters, labels, mixture.n_iter_, mixture.converged_)


def factors(precisions) -> np.ndarray:
    """Factorize precisions `(..., 2, 2)` into `U U^T` with an upper triangle U; return u11, u12, u22 `(..., 3)`."""
    u22 = np.sqrt(precisions[..., 1, 1])
    u12 = precisions[..., 0, 1] / u22
    return np.stack([np.sqrt(precisions[..., 0, 0] - u12**2), u12, u22], -1)


def precisions(factors) -> np.ndarray:
    upper = np.stack([factors[..., 0], factors[..., 1], 0 * factors[..., 0], factors[..., 2]], -1)
    upper = upper.reshape(*upper.shape[:-1], 2, 2)
    return upper @ np.swapaxes(upper, -1, -2)


def covariances(factors) -> np.ndarray:
    """Compute covariances `(..., 2, 2)` without forming precisions, whose inversion would magnify rounding errors."""
    l11, l22 = 1 / factors[..., 0], 1 / factors[..., 2]
    l21 = -factors[..., 1] * l11 * l22
    return np.stack([l11**2, l11 * l21, l11 * l21, l21**2 + l22**2], -1).reshape(*l11.shape, 2, 2)


def assert_equal_fit(fit, index: int, expected: Fit, tolerance: float = 1e-10) -> None:
    """Check one filter of a `MixtureFit`: numbers within a tolerance, labels, `n_iter` and `converged` exactly."""
    for name in ("weights", "means", "covariances", "lower_bound"):
        values = covariances(fit.factors.numpy()) if name == "covariances" else getattr(fit, name).numpy()
        difference = np.abs(values[index] - getattr(expected, name)).max()
        assert difference <= tolerance, (name, index, difference)
    for name in ("labels", "n_iter", "converged"):
        assert np.array_equal(getattr(fit, name)[index].numpy(), getattr(expected, name)), (name, index)


def calinski_harabasz(points: np.ndarray, labels: np.ndarray) -> float:
    return calinski_harabasz_score(points, labels)


def pca_scores(maps: np.ndarray) -> np.ndarray:
    """Compute scores `(N, 2)` of one filter's maps `(N, ...)`, in standard deviations of the first component."""
    scores = PCA(2, svd_solver="full").fit_transform(maps.reshape(len(maps), -1).astype(np.float64))
    return scores / scores[:, 0].std()


def best_kmeans(points: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return labels `(N,)` of the best clustering from the centers `(S, K, 2)`, and every inertia `(S,)`."""
    fits = [KMeans(len(start), init=start, n_init=1, tol=0, algorithm="lloyd").fit(points) for start in starts]
    inertia = np.array([fit.inertia_ for fit in fits])
    first_of_equals = int((inertia <= inertia.min() + 1e-9 * max(1, inertia.min())).argmax())
    return fits[first_of_equals].labels_, inertia


def cluster_parameters(points: np.ndarray, labels: np.ndarray, n_components: int, reg_covar: float):
    """Compute weights, means and precisions of clusters by labels `(N,)`; no cluster may be empty."""
    clusters = [points[labels == k] for k in range(n_components)]
    weights = np.array([len(cluster) / len(points) for cluster in clusters])
    means = np.array([cluster.mean(0) for cluster in clusters])
    covariances = np.array([np.cov(cluster.T, bias=True) + reg_covar * np.eye(2) for cluster in clusters])
    return weights, means, np.linalg.inv(covariances)


def pooled(image: np.ndarray, windows: tuple[int, ...]) -> np.ndarray:
    """Average an image of any number of axes over windows; the last window of an axis may be smaller."""
    result = np.empty([-(-size // window) for size, window in zip(image.shape, windows, strict=True)])
    for index in np.ndindex(*result.shape):
        window = tuple(slice(i * w, (i + 1) * w) for i, w in zip(index, windows, strict=True))
        result[index] = image[window].mean()
    return result
