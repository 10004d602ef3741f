"""The result of an analysis of a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_anomaly._internal.checks import check_integer
from lightning_anomaly._internal.tabular import Tabular
from lightning_anomaly.filters.kept_maps import KeptMaps
from lightning_anomaly.filters.layer_report import ANOMALY, CLUSTERED, DEAD, NONFINITE, LayerReport
from lightning_anomaly.scores.sample_table import column_tensor, first_by, sample_reasons, sample_table
from lightning_anomaly.scores.views import ODD_VIEWS, larger_scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from lightning_anomaly.pages.html_page import BrowserFile

_COLUMNS = ("n_components", "calinski_harabasz", "smallest_share", "outliers", "isolated", "explained", "sparsity")
_FIRST = 5  # samples that a printed report begins with
_MOST_ROWS = 12  # layers in a printed table
_SPARSE = 0.7  # from this share of zeros on, many filters are flagged without any odd image, see `docs/method.md`
_HEADING = ("layer", "filters", "anomaly", "isolated", "dead", "sparsity", "maps", "anomaly filters (outlier samples)")


@dataclass(frozen=True, eq=False, repr=False)
class AnomalyReport(Tabular):
    """The filters and probe samples of a network. A console, a notebook and `print(report)` show it as a table.

    Attributes:
        layers: `{layer: LayerReport}` in the network's order.
        n_samples: Number of probe samples, N.
        settings: The analysis settings as plain values.
        notes: Sentences about what could not be analyzed, and why. A key has the same meaning in every report.
        columns: What is known of each sample, see `samples`.
        images: Small images of the samples, uint8 `(N, height, width, channels)`, if they were kept and can be drawn.
        maps: Some maps of each layer's filters, if they were kept.
        folder: Folder that the samples' files are relative to, if these are known.
    """

    layers: Mapping[str, LayerReport]
    n_samples: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    images: Tensor | None = None
    maps: Mapping[str, KeptMaps] = field(default_factory=dict)
    folder: str = ""

    @cached_property
    def samples(self) -> DataFrame:
        """What is known of each probe sample, in a row of its position: see `docs/api/reports.md`.

        Scores and reasons are of look and content, and in a fit of one process whose batches have labels also of the
        label: how much the network prefers another class.
        """
        known = {**self.columns, "score": self.outlier_scores, "votes": self.votes}
        return sample_table(known, range(self.n_samples), self.folder, "sample")

    @property
    def anomaly_filters(self) -> dict[str, list[int]]:
        """`{layer: [filter, ...]}` of anomaly filters; layers without any are omitted."""
        return self._by_layer(lambda layer: layer.filters(ANOMALY))

    @property
    def dead_filters(self) -> dict[str, list[int]]:
        """`{layer: [filter, ...]}` of filters whose map is the same for all samples; layers without any are omitted."""
        return self._by_layer(lambda layer: layer.filters(DEAD))

    @property
    def isolated_filters(self) -> dict[str, list[int]]:
        """`{layer: [filter, ...]}` of filters with one or a few samples far from all others, see `isolated_samples`.

        About 1% of filters without outliers are false alarms, and several times as many if the probe repeats samples.
        """
        return self._by_layer(lambda layer: layer.isolated_filters)

    def _by_layer(self, filters_of: Callable[[LayerReport], list[int]]) -> dict[str, list[int]]:
        return {name: filters for name, layer in self.layers.items() if (filters := filters_of(layer))}

    @property
    def count(self) -> int:
        """Number of anomaly filters."""
        return sum(map(len, self.anomaly_filters.values()))

    @property
    def fraction(self) -> float:
        """Share of anomaly filters among the filters that could be clustered; 0 without any."""
        return self.count / max(1, self.n_clustered)

    @property
    def n_clustered(self) -> int:
        """Number of filters that could be clustered."""
        return sum(verdict in CLUSTERED for layer in self.layers.values() for verdict in layer.verdicts)

    @property
    def measured(self) -> bool:
        """Whether the filters could be analyzed; if not, a note gives the reason."""
        # Masked filters stay dead beside filters that are not finite.
        nonfinite = any(layer.filters(NONFINITE) for layer in self.layers.values())
        return bool(self.layers) and "few samples" not in self.notes and (self.n_clustered > 0 or not nonfinite)

    @property
    def sparsity(self) -> float:
        """Mean share of map values that are at most 0, over filters with finite values; 0 without any."""
        shares = [
            layer.sparsity[[verdict != NONFINITE for verdict in layer.verdicts]] for layer in self.layers.values()
        ]
        return torch.cat(shares).double().mean().item() if any(map(len, shares)) else 0.0

    @cached_property
    def votes(self) -> list[int]:
        """The number of anomaly filters in which each probe sample is an outlier, N numbers."""
        outliers = [layer.outliers.sum(0) for layer in self.layers.values()]
        return torch.stack(outliers).sum(0).tolist() if outliers else [0] * self.n_samples

    @cached_property
    def outlier_scores(self) -> Tensor:
        """How unlike the other probe samples each one is `(N,)`, in nats; 0 without any view.

        The score needs no labels. It is the larger one of `look_scores` and `content_scores`, and infinite for samples
        with NaN or infinite maps.
        """
        known = {view: self.columns[f"{view}_score"] for view in ODD_VIEWS if f"{view}_score" in self.columns}
        scores = larger_scores(known, torch.zeros(self.n_samples, dtype=torch.float64, device="cpu"))
        infinite = [layer.nonfinite for layer in self.layers.values()]
        return torch.where(torch.stack(infinite).any(0), torch.inf, scores) if infinite else scores

    @property
    def look_scores(self) -> Tensor:
        """How unlike the others each sample looks by its pixels `(N,)`, in nats; NaN if samples are no images."""
        return column_tensor(self.samples, "look_score")

    @property
    def content_scores(self) -> Tensor:
        """How unlike the others is what the network sees in each sample `(N,)`, in nats; NaN without features."""
        return column_tensor(self.samples, "content_score")

    def outlier_reasons(self, sample: int) -> dict[str, str]:
        """Return why a probe sample looks odd or shows something else, the larger score first.

        Only the top 5% of the scores get a reason.

        Raises:
            ValueError: If `sample` is not an index into the probe.
        """
        return sample_reasons(dict(self.samples.loc[check_integer("sample", sample, 0, self.n_samples - 1)]))

    @property
    def by_outlier_score(self) -> list[int]:
        """The probe samples by descending score, and at equal scores by descending votes."""
        scores, votes = self.outlier_scores.tolist(), self.votes
        return sorted(range(self.n_samples), key=lambda sample: (-scores[sample], -votes[sample]))

    def metrics(self) -> dict[str, float]:
        """Compute the logged values: numbers of the network, and counts of anomaly filters by layer as `layer/NAME`."""
        return {
            "count": float(self.count),
            "fraction": self.fraction,
            "isolated": float(sum(map(len, self.isolated_filters.values()))),
            "dead": float(sum(map(len, self.dead_filters.values()))),
            "sparsity": self.sparsity,
            "outlier_samples": float(sum(votes > 0 for votes in self.votes)),
            **{f"layer/{name}": float(len(layer.filters(ANOMALY))) for name, layer in self.layers.items()},
        }

    def to_frame(self) -> DataFrame:
        """Convert the report to a pandas DataFrame with a row for each filter.

        Columns are layer, filter, verdict, and as in `LayerReport` n_components, calinski_harabasz, smallest_share,
        outliers and isolated (numbers of samples), explained and sparsity.
        """
        from pandas import DataFrame

        columns: dict[str, list[Any]] = {key: [] for key in ("layer", "filter", "verdict", *_COLUMNS)}
        for name, layer in self.layers.items():
            columns["layer"] += [name] * len(layer.verdicts)
            columns["filter"] += range(len(layer.verdicts))
            columns["verdict"] += layer.verdicts
            for key in _COLUMNS:
                values = getattr(layer, key)
                columns[key] += (values.sum(1) if values.ndim == 2 else values).tolist()
        return DataFrame(columns)

    def plot(self) -> Figure:
        """Draw a map of all filters, colored by verdict, which notebooks show and `savefig("plot.png")` writes."""
        from lightning_anomaly.filters.filter_figures import verdict_map

        return verdict_map(self.layers, self.measured)

    def save_html(
        self, path: str | Path, labels: Sequence[Any] | None = None, title: str = "Anomaly filters"
    ) -> BrowserFile:
        """Write the filter browser, a single HTML file that needs no server and no network.

        It shows every filter's points. Hovering over a point shows the sample's image, which `AnomalyFilterCallback`
        and `analyze(..., keep_images=True)` keep, and the filter's map of it, which the latter keeps too.

        Args:
            path: Path of the file; missing folders are created.
            labels: A name or number for each sample, by which points can be colored; None takes the samples' classes.
            title: The heading.

        Returns:
            The file; a notebook shows the page.

        Raises:
            ValueError: If `labels` do not have one entry for each probe sample.
        """
        from lightning_anomaly.filters.filter_page import filter_browser_text
        from lightning_anomaly.pages.html_page import write_page

        return write_page(path, filter_browser_text(self, title, labels, Path(path).parent))

    def _table_rows(self) -> list[tuple[str, ...]]:
        """Describe each layer in a row, below a heading; of more than twelve, those with the most anomaly filters."""
        layers, shown = self.layers, {*self.layers}
        rows: list[tuple[str, ...]] = [_HEADING]
        if len(layers) > _MOST_ROWS:
            shown = {*sorted(layers, key=lambda name: -len(layers[name].filters(ANOMALY)))[: _MOST_ROWS - 1]}
        for name in [name for name in layers if name in shown]:
            layer = layers[name]
            anomalies = layer.filters(ANOMALY)
            first = [f"{index} ({len(layer.outliers_of(index))})" for index in anomalies[:6]]
            size, analyzed = ("x".join(map(str, sides)) or "1" for sides in (layer.map_size, layer.analyzed_size))
            maps = size if size == analyzed else f"{size} pooled to {analyzed}"
            if len(anomalies) > 6:
                first.append("...")
            rows.append((name or "(the model)", *self._table_counts([layer]), maps, ", ".join(first)))
        if others := [layer for name, layer in layers.items() if name not in shown]:
            rows.append((f"{len(others)} others", *self._table_counts(others), "", ""))
        return rows

    def _table_counts(self, layers: Sequence[LayerReport]) -> list[str]:
        """Count all, anomaly, isolated and dead filters of some layers, and compute their mean sparsity."""
        kinds = ((part.verdicts, part.filters(ANOMALY), part.isolated_filters, part.filters(DEAD)) for part in layers)
        total, anomalies, isolated, dead = (str(sum(map(len, kind))) for kind in zip(*kinds, strict=True))
        if not (self.measured and any(verdict != NONFINITE for layer in layers for verdict in layer.verdicts)):
            anomalies = isolated = "-"
        sparsity = torch.cat([layer.sparsity for layer in layers]).mean().item()
        return [total, anomalies, isolated, dead, f"{sparsity:.2f}"]

    def _introduction(self) -> list[str]:
        """Begin with the strangest samples, and count the anomaly filters."""
        scores, lines = self.outlier_scores.tolist(), list[str]()
        names = self.columns.get("name", range(self.n_samples))
        if strangest := [sample for sample in self.by_outlier_score[:_FIRST] if scores[sample] > 0]:
            lines.append("strangest samples:")
        for sample in strangest:
            reasons = "; ".join(self.outlier_reasons(sample).values())
            score = f"  {names[sample]}, score {scores[sample]:.1f}"
            lines.append(f"{score}: {reasons}" if reasons else score)
        if "label_score" in self.samples:
            doubted = self.samples[self.samples["label_reason"] != ""]
            if first := first_by(doubted, "label_score")[:_FIRST]:
                lines.append("labels that the network doubts most:")
            lines += [f"  {names[sample]}: {doubted['label_reason'][sample]}" for sample in first]
        return [*lines, *(layer_table_sentences(self.layers) if self.measured else ["anomaly filters: not measured"])]

    def _sentences(self) -> list[str]:
        return [f"note: {note}" for note in self.notes.values()]


def layer_table_sentences(layers: Mapping[str, LayerReport]) -> list[str]:
    """Say how many filters isolate a sample, and how many are flagged, of sparse filters and of others."""
    verdicts = {True: list[str](), False: list[str]()}  # on filters that were clustered, sparse ones and others
    for layer in layers.values():
        for verdict, sparsity in zip(layer.verdicts, layer.sparsity.tolist(), strict=True):
            if verdict in CLUSTERED:
                verdicts[sparsity >= _SPARSE].append(verdict)
    clustered = verdicts[True] + verdicts[False]
    share, among_sparse, among_others = (
        f"{100 * part.count(ANOMALY) / max(1, len(part)):.1f}%" for part in (clustered, *verdicts.values())
    )
    isolating = sum(len(layer.isolated_filters) for layer in layers.values())
    return [
        f"{isolating} filters isolate a sample; chance gives up to {math.ceil(0.01 * len(clustered))}",
        f"anomaly filters: {clustered.count(ANOMALY)}, {share} of those with varying maps ({among_sparse} where at "
        f"least {100 * _SPARSE:.0f}% of the values are zero, which alone makes rare clusters; {among_others} "
        "elsewhere)",
    ]
