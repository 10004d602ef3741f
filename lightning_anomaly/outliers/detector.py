"""A detector of images that do not belong: fitted once, it scores images anywhere."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_anomaly.capture.layers import select_layers, unseen_layers
from lightning_anomaly.checks import check_fraction, check_integer
from lightning_anomaly.distributed import broadcast_result, gather_results, rank_and_world
from lightning_anomaly.images.random_state import isolated_random_state
from lightning_anomaly.images.source import ImageSource
from lightning_anomaly.notes import warn_of
from lightning_anomaly.outliers.combine import Tail
from lightning_anomaly.outliers.directions import Directions
from lightning_anomaly.outliers.feature_views import ClassGaussians, FeatureView, LogitView
from lightning_anomaly.outliers.filter_view import ReferenceModel, Spread
from lightning_anomaly.outliers.mahalanobis import RobustGaussian
from lightning_anomaly.outliers.pixel_words import PixelWords
from lightning_anomaly.outliers.plain import from_plain, to_plain
from lightning_anomaly.outliers.report import OutlierReport
from lightning_anomaly.outliers.run import MIN_REFERENCE, Fitted, Run, check_shape, conformal_p_values, weight_shape
from lightning_anomaly.outliers.scorer import Judgement, LayerView, Scorer
from lightning_anomaly.outliers.views import PixelView

_MAX_REFERENCE = 4000
_VERSION = 1  # of the file
_CLASSES = (
    Fitted, Scorer, LayerView, ReferenceModel, Directions, Spread, Tail, PixelView, RobustGaussian, PixelWords,
    FeatureView, LogitView, ClassGaussians,
)  # fmt: skip


class OutlierDetector:
    """Scores images by how little they belong to a reference, without any label.

    A score is a norm of the negative logarithms of three tail probabilities (nats): that of an image's pixels, of the
    features that the last linear layer is given, and of its logits. In a model without a linear layer the maps of all
    filters stand in for the last two. The p-value of a score is the share of calibration images, which nothing was
    fitted to, with scores as large (Bates, Candes, Lei, Romano and Sesia, "Testing for outliers with conformal
    p-values", 2023).

    The model runs in evaluation mode without gradients; its flags, buffers and hooks and the global random state are
    afterwards as before, also after an exception. Several threads may call one detector; they wait for each other.

    Args:
        model: Any model, on any device and in any precision, in which images are given to it.
        layers: Names of the layers whose filters explain a score; None takes every convolution.

    Raises:
        ValueError: If a layer does not exist, or the model has no convolution and no layer is named.

    Examples:
        >>> images = torch.rand(300, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> detector = OutlierDetector(nn.Conv2d(1, 4, 3)).fit(images[:200])
        >>> images[207] *= 30
        >>> int(detector.score(images[200:]).argmax())
        7
    """

    def __init__(self, model: nn.Module, layers: Iterable[str] | None = None) -> None:
        self.model = model
        self._layers = None if layers is None else tuple(layers)
        self._watched = select_layers(model, self._layers)
        if not self._watched:
            raise ValueError("Parameter `model` should have a convolution, or `layers` should be named. Found none.")
        self._fit: Fitted | None = None
        self._lock = threading.Lock()
        self.notes: dict[str, str] = {}  # what of the reference could not be used and why

    def fit(
        self,
        reference: Any,
        *,
        batch_size: int | None = None,
        max_reference: int = _MAX_REFERENCE,
        seed: int = 0,
        progress: bool | None = None,
    ) -> OutlierDetector:
        """Learn what ordinary images look like; returns the detector.

        Three eighths of the reference are fitted to, an eighth gives the scale of the scores, and the other half
        calibrates p-values. Where processes are connected, all call this with the same arguments: each runs the model
        on its share, and all get the same fit.

        Args:
            reference: Images that are ordinary, better such as the model was not trained on: a tensor `(N, ...)`, a
                Dataset or a DataLoader.
            batch_size: Largest number of images that run at a time; None takes that of the loader, or 64.
            max_reference: Largest number of images to take, at random. While they are fitted to, each takes 20 bytes
                for every filter of the layers, and eight times as many for a while in the widest layer.
            seed: Seed of the choice of images and of their parts.
            progress: See `analyze`.

        Raises:
            ValueError: If the images are of several sizes or have no length, none of the first 100 can be read, there
                are fewer than 100, most give NaN, or an argument is not allowed.
            RuntimeError: If another process fails.
        """
        self._learn(reference, "reference", batch_size, max_reference, seed, progress)
        if rank_and_world()[0] == 0:
            warn_of(self.notes)
        return self

    def _learn(
        self,
        images: Any,
        argument: str,
        batch_size: int | None,
        limit: int,
        seed: int,
        progress: bool | None,
        *,
        cross: bool = False,
    ) -> list[Judgement]:
        """Fit without a warning, for `find_outliers`; errors call the images `argument`.

        With `cross`, each half of the images is judged by what was fitted to the other.
        """
        run = Run(self.model, seed, progress)
        limit = check_integer("max_reference", limit, MIN_REFERENCE)
        with isolated_random_state(run.seed):
            shares = gather_results(lambda: run.see(images, argument, batch_size, limit, self._watched, cross))
            self._fit, self.notes, judged = broadcast_result(lambda: run.fit(shares, cross))
        return judged

    def score(self, images: Tensor) -> Tensor:
        """Score a batch of images `(n, ...)`: the larger, the less an image belongs; float64 `(n,)`, on the CPU.

        An image with NaN or infinite values has an infinite score. Each process scores its images without waiting for
        the others, as in `Trainer.predict`.

        Raises:
            ValueError: If the detector is not fitted, or the images are of another shape than the reference.
        """
        fitted = self._known()
        check_shape("images", images.shape[1:], fitted)
        filters = fitted.scorer.needs_layers
        with self._lock:
            run = Run(self.model, 0, False, alone=True)
            statistics = run.statistics(torch.arange(len(images), device="cpu"), images, self._watched, filters)
        return run.judge(fitted.scorer.to(run.device) if filters else fitted.scorer, statistics).scores

    def p_values(self, scores: Tensor) -> Tensor:
        """Compute the p-values `(n,)` of scores `(n,)`: how often an ordinary image has a score as large.

        They are at least `1 / (m + 1)` with m calibration images, the half of the reference that nothing was fitted to.
        Among ordinary images, at most a share of a has p-values of at most a. Infinite scores have none: NaN.

        Raises:
            ValueError: If the detector is not fitted.
        """
        return conformal_p_values(scores, self._known().calibration)

    def search(
        self,
        images: Any,
        *,
        batch_size: int | None = None,
        false_discovery_rate: float = 0.1,
        progress: bool | None = None,
    ) -> OutlierReport:
        """Score every image of a data set, and report what is odd about them.

        The model runs once on each image. Kept are an image's score, what each view says, its layer and filters, and
        small pictures of the 256 with the largest scores. Where processes are connected, all call this with the same
        arguments; each takes its share of the images, and all get the same report.

        Args:
            images: A tensor `(N, ...)`, a Dataset or a DataLoader, which is read from the first to the last item,
                whatever its order. The report has the names of files that a data set has in its `samples`, as
                torchvision's `ImageFolder`.
            batch_size: See `fit`.
            false_discovery_rate: Share of ordinary images that is accepted among those that are called significant.
            progress: See `analyze`.

        Returns:
            The report. Whatever could not be used is in its `notes`, which are also warnings.

        Raises:
            ValueError: If the detector is not fitted, images are of another shape than the reference or have no length,
                none of the first 100 can be read, or an argument is not allowed.
            RuntimeError: If another process fails.
        """
        report = self._report(images, "images", batch_size, false_discovery_rate, progress)
        if rank_and_world()[0] == 0:
            warn_of(report.notes)
        return report

    def _report(
        self,
        images: Any,
        argument: str,
        batch_size: int | None,
        rate: float,
        progress: bool | None,
        judged: Sequence[Judgement] | None = None,
    ) -> OutlierReport:
        """Search without a warning, for `find_outliers`; errors call the images `argument`.

        Those that are `judged` already were the reference; None if the reference were others.
        """
        fitted, run = self._known(), Run(self.model, 0, progress)
        rate = check_fraction("false_discovery_rate", rate, zero=False)
        known = {position for part in judged or () for position in part.positions.tolist()}
        with isolated_random_state(run.seed):
            scored = gather_results(lambda: run.score(images, argument, batch_size, fitted, self._watched, known))
            report = broadcast_result(lambda: run.report(fitted, scored, judged, rate))
        notes = unseen_layers(self.model, self._layers) | self.notes | dict(report.notes)
        return replace(report, notes=notes)

    def save(self, path: str | Path) -> None:
        """Write what was learnt to a file of plain tensors, without the model.

        Raises:
            ValueError: If the detector is not fitted.
        """
        content = {"version": _VERSION, "layers": self._layers and list(self._layers), "fit": to_plain(self._known())}
        torch.save(content, path)

    @classmethod
    def load(cls, path: str | Path, model: nn.Module) -> OutlierDetector:
        """Restore a detector from a file, for a model like the one that it was fitted with.

        Raises:
            ValueError: If the file is of another version, or a layer of the model is missing or of another shape.
        """
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or content.get("version") != _VERSION:
            found = content.get("version") if isinstance(content, dict) else type(content).__name__
            raise ValueError(f"`{path}` should be a file of `OutlierDetector.save`, version {_VERSION}. Found {found}.")
        fitted: Fitted = from_plain(content["fit"], _CLASSES)
        modules = dict(model.named_modules())
        for name, expected in fitted.weights.items():
            shape = weight_shape(modules[name]) if name in modules else "no such layer"
            if shape != list(expected):
                raise ValueError(
                    "Parameter `model` should be like the one that the detector was fitted with. Layer "
                    f"'{name}' should have a weight of shape {list(expected)}. Found {shape}."
                )
        detector = cls(model, content["layers"])
        detector._fit = fitted
        return detector

    def _known(self) -> Fitted:
        if self._fit is None:
            raise ValueError("The detector should be fitted first: call `fit`.")
        return self._fit


def find_outliers(
    model: nn.Module,
    inputs: Any,
    reference: Any = None,
    *,
    layers: Iterable[str] | None = None,
    batch_size: int | None = None,
    max_reference: int = _MAX_REFERENCE,
    false_discovery_rate: float = 0.1,
    seed: int = 0,
    progress: bool | None = None,
) -> OutlierReport:
    """Score every image of a data set by how little it belongs to a reference, without any label.

    A shortcut for `OutlierDetector(model, layers).fit(reference).search(inputs)`, see there.

    Args:
        model: See `OutlierDetector`.
        inputs: A tensor `(N, ...)`, a Dataset or a DataLoader, of which the first floating-point tensor of a batch is
            taken.
        reference: Images that are ordinary, likewise; a few thousand are enough. None takes some of the inputs at
            random: each half of these is scored by what was fitted to the other. Then p-values only rank the images,
            and none is significant.
        layers: See `OutlierDetector`.
        batch_size: Largest number of images that run at a time; None takes that of the loader, or 64.
        max_reference: Largest number of images to learn from.
        false_discovery_rate: Share of ordinary images that is accepted among those that are called significant, by the
            rule of Benjamini and Hochberg ("Controlling the false discovery rate", 1995).
        seed: Seed of the choice of the reference and of its parts.
        progress: See `analyze`.

    Returns:
        The report. Whatever could not be used is in its `notes`, which are also warnings.

    Raises:
        ValueError: See `OutlierDetector.fit` and `OutlierDetector.search`.
        RuntimeError: If another process fails.

    Examples:
        >>> images = torch.rand(300, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> images[7] *= 30
        >>> find_outliers(nn.Conv2d(1, 4, 3), images).top(1)
        [7]
    """
    detector = OutlierDetector(model, layers)
    sources: list[ImageSource] = []
    gather_results(lambda: sources.append(ImageSource(inputs, "inputs", batch_size)))
    images, given = sources[0], reference is not None
    learnt, argument = (reference, "reference") if given else (images, "inputs")
    judged = detector._learn(learnt, argument, batch_size, max_reference, seed, progress, cross=not given)
    report = detector._report(images, "inputs", batch_size, false_discovery_rate, progress, None if given else judged)
    if rank_and_world()[0] == 0:
        warn_of(report.notes)
    return report
