"""A detector of outlier images that is fitted once and can be saved."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_anomaly._internal.checks import check_integer, check_names
from lightning_anomaly._internal.notes import warn_of
from lightning_anomaly.images.batches import WithWholeImage
from lightning_anomaly.images.folder_images import FolderImages
from lightning_anomaly.images.image_source import ImageSource
from lightning_anomaly.network.features import FeatureLayer
from lightning_anomaly.network.layers import modules_by_name, state_hash
from lightning_anomaly.network.pretrained import load_pretrained
from lightning_anomaly.outliers.fingerprints import Fingerprints
from lightning_anomaly.outliers.fitting import (
    MAX_REFERENCE,
    MIN_REFERENCE,
    DetectorState,
    ReferenceImages,
    fit_to_reference,
    fit_to_searched,
)
from lightning_anomaly.outliers.image_reader import ImageReader, open_scaled
from lightning_anomaly.outliers.outlier_report import OutlierReport
from lightning_anomaly.outliers.search import (
    check_shape,
    join_columns,
    make_outlier_report,
    notes_of_parts,
    score_source,
    search_source,
)
from lightning_anomaly.pages.gallery import read_reviewed
from lightning_anomaly.scores.content_score import Content
from lightning_anomaly.scores.distributions import RobustGaussian, Scale, Tail, TwoTails, conformal_p_values
from lightning_anomaly.scores.label_score import Label, Ridge
from lightning_anomaly.scores.look_score import Look, PixelWords
from lightning_anomaly.scores.views import FittedView

_FORMAT, _VERSION = "lightning_anomaly.OutlierDetector", 14
_SAVED: list[Any] = [  # what a file holds beside tensors and plain values
    Content, DetectorState, FeatureLayer, Fingerprints, FittedView, Label, Look, PixelWords, ReferenceImages, Ridge,
    RobustGaussian, Scale, Tail, TwoTails,
]  # fmt: skip


class OutlierDetector:
    """Score images by how unusual they are among the images of a reference.

    An image has two scores, each the negative logarithm of a tail probability (nats). The look score compares
    statistics of its pixels. The content score compares what the model makes of it: the features that enter its last
    layer, and the energy of the logits if the model knows the classes of ordinary images. The outlier
    score is the larger one. P-values are conformal: the share of held-out reference images with scores as large (Bates,
    Candes, Lei, Romano and Sesia, "Testing for outliers with conformal p-values", 2023).

    The model runs in evaluation mode without gradients. Its flags, buffers and hooks and torch's random state are
    restored, also after an exception. Nobody else may call the model meanwhile, or results may be mixed up.

    Args:
        model: Any model, on any device and in any floating-point precision.
        class_names: Names of the model's classes, for reasons, such as `weights.meta["categories"]` in torchvision.
            None takes the names of the data set, if it has as many.

    Examples:
        >>> images = torch.rand(300, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> detector = OutlierDetector(nn.Conv2d(1, 4, 3)).fit(images[:200])
        >>> images[207] *= 30
        >>> int(detector.score(images[200:]).argmax())
        7
    """

    def __init__(self, model: nn.Module, class_names: Sequence[str] | None = None) -> None:
        modules_by_name(model)  # raises for anything but a module
        self.model = model
        self.class_names = check_names("class_names", class_names, "class names")
        self._state: DetectorState | None = None
        self.notes: dict[str, str] = {}  # parts of the reference or the model that were not used, and why

    def fit(
        self,
        reference: Any,
        *,
        batch_size: int | None = None,
        max_reference: int = MAX_REFERENCE,
        progress: bool | None = None,
    ) -> OutlierDetector:
        """Fit to a reference of ordinary images, and return the detector.

        Three eighths of the reference are fitted to, one eighth scales the scores, and half calibrates the p-values.

        Args:
            reference: Ordinary images, preferably ones that the model was not trained on: a tensor `(N, ...)`, a
                Dataset or a DataLoader.
            batch_size: Largest number of images in a forward pass; None takes that of the loader, or 64.
            max_reference: Largest number of images to draw from the reference, always the same ones; their features are
                held in memory.
            progress: See `analyze`.

        Raises:
            TypeError: If an argument has a wrong type.
            ValueError: If there are fewer than 100 images, they cannot be read, differ in size or mostly give NaN, or
                an argument is not allowed.
        """
        limit = check_integer("max_reference", max_reference, MIN_REFERENCE)
        source = open_scaled(reference, "reference", batch_size)
        reader = ImageReader(self.model, self.class_names, progress)
        self._state, self.notes = fit_to_reference(reader, source, limit)
        warn_of(self.notes)
        return self

    def score(self, images: Tensor, whole_images: Tensor | None = None) -> Tensor:
        """Compute outlier scores of a batch of images `(n, ...)`, larger for odder images: float64 `(n,)` on the CPU.

        A `FolderImages` hands the whole images beside those for the network: pass both if the reference was one.
        Images with NaN or infinite values have an infinite score.

        Raises:
            NotFittedError: If the detector is not fitted.
            TypeError: If the images are no tensor.
            ValueError: If they are of another type or shape than the reference, or came with whole images and the
                reference did not, or the other way round.
        """
        self._fitted_state()
        if not isinstance(images, Tensor) or not images.ndim:
            raise TypeError(f"Parameter `images` should be a tensor (n, ...). Found {type(images).__name__}.")
        if not len(images):
            return torch.zeros(0, dtype=torch.float64, device="cpu")
        searched: Any = images
        if whole_images is not None:
            items: Any = [WithWholeImage(*both) for both in zip(images, whole_images, strict=True)]
            searched = DataLoader(items)
        part = self.search_part(searched, batch_size=len(images), progress=False)
        return torch.from_numpy(part["score"])

    def p_values(self, scores: Tensor) -> Tensor:
        """Compute p-values `(n,)` of scores `(n,)`: the probability that an ordinary image has at least this score.

        For ordinary images `P(p <= a)` is at most a. The smallest possible p-value is `1 / (m + 1)`, where m is the
        number of calibration images, half of the reference. Infinite scores have the p-value NaN.

        Raises:
            NotFittedError: If the detector is not fitted.
            TypeError: If the scores are no tensor.
        """
        state = self._fitted_state()
        if not isinstance(scores, Tensor):
            raise TypeError(f"Parameter `scores` should be a tensor (n,). Found {type(scores).__name__}.")
        return conformal_p_values(scores, state.calibration["larger"])

    def search(
        self,
        images: Any,
        *,
        batch_size: int | None = None,
        labels: Sequence[Any] | None = None,
        reviewed: str | Path | None = None,
        progress: bool | None = None,
    ) -> OutlierReport:
        """Score every image of a data set and report the most unusual ones.

        Args:
            images: A tensor `(N, ...)`, a Dataset or a DataLoader, whose data set is read in order. The report has file
                names if the data set lists them in `samples`, as torchvision's `ImageFolder` does.
            batch_size: See `fit`.
            labels: The class of each image, a name or number; None for those unknown. By default they are those in the
                batches, or else the data set's `targets`. They count if the reference has such classes too.
            reviewed: A CSV file that the page of an earlier search saved. Images that have the verdict "right" there,
                by their names, are left out of the lists.
            progress: See `analyze`.

        Returns:
            The report. Its `notes`, which are also warnings here or in `fit`, name what was not used.

        Raises:
            NotFittedError: If the detector is not fitted.
            TypeError: If an argument has a wrong type.
            ValueError: If the images cannot be read or differ in shape from the reference, only one of the two came
                with whole images, or an argument is not allowed.
        """
        right = read_reviewed(reviewed)
        reader, source = self._open(images, batch_size, progress, labels=labels)
        report = search_source(reader, source, self._fitted_state(), self.notes)
        report = report.with_reviewed(right)
        warn_of({name: note for name, note in report.notes.items() if name not in self.notes})  # which `fit` gave
        return report

    def search_part(
        self,
        images: Any,
        *,
        batch_size: int | None = None,
        labels: Sequence[Any] | None = None,
        progress: bool | None = None,
    ) -> dict[str, np.ndarray]:
        """Score a part of a data set, in one of many processes; `join_parts` makes a report of all parts.

        The arguments and errors are those of `search`, but a part in which no image can be read is no error.

        Returns:
            Columns with a row for each image `(n,)`, to save in whatever format.

            - `score` and `p_value`, and both of each view, such as `look_score` and `look_p_value`
            - `look_reason`, `content_reason` and `label_reason`: words, empty for ordinary images
            - `hash` and `gray` `(n, 1024)`: what copies have in common
            - `class` and `looks_like`: classes, empty if unknown
            - `error`: why an image cannot be read, empty if it can
            - `name` and `split`: of images that have files
            - `faults` `(n, 4)`: answers for the report's `faults`
            - `note`: what is noted of all images of the part

            Columns that nothing is known of are missing.
        """
        state = self._fitted_state()
        shapes = state.shape, state.whole_shape
        reader, source = self._open(images, batch_size, progress, labels=labels, shapes=shapes)
        part = score_source(reader, source, state)
        warn_of(source.notes(np.isinf(part["score"]).nonzero()[0].tolist()))
        noted = "\n".join(source.label_notes().values())
        return part | {"note": np.array([noted] * len(part["score"]), dtype=object)}

    def join_parts(self, parts: Sequence[Mapping[str, np.ndarray]], folder: str = "") -> OutlierReport:
        """Report on the parts of a data set that `search_part` scored, one after the other, as `search` does on all.

        False discoveries and duplicates are sought among all of them.

        Args:
            parts: At least one part. Columns that not all of them have count as unknown. If you add a column `position`
                of different integers, images are in its order.
            folder: What the files in `name` are in.

        Raises:
            NotFittedError: If the detector is not fitted.
            ValueError: If there is no part.
        """
        if not parts:
            raise ValueError("Parameter `parts` should hold results of `search_part`. Found none.")
        joined = join_columns(parts)
        return make_outlier_report(joined, self._fitted_state(), self.notes | notes_of_parts(joined), folder)

    @property
    def whites(self) -> Mapping[str, float]:
        """What is white in files of more than 8 bits, as in the reference, see `load_image`."""
        return self._fitted_state().whites

    def _open(
        self, images: Any, batch_size: int | None, progress: bool | None, **options: Any
    ) -> tuple[ImageReader, ImageSource]:
        """Open images to be read as the reference was; files of more than 8 bits have its whites."""
        state = self._fitted_state()
        if isinstance(images, FolderImages):
            images = copy(images)
            images.whites = {**images.whites, **state.whites}
        reader = ImageReader(self.model, self.class_names, progress, state.feature_layer, state.limits)
        return reader, open_scaled(images, "images", batch_size, **options)

    def save(self, path: str | Path) -> None:
        """Save the fit, without the model.

        Raises:
            NotFittedError: If the detector is not fitted.
        """
        fit = {"class_names": self.class_names, "fit": self._fitted_state(), "state_hash": state_hash(self.model)}
        torch.save({"format": _FORMAT, "version": _VERSION, **fit}, path)

    @classmethod
    def load(cls, path: str | Path, model: nn.Module) -> OutlierDetector:
        """Load a saved detector for the model that it was fitted with; warn if the model has other weights.

        Raises:
            ValueError: If the file is not one of `save`.
        """
        file, expected = io.BytesIO(Path(path).read_bytes()), f"{_FORMAT}, version {_VERSION}"
        try:
            with torch.serialization.safe_globals(_SAVED):
                content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
            found = f"{content['format']}, version {content['version']}"
            is_known = found == expected and isinstance(content["fit"], DetectorState)
        except Exception as error:  # torch raises many types
            found, is_known = f"{type(error).__name__}: an incomplete file, or one of another version", False
        if not is_known:
            raise ValueError(
                f"Parameter `path` should be a file of `OutlierDetector.save`, {expected}. Found '{Path(path).name}': "
                f"{found}."
            )
        detector = cls(model, content["class_names"])
        detector._state = content["fit"]
        if state_hash(model) != content["state_hash"]:
            warnings.warn(
                "The model's weights are not those that the detector was fitted with, so its scores mean little: load "
                "the same weights, or fit the detector again.",
                stacklevel=2,
            )
        return detector

    def _fitted_state(self) -> DetectorState:
        if self._state is None:
            from sklearn.exceptions import NotFittedError

            raise NotFittedError("The detector should be fitted first: call `fit`.")
        return self._state


def find_outliers(
    images: Any,
    model: nn.Module | None = None,
    reference: Any = None,
    *,
    class_names: Sequence[str] | None = None,
    batch_size: int | None = None,
    max_reference: int = MAX_REFERENCE,
    labels: Sequence[Any] | None = None,
    reviewed: str | Path | None = None,
    progress: bool | None = None,
) -> OutlierReport:
    """Score every image of a data set by how unusual it is among the images of a reference, or among all of them.

    Labels are not needed. If images have classes that tell something about what they show, each is compared with the
    others of its class, and those that look like another class have large label scores.

    With a reference it is a shortcut for `OutlierDetector(model, class_names).fit(reference).search(images)`.

    Args:
        images: See `OutlierDetector.search`.
        model: See `OutlierDetector`. None takes a network that is pretrained on ImageNet, see `load_pretrained`, for
            images like those of `FolderImages(folder)`: `find_outliers(FolderImages("photos"))`.
        reference: Ordinary images in the same form; a few thousand suffice. None fits to the images themselves, of
            which up to a tenth may be odd; fewer than 100 get no scores, only a list of duplicates. Then there are no
            p-values.
        class_names: See `OutlierDetector`.
        batch_size: See `OutlierDetector.fit`.
        max_reference: See `OutlierDetector.fit`. Without a reference, they are drawn by class.
        labels: See `OutlierDetector.search`.
        reviewed: See `OutlierDetector.search`.
        progress: See `analyze`.

    Returns:
        The report, see `OutlierDetector.search`.

    Raises:
        TypeError, ValueError: See `OutlierDetector.fit` and `OutlierDetector.search`.

    Examples:
        >>> images = torch.rand(300, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> images[7] *= 30
        >>> find_outliers(images, nn.Conv2d(1, 4, 3)).top(1)
        [7]
    """
    right = read_reviewed(reviewed)
    if model is None:
        _, model, names = load_pretrained()
        class_names = class_names or names
    detector = OutlierDetector(model, class_names)
    if reference is not None:
        # A model would end with an error of its own on images of another shape.
        check_shape(
            *(open_scaled(given, name, batch_size) for given, name in ((images, "images"), (reference, "reference")))
        )
        detector.fit(reference, batch_size=batch_size, max_reference=max_reference, progress=progress)
        return detector.search(images, batch_size=batch_size, labels=labels, reviewed=reviewed, progress=progress)
    limit = check_integer("max_reference", max_reference, MIN_REFERENCE)
    source = open_scaled(images, "images", batch_size, labels=labels)
    reader = ImageReader(model, detector.class_names, progress)
    state, notes, read = fit_to_searched(reader, source, limit)
    report = search_source(reader, source, state, notes, read=read).with_reviewed(right)
    warn_of(report.notes)
    return report
