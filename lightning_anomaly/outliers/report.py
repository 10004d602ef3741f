"""What was found in a data set: scores, what says so, and which images are significant at a false discovery rate."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_anomaly.checks import check_integer
from lightning_anomaly.images.thumbnails import KEPT
from lightning_anomaly.outliers.combine import VIEWS, SampleView, ordered_reasons
from lightning_anomaly.tables import Tabular

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from lightning_anomaly.browser import BrowserFile

_DRAWN = 64  # of these in a figure


@dataclass(frozen=True, eq=False, repr=False)
class OutlierReport(Tabular):
    """How little each image of a data set belongs to a reference. `print(report)` gives a table.

    Attributes:
        scores: The larger, the less an image belongs `(N,)`, by its position in the data set, see `view_scores`;
            infinity where it cannot be read or gives NaN or infinite values.
        p_values: How often an ordinary image has a score as large `(N,)`, see `OutlierDetector.p_values`; NaN where the
            score is infinite.
        layers: Names of the layers that judge.
        layer: In which of them an image is farthest from the reference `(N,)`.
        filters: The filters of that layer that the image is most extreme in `(N, 3)`, -1 where there are no more.
        n_reference: Number of images in the reference that can be read and give finite values.
        n_calibration: Number of those that p-values compare with; 0 if the reference was taken out of these images:
            then p-values only rank them, and none is significant.
        false_discovery_rate: The share of ordinary images that is accepted among those that are significant.
        images: Small pictures of the images that `top` gives first, uint8 `(n, H, W, C)`; None if they are nothing that
            can be drawn.
        notes: What could not be used and why, as sentences.
        views: What each view says of the images, see `AnomalyReport.view_scores`.
        names: The file of each image, where its data set names them, as torchvision's `ImageFolder` does.
        unreadable: What went wrong with the images that cannot be read, by their positions.
    """

    scores: Tensor
    p_values: Tensor
    layers: tuple[str, ...]
    layer: Tensor
    filters: Tensor
    n_reference: int
    n_calibration: int
    false_discovery_rate: float
    images: Tensor | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    views: Mapping[str, SampleView] = field(default_factory=dict)
    names: Sequence[str] | None = None
    unreadable: Mapping[int, str] = field(default_factory=dict)

    @property
    def view_scores(self) -> dict[str, Tensor]:
        """The negative logarithm of the tail probability of each image in the reference `(N,)`, by view, in nats."""
        return {name: self.views[name].scores for name in VIEWS if name in self.views}

    def outlier_reasons(self, position: int) -> dict[str, str]:
        """Say what each view finds odd about an image, the view that finds it oddest first.

        Raises:
            ValueError: If the data set does not have the image.
        """
        position = check_integer("position", position, 0, len(self.scores) - 1)
        if position in self.unreadable:
            return {"file": f"cannot be read: {self.unreadable[position]}"}
        return ordered_reasons(self.views, position)

    @property
    def significant(self) -> list[int]:
        """Positions of the images that do not belong by the rule of Benjamini and Hochberg, the largest score first.

        On average at most a share of `false_discovery_rate` of them does belong, if the reference holds no outlier.
        """
        ordered = self.p_values[self.p_values.isfinite()].sort().values
        below = (ordered <= self._allowed).nonzero()
        if not self.n_calibration or not len(below):
            return []
        return self._by_score(self.p_values <= ordered[below[-1, 0]])

    @property
    def above_calibration(self) -> list[int]:
        """Positions of the images that score higher than every calibration image, the largest score first."""
        return self._by_score(self.p_values <= self._least * (1 + 1e-12)) if self.n_calibration else []

    @property
    def unusable(self) -> list[int]:
        """Positions of the images that cannot be read or give NaN or infinite values; they are in no other list."""
        positions: list[int] = self.scores.isinf().nonzero()[:, 0].tolist()
        return positions

    @property
    def min_detectable(self) -> int:
        """How many images must score higher than every calibration image before any can be significant.

        The smallest possible p-value is 1 / (m + 1) with m calibration images, and the rule of Benjamini and Hochberg
        needs at least this many of them.
        """
        return 1 + int((self._allowed < self._least).sum())

    @property
    def _least(self) -> float:
        """The smallest p-value that there can be."""
        return 1 / (1 + self.n_calibration)

    @property
    def _allowed(self) -> Tensor:
        """The p-values up to which the rule of Benjamini and Hochberg takes one image, two, and so on `(n,)`."""
        count = int(self.p_values.isfinite().sum())
        ranks = torch.arange(1, count + 1, dtype=torch.float64, device=self.p_values.device)
        return self.false_discovery_rate * ranks / count * (1 + 1e-12)  # p-values are fractions too: for rounding

    def top(self, k: int) -> list[int]:
        """Positions of the k images with the largest scores, the largest first, without those that are `unusable`.

        Raises:
            ValueError: If `k` is not a positive integer.
        """
        return self._by_score(self.scores.isfinite())[: check_integer("k", k, 1)]

    def _by_score(self, chosen: Tensor) -> list[int]:
        positions = chosen.nonzero()[:, 0]
        ordered: list[int] = positions[self.scores[positions].argsort(descending=True, stable=True)].tolist()
        return ordered

    def to_frame(self, k: int | None = None) -> DataFrame:
        """The images as a pandas DataFrame, the largest score first, one row each.

        Columns are position, name if there are `names`, score, p_value, significant, layer, filters and reasons, see
        `outlier_reasons`. Those that are `unusable` come last.

        Args:
            k: Number of images; None takes all.

        Raises:
            ImportError: If pandas is not installed; the package does not ask for it.
        """
        from pandas import DataFrame

        return DataFrame(self.rows(k))

    def rows(self, k: int | None = None) -> list[dict[str, Any]]:
        """The same as plain values."""
        significant = {*self.significant}
        return [
            {
                "position": position,
                **({} if self.names is None else {"name": self.names[position]}),
                "score": self.scores[position].item(),
                "p_value": self.p_values[position].item(),
                "significant": position in significant,
                "layer": self.layers[int(self.layer[position])],
                "filters": [index for index in self.filters[position].tolist() if index >= 0],
                "reasons": "; ".join(f"{view}: {reason}" for view, reason in self.outlier_reasons(position).items()),
            }
            for position in ([*self.top(len(self.scores)), *self.unusable] if k is None else self.top(k))
        ]

    def save_csv(self, path: str | Path, k: int | None = None) -> None:
        """Write `rows` as a CSV file, which has the same columns as one that the page of `save_html` saves.

        Args:
            path: Where to write it; missing folders are created.
            k: Number of images; None takes all.
        """
        rows = [{**row, "filters": " ".join(map(str, row["filters"]))} for row in self.rows(k)]
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        # File names may be in any encoding.
        with Path(path).open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def plot(self, k: int = 32) -> Figure:
        """Draws the k images with the largest scores, of at most 64.

        Raises:
            ValueError: If `k` is not a positive integer, or the model takes nothing that can be drawn.
        """
        from lightning_anomaly.plots.samples import gallery
        from lightning_anomaly.plots.style import short_name

        if self.images is None:
            raise ValueError(
                "`OutlierReport.plot` draws images, signals and volumes, and this model was given something else."
            )
        positions = self.top(k)[: min(_DRAWN, len(self.images))]
        captions = [
            f"image {i}\nscore {self.scores[i]:.1f}\n{short_name(self.layers[self.layer[i]], 16)}" for i in positions
        ]
        heading = f"Images with the largest outlier scores: {len(positions)} of {len(self.scores)}"
        return gallery(self.images[: len(positions)], captions, f"{heading}\n(below them the layer that says so)")

    def save_html(
        self, path: str | Path, labels: Sequence[Any] | None = None, title: str = "Images that do not belong"
    ) -> None:
        """Writes a ranked gallery as one HTML file, which needs no server and no network.

        It has the 256 images with the largest scores, by layer or all, to tick those that are to go; what is ticked is
        saved as a CSV file, as by `save_csv`. A browser remembers what was ticked.

        Args:
            path: Where to write it; missing folders are created.
            labels: A name or number for each image of the data set, such as its class. The page's CSV files have it as
                one more column.
            title: The heading.

        Raises:
            ValueError: If `labels` does not have one entry for each image.
        """
        from lightning_anomaly.browser import write_outlier_page

        rows, above = self.rows(KEPT), {*self.above_calibration}
        facts = {
            "title": title,
            "sentences": self._sentences(),
            "layers": self.layers,
            "columns": list(rows[0]),
            "rate": self.false_discovery_rate,
            "ranked": not self.n_calibration,  # p-values only rank the images
        }
        for row in rows:
            row["view_reasons"] = self.outlier_reasons(row["position"])
            row["above"] = row["position"] in above
        write_outlier_page(path, facts, rows, self.scores, self.view_scores, self.images, labels)

    def browse(self, labels: Sequence[Any] | None = None, title: str = "Images that do not belong") -> BrowserFile:
        """Write the same to a file that lasts until Python exits: a notebook shows it, a console its path.

        Args:
            labels: See `save_html`.
            title: See there.
        """
        from lightning_anomaly.browser import BrowserFile, temporary_path

        path = temporary_path("outliers.html")
        self.save_html(path, labels, title)
        return BrowserFile(path)

    def _rows(self) -> list[tuple[str, ...]]:
        named = self.names is not None
        rows: list[tuple[str, ...]] = [("position", *["name"] * named, "score", "p-value", "reason")]
        for row in self.rows(10):
            name, reason = [row["name"]] if named else [], row["reasons"].partition("; ")[0]
            rows.append((str(row["position"]), *name, f"{row['score']:.1f}", f"{row['p_value']:.4f}", reason))
        return rows

    def _sentences(self) -> list[str]:
        return [self._headline(), *(f"note: {note}" for note in self.notes.values())]

    def _headline(self) -> str:
        """What was found, or what it takes."""
        rate, count, above = f"{100 * self.false_discovery_rate:g}%", len(self.scores), len(self.above_calibration)
        if not self.n_calibration:
            return (
                "The reference was taken out of these images, so p-values only rank them and none is significant: look "
                "at the largest scores, or give a `reference` of images that you trust."
            )
        if found := len(self.significant):
            return (
                f"{_images(found)} of {count:,} {'is' if found == 1 else 'are'} significant at a false discovery rate "
                f"of {rate}, against {self.n_calibration:,} calibration images."
            )
        if not above:
            return (
                f"None of {count:,} images scores higher than every calibration image, and none is significant at a "
                f"false discovery rate of {rate}."
            )
        # The smallest p-value has to be as small as the rule asks of so many images; half of a reference calibrates.
        needed = 2 * ((count - len(self.unusable)) / (self.false_discovery_rate * above) - 1)
        digits = 10 ** max(0, math.floor(math.log10(max(1.0, needed))) - 1)
        return (
            f"{_images(above)} {'scores' if above == 1 else 'score'} higher than every calibration image. Calling "
            f"{_images(above)} significant at {rate} takes about {math.ceil(needed / digits) * digits:,} reference "
            f"images; you gave {self.n_reference:,}."
        )


def _images(count: int) -> str:
    return f"{count:,} image{'s' * (count != 1)}"
