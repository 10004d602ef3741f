"""What an analysis found in the whole network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_anomaly.browser.pictures import Pictures, probe_images
from lightning_anomaly.checks import check_integer
from lightning_anomaly.images.thumbnails import check_images
from lightning_anomaly.outliers.combine import VIEWS, SampleView, Tail, combine
from lightning_anomaly.tables import Tabular, listed
from lightning_anomaly.verdicts.anomalies import ANOMALY, DEAD, LIVE, NONFINITE
from lightning_anomaly.verdicts.layer_report import LayerReport, layer_from_dict, layer_to_dict, to_plain, to_tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from lightning_anomaly.browser import BrowserFile
    from lightning_anomaly.browser.epochs import Frame


_COLUMNS = ("n_components", "calinski_harabasz", "smallest_share", "outliers", "isolated", "explained", "sparsity")


@dataclass(frozen=True, eq=False, repr=False)
class AnomalyReport(Tabular):
    """What was found in a network. `print(report)` gives a table, and so does a console or a notebook that shows it.

    Attributes:
        layers: `{layer: LayerReport}` in the network's order.
        n_samples: Number of probe samples, N.
        settings: The analysis settings as plain values.
        notes: What could not be analyzed and why, as sentences, by a key that stays the same from report to report.
        views: What pixels and classes say of each sample, where the model has them.
        pictures: Images of the samples and some of the maps, where they were kept; not in `to_dict`.
    """

    layers: Mapping[str, LayerReport]
    n_samples: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    views: Mapping[str, SampleView] = field(default_factory=dict)
    pictures: Pictures | None = None

    @property
    def anomaly_filters(self) -> dict[str, list[int]]:
        """`{layer: [filter, ...]}`, layers without any left out."""
        return self._by_layer(lambda layer: layer.filters(ANOMALY))

    @property
    def dead_filters(self) -> dict[str, list[int]]:
        """`{layer: [filter, ...]}` of filters whose map is the same for all samples, layers without any left out."""
        return self._by_layer(lambda layer: layer.filters(DEAD))

    @property
    def nonfinite_filters(self) -> dict[str, list[int]]:
        """`{layer: [filter, ...]}` of filters with NaN or infinite values, layers without any left out."""
        return self._by_layer(lambda layer: layer.filters(NONFINITE))

    @property
    def isolated(self) -> dict[str, list[int]]:
        """`{layer: [filter, ...]}` of filters that set one or a few samples apart from all others.

        The rule, see `isolated_samples`, has false alarms in about 1% of filters without outliers, and in several times
        as many if samples are there twice or more often. Layers without any are left out.
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
        """Anomaly filters as a fraction of the filters that could be clustered; 0 if there is none."""
        return self.fraction_in(self.layers)

    def fraction_in(self, layers: Iterable[str]) -> float:
        """`fraction` over some of the layers; a name that the report does not have counts nothing."""
        live = self.live_in(layers)
        return live.count(ANOMALY) / len(live) if live else 0.0

    def live_in(self, layers: Iterable[str]) -> list[str]:
        """The verdicts of the filters in some of the layers that could be clustered."""
        verdicts = [verdict for name in layers if name in self.layers for verdict in self.layers[name].verdicts]
        return [verdict for verdict in verdicts if verdict in LIVE]

    @property
    def sparsity(self) -> float:
        """Fraction of map values that are at most 0, averaged over the filters that have no NaN; 0 without any."""
        known = [layer.sparsity[[verdict != NONFINITE for verdict in layer.verdicts]] for layer in self.layers.values()]
        return torch.cat(known).double().mean().item() if any(map(len, known)) else 0.0

    @property
    def outlier_samples(self) -> list[int]:
        """Of how many anomaly filters each probe sample is an outlier, N numbers."""
        votes = [layer.outliers.sum(0) for layer in self.layers.values()]
        return torch.stack(votes).sum(0).tolist() if votes else [0] * self.n_samples

    @cached_property
    def outlier_scores(self) -> Tensor:
        """How little each probe sample belongs to the others `(N,)`, in nats; 0 without any layer.

        The score ranks the samples, without any label. It is a norm of `view_scores`: those of pixels, features and
        logits; in a model without classes, those of pixels and filters. With NaN or infinite maps it is infinite.
        """
        if not self.view_scores:
            return torch.zeros(self.n_samples, device="cpu")
        infinite = torch.stack([view.isinf() for view in self.view_scores.values()]).any(0)
        return torch.where(infinite, torch.inf, combine(self.view_scores))

    @cached_property
    def view_scores(self) -> dict[str, Tensor]:
        """The negative logarithm of the tail probability of each sample among the others `(N,)`, by view, in nats.

        Views are `"pixels"`, plain statistics of the image; `"features"`, how far the last features are from those of
        the others; `"logits"`, how small the logits are; and `"filters"`, the maps of all filters, whose mean over the
        layers this is.
        """
        scores = {name: view.scores for name, view in self.views.items()}
        if self.layers:
            layers = [layer.outlier_scores for layer in self.layers.values()]
            scores["filters"] = torch.stack([Tail.fit(layer).surprise(layer) for layer in layers]).mean(0)
        return {name: Tail.fit(scores[name]).surprise(scores[name]) for name in VIEWS if name in scores}

    def outlier_reasons(self, sample: int) -> dict[str, str]:
        """Say what each view finds odd about a probe sample, the view that finds it oddest first.

        Raises:
            ValueError: If the probe does not have the sample.
        """
        sample = check_integer("sample", sample, 0, self.n_samples - 1)
        reasons = {name: view.reasons[sample] for name, view in self.views.items()}
        if self.layers:
            farthest, layer = max(self.layers.items(), key=lambda pair: pair[1].outlier_scores[sample].item())
            isolating = layer.isolated[:, sample].nonzero()[:, 0].tolist()
            filters = f", filters {listed(isolating)}" if isolating else ""
            reasons["filters"] = f"layer {farthest or '(the model)'}{filters}"
        return {name: reasons[name] for name in sorted(reasons, key=lambda name: -self.view_scores[name][sample])}

    @property
    def by_outlier_score(self) -> list[int]:
        """The probe samples, the one with the largest score first; at equal scores the one with more votes."""
        scores, votes = self.outlier_scores.tolist(), self.outlier_samples
        return sorted(range(self.n_samples), key=lambda sample: (-scores[sample], -votes[sample]))

    def metrics(self) -> dict[str, float]:
        """Compute what is logged: numbers for the network, and `layer/NAME`, the anomaly filters of each layer."""
        return {
            "count": float(self.count),
            "fraction": self.fraction,
            "isolated": float(sum(map(len, self.isolated.values()))),
            "dead": float(sum(map(len, self.dead_filters.values()))),
            "sparsity": self.sparsity,
            "outlier_samples": float(sum(votes > 0 for votes in self.outlier_samples)),
            "outlier_score": max(filter(math.isfinite, self.outlier_scores.tolist()), default=0.0),
            **{f"layer/{name}": float(len(layer.filters(ANOMALY))) for name, layer in self.layers.items()},
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything but pictures as values that JSON knows: infinite numbers and NaN are strings."""
        return {
            "n_samples": self.n_samples,
            "settings": dict(self.settings),
            "notes": {key: str(note) for key, note in self.notes.items()},
            "layers": {name: layer_to_dict(layer) for name, layer in self.layers.items()},
            "views": {
                name: {"scores": to_plain(view.scores), "reasons": list(view.reasons)}
                for name, view in self.views.items()
            },
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AnomalyReport:
        """Restore the report that `to_dict` was called on.

        Raises:
            ValueError: If `values` did not come from `to_dict`.
        """
        try:
            layers = {name: layer_from_dict(layer) for name, layer in values["layers"].items()}
            views = {
                name: SampleView(to_tensor(view["scores"], torch.float64), tuple(view["reasons"]))
                for name, view in values.get("views", {}).items()  # none in version 0.2
            }
            return cls(layers, values["n_samples"], dict(values["settings"]), dict(values["notes"]), views)
        except (AttributeError, LookupError, TypeError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"Parameter `values` should be what `AnomalyReport.to_dict()` returned. Found {error!r}."
            ) from error

    def to_frame(self) -> DataFrame:
        """Convert the report to a pandas DataFrame with a row for each filter.

        Columns are layer, filter, verdict and, as in `LayerReport`, n_components, calinski_harabasz, smallest_share,
        outliers and isolated (numbers of samples), explained and sparsity.

        Raises:
            ImportError: If pandas is not installed.
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

    def plot(self, layer: str | None = None, filter_index: int | None = None) -> Figure:
        """Draw the network, one of its layers or one of its filters.

        Args:
            layer: Name of a layer, for scatter plots of up to six of its filters, the clearest anomalies first. None
                draws a map of all filters of the network, coloured by verdict.
            filter_index: A filter of the layer, for its scatter plot alone.

        Returns:
            A figure, which a notebook shows and `figure.savefig("plot.png")` writes. No pyplot window knows of it.

        Raises:
            ValueError: If the report does not have the layer, or the layer not the filter.
        """
        from lightning_anomaly.plots import layer_figure, scatter_figure, verdict_map

        if filter_index is not None:
            return scatter_figure(self.layers, layer, filter_index)
        return verdict_map(self.layers) if layer is None else layer_figure(self.layers, layer)

    def save_html(
        self,
        path: str | Path,
        images: Tensor | None = None,
        labels: Sequence[Any] | None = None,
        title: str = "Anomaly filters",
        history: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Write the filter browser: one HTML file to open, send and keep, that needs no server and no network.

        It shows every filter's points; hover one to see the sample's image and the filter's map of it. Images are kept
        by `analyze(..., keep_images=True)`, as some of the maps are, or given here.

        Args:
            path: Where to write it; missing folders are created.
            images: The probe: images `(N, C, H, W)`, which are shown as `plots.outlier_figure` shows them, volumes
                `(N, C, D, H, W)`, of which the middle slice is shown, or signals `(N, C, L)` or `(N, L)`, as curves.
                None takes those that were kept.
            labels: A name or number for each sample, by which points can be coloured.
            title: The heading.
            history: `AnomalyFilterCallback.history`, for the curves over the epochs.

        Raises:
            ValueError: If `images` or `labels` do not have one entry for each probe sample.
        """
        from lightning_anomaly.browser import write

        write(path, self.page_text(title, images=images, labels=labels, history=history))

    def page_text(
        self,
        title: str,
        *,
        images: Tensor | None = None,
        labels: Sequence[Any] | None = None,
        history: Sequence[Mapping[str, Any]] | None = None,
        names: Sequence[str] | None = None,
        frames: Sequence[Frame] = (),
    ) -> str:
        """Return the filter browser as text, see `save_html`.

        A reader can look for samples by `names`. `frames` are the points of earlier analyses. Entries of `history` may
        have a dict `"losses"`.
        """
        from lightning_anomaly.browser import page_text

        pictures = self.pictures or Pictures(None, {})
        if not self.layers:  # nothing was analyzed, and the page says why
            images = labels = names = None
        if images is not None:
            check_images(images, self.n_samples, (2, 3, 4, 5))
            pictures = Pictures(probe_images(images), pictures.maps)
        facts = {
            "title": title,
            "count": self.count,
            "fraction": self.fraction,
            "sparsity": self.sparsity,
            "votes": self.outlier_samples,
            "scores": self.outlier_scores,
            "views": self.view_scores,
            "reasons": [self.outlier_reasons(sample) for sample in range(self.n_samples)],
            "settings": {key: str(value) for key, value in self.settings.items()},
            "notes": self.notes.values(),
            "labels": labels,
            "names": names,
            "history": history,
        }
        return page_text(facts, self.layers, pictures, frames)

    def browse(
        self,
        images: Tensor | None = None,
        labels: Sequence[Any] | None = None,
        title: str = "Anomaly filters",
        history: Sequence[Mapping[str, Any]] | None = None,
    ) -> BrowserFile:
        """Write the filter browser to a file that lasts until Python exits: a notebook shows it, a console its path.

        Args:
            images: See `save_html`, as for the other arguments.
            labels: See there.
            title: See there.
            history: See there.
        """
        from lightning_anomaly.browser import BrowserFile, temporary_path

        path = temporary_path("browser.html")
        self.save_html(path, images, labels, title, history)
        return BrowserFile(path)

    def _rows(self) -> list[tuple[str, ...]]:
        last = "anomaly filters (outlier samples)"
        rows: list[tuple[object, ...]] = [("layer", "filters", "anomaly", "isolated", "dead", "sparsity", "maps", last)]
        for name, layer in self.layers.items():
            found = layer.filters(ANOMALY)
            shown = [f"{index} ({len(layer.outliers_of(index))})" for index in found[:6]] + ["..."] * (len(found) > 6)
            numbers = len(layer.verdicts), len(found), len(layer.isolated_filters), len(layer.filters(DEAD))
            sparsity = f"{layer.sparsity.mean().item():.2f}"
            size, analyzed = ("x".join(map(str, sides)) or "1" for sides in (layer.map_size, layer.analyzed_size))
            maps = size if size == analyzed else f"{size} pooled to {analyzed}"
            rows.append((name or "(the model)", *numbers, sparsity, maps, ", ".join(shown)))
        return [tuple(map(str, row)) for row in rows]

    def _sentences(self) -> list[str]:
        votes = self.outlier_samples
        found = (
            f"{self.count} anomaly filters ({100 * self.fraction:.1f}% of those with varying maps), "
            f"{sum(count > 0 for count in votes)} of {self.n_samples} probe samples are outliers of at least one"
        )
        scores = self.outlier_scores.tolist()
        top = [f"{i} ({scores[i]:.1f})" for i in self.by_outlier_score[:5]]
        largest = [f"largest outlier scores: samples {', '.join(top)}"] if any(scores) else []
        return [found, *largest, *(f"note: {note}" for note in self.notes.values())]
