"""A detector of outlier images that is fitted once and can be saved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_anomaly.capture.layers import select_layers, unseen_layers
from lightning_anomaly.checks import check_fraction, check_integer
from lightning_anomaly.distributed import broadcast_result, gather_results, rank_and_world, run_together
from lightning_anomaly.images.source import ImageSource
from lightning_anomaly.notes import warn_of
from lightning_anomaly.outliers.combine import Tail, conformal_p_values
from lightning_anomaly.outliers.directions import Directions
from lightning_anomaly.outliers.feature_views import ClassGaussians, FeatureView, LogitView
from lightning_anomaly.outliers.filter_view import ReferenceModel, Spread
from lightning_anomaly.outliers.mahalanobis import RobustGaussian
from lightning_anomaly.outliers.pixel_words import PixelWords
from lightning_anomaly.outliers.plain import from_plain, to_plain
from lightning_anomaly.outliers.report import OutlierReport
from lightning_anomaly.outliers.run import MIN_REFERENCE, Fitted, Run, check_shape, weight_shape
from lightning_anomaly.outliers.scorer import Judgement, LayerView, Scorer
from lightning_anomaly.outliers.views import PixelView

_MAX_REFERENCE = 4000
_VERSION = 1  # of the file
_CLASSES = (
    Fitted, Scorer, LayerView, ReferenceModel, Directions, Spread, Tail, PixelView, RobustGaussian, PixelWords,
    FeatureView, LogitView, ClassGaussians,
)  # fmt: skip


class OutlierDetector:
    """Score images by how unusual they are among the images of a reference, without labels.

    A score is a norm of three negative log tail probabilities (nats): of the image's pixels, of the features that enter
    the last linear layer, and of the logits. In a model without a linear layer, feature maps replace the last two. The
    p-value of a score is a conformal one, the share of held-out reference images with scores as large (Bates, Candes,
    Lei, Romano and Sesia, "Testing for outliers with conformal p-values", 2023).

    The model runs in evaluation mode without gradients. Its flags, buffers and hooks and torch's random state are
    restored, also after an exception. Threads may share a detector or its model: runs by
    this package take turns. Nobody else may call the model meanwhile, or what they give and take may be mixed up.

    Args:
        model: Any model, on any device and in any floating-point precision.
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
        self.notes: dict[str, str] = {}  # parts of the reference or the model that were not used, and why

    def fit(
        self,
        reference: Any,
        *,
        batch_size: int | None = None,
        max_reference: int = _MAX_REFERENCE,
        seed: int = 0,
        progress: bool | None = None,
    ) -> OutlierDetector:
        """Fit to a reference of ordinary images, and return the detector.

        Three eighths of the reference are fitted to, one eighth scales the scores, and half calibrates the p-values. In
        distributed runs all processes call this with the same arguments; each runs the model on its share of the
        images, and all get the same fit.

        Args:
            reference: Ordinary images, preferably ones that the model was not trained on: a tensor `(N, ...)`, a
                Dataset or a DataLoader.
            batch_size: Largest number of images in a forward pass; None takes that of the loader, or 64.
            max_reference: Largest number of images to draw from the reference. During the fit each image takes 20
                bytes for every filter, and briefly 160 bytes for every filter of the widest layer.
            seed: Seed of the random draw and split.
            progress: See `analyze`.

        Raises:
            ValueError: If images differ in size, the data has no length, none of the first 100 images can be read,
                there are fewer than 100, most images give NaN, or an argument is not allowed.
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
        """Fit without warnings; errors call the images `argument`.

        With `cross`, return scores of each half of the images by a fit to the other half.
        """
        run = Run(self.model, seed, progress)
        limit = check_integer("max_reference", limit, MIN_REFERENCE)
        shares = gather_results(lambda: run.collect(images, argument, batch_size, limit, self._watched, cross))
        self._fit, self.notes, judged = broadcast_result(lambda: run.fit(shares, cross))
        return judged

    def score(self, images: Tensor) -> Tensor:
        """Compute outlier scores of a batch of images `(n, ...)`, larger for odder images: float64 `(n,)` on the CPU.

        Images with NaN or infinite values have an infinite score. Processes do not wait for each other, so this can be
        called in a `predict_step`.

        Raises:
            ValueError: If the detector is not fitted, or the images are of another shape than the reference.
        """
        fitted = self._fitted()
        check_shape("images", images.shape[1:], fitted)
        filters = fitted.scorer.needs_layers
        run = Run(self.model, 0, False, alone=True)
        statistics = run.statistics(torch.arange(len(images), device="cpu"), images, self._watched, filters)
        return run.judge(fitted.scorer.to(run.device) if filters else fitted.scorer, statistics).scores

    def p_values(self, scores: Tensor) -> Tensor:
        """Compute p-values `(n,)` of scores `(n,)`: the probability that an ordinary image has at least this score.

        For ordinary images `P(p <= a)` is at most a. The smallest possible p-value is `1 / (m + 1)`, where m is the
        number of calibration images, half of the reference. Infinite scores have the p-value NaN.

        Raises:
            ValueError: If the detector is not fitted.
        """
        return conformal_p_values(scores, self._fitted().calibration)

    def search(
        self,
        images: Any,
        *,
        batch_size: int | None = None,
        false_discovery_rate: float = 0.1,
        progress: bool | None = None,
    ) -> OutlierReport:
        """Score every image of a data set and report the most unusual ones.

        The model runs once on each image. In distributed runs all processes call this with the same arguments; each
        scores its share of the images, and all get the same report.

        Args:
            images: A tensor `(N, ...)`, a Dataset or a DataLoader, whose data set is read in order. The report has file
                names if the data set lists them in `samples`, as torchvision's `ImageFolder` does.
            batch_size: See `fit`.
            false_discovery_rate: Accepted share of ordinary images among the significant ones.
            progress: See `analyze`.

        Returns:
            The report, with pictures of the 256 images with the largest scores. Its `notes`, which are also warnings,
            name what was not used.

        Raises:
            ValueError: If the detector is not fitted, the images differ in shape from the reference, the data has no
                length, none of the first 100 images can be read, or an argument is not allowed.
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
        """Search without warnings; errors call the images `argument`.

        `judged` are the scores of a reference that was drawn from the images; None if the reference holds other images.
        """
        fitted, run = self._fitted(), Run(self.model, 0, progress)
        rate = check_fraction("false_discovery_rate", rate, zero=False)
        done = {position for part in judged or () for position in part.positions.tolist()}
        scored = gather_results(lambda: run.score(images, argument, batch_size, fitted, self._watched, done))
        report = broadcast_result(lambda: run.report(fitted, scored, judged, rate))
        notes = unseen_layers(self.model, self._layers) | self.notes | dict(report.notes)
        return replace(report, notes=notes)

    def save(self, path: str | Path) -> None:
        """Save the fit, without the model, as a file of plain tensors.

        Raises:
            ValueError: If the detector is not fitted.
        """
        content = {"version": _VERSION, "layers": self._layers and list(self._layers), "fit": to_plain(self._fitted())}
        torch.save(content, path)

    @classmethod
    def load(cls, path: str | Path, model: nn.Module) -> OutlierDetector:
        """Load a saved detector for a model like the one that it was fitted with.

        Raises:
            ValueError: If the file has another version, or a layer of the model is missing or has another shape.
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

    def _fitted(self) -> Fitted:
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
    """Score every image of a data set by how unusual it is among the images of a reference, without labels.

    A shortcut for `OutlierDetector(model, layers).fit(reference).search(inputs)`.

    Args:
        model: See `OutlierDetector`.
        inputs: A tensor `(N, ...)`, a Dataset or a DataLoader; images are the first floating-point tensor of a batch.
        reference: Ordinary images in the same form; a few thousand suffice. None draws the reference from the inputs
            and scores each half of it by a fit to the other half. Then p-values only rank the images, and none is
            significant.
        layers: See `OutlierDetector`.
        batch_size: See `OutlierDetector.fit`.
        max_reference: See `OutlierDetector.fit`.
        false_discovery_rate: Accepted share of ordinary images among the significant ones, by the procedure of
            Benjamini and Hochberg ("Controlling the false discovery rate", 1995).
        seed: See `OutlierDetector.fit`.
        progress: See `analyze`.

    Returns:
        The report. Its `notes`, which are also warnings, name what was not used.

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
    images, cross = run_together(lambda: ImageSource(inputs, "inputs", batch_size)), reference is None
    reference, argument = (images, "inputs") if cross else (reference, "reference")
    judged = detector._learn(reference, argument, batch_size, max_reference, seed, progress, cross=cross)
    report = detector._report(images, "inputs", batch_size, false_discovery_rate, progress, judged if cross else None)
    if rank_and_world()[0] == 0:
        warn_of(report.notes)
    return report
