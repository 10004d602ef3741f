"""The page of an `AnomalyReport`: an index of plain values, and blocks of bytes that it unpacks when needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_anomaly._internal.checks import check_labels
from lightning_anomaly.filters.agreement import agreements, most_singled_out
from lightning_anomaly.filters.filter_figures import clearest_filters
from lightning_anomaly.filters.kept_maps import KeptMaps, even_order
from lightning_anomaly.filters.layer_report import LayerReport
from lightning_anomaly.pages.gallery import Entry, SampleList, gallery_index
from lightning_anomaly.pages.html_page import assemble_page, finite_or_none, four_digits, usual_score
from lightning_anomaly.scores.sample_table import column_tensor, sample_reasons, views_of

FILTER_CODE = (
    "dom unpack wording data csv colors canvas scatter components overview filter_list filter_page samples shell "
    "gallery_cards gallery curves run"
)
_LEAVE_OUT = """\
import csv

with open("verdicts.csv", encoding="utf-8") as file:
    ticked = [int(row["position"]) for row in csv.DictReader(file) if row["verdict"] == "ticked"]"""
_POINTS = 2_500_000  # of all filters
_LEVELS = 4095  # of a coordinate, between the smallest and the largest of the filter
_REACTIONS = 24  # filters listed for each sample
_GROUPS = 24  # of filters that agree
_COLUMNS = ("n_components", "calinski_harabasz", "smallest_share", "explained", "sparsity")


def filter_browser_text(report: Any, title: str, labels: Sequence[Any] | None, folder: str | Path = "") -> str:
    """Return the text of the page of an `AnomalyReport`, which will lie in `folder`."""
    if labels is not None and report.layers:
        report = replace(report, columns={**report.columns, "class": check_labels(labels, report.n_samples)})
    index, blocks = filter_browser_content(report)
    index |= {"title": title, "lead": [], "details": [], "sentences": None}
    return assemble_page(
        FILTER_CODE, index | gallery_index(sample_lists(report), folder, _LEAVE_OUT), report.images, blocks
    )


def filter_browser_content(report: Any) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return what pages show of an `AnomalyReport`: an index and blocks of bytes, see `assemble_page`."""
    layers, n_samples, scores, maps = report.layers, report.n_samples, report.outlier_scores, report.maps
    labels, names = report.columns.get("class"), report.columns.get("name")
    if not layers:  # the page has only the notes, which say why
        labels = names = None
    filters = sum(len(layer.verdicts) for layer in layers.values())
    count = min(n_samples, max(1, _POINTS // max(1, filters)))
    shown = torch.zeros(n_samples, dtype=torch.bool, device="cpu")
    shown[even_order(n_samples)[:count]] = True
    ranks = {place: rank for rank, place in enumerate(clearest_filters(layers, filters))}
    # Groups are listed if they agree on a sample which more filters single out than chance explains.
    many = {*most_singled_out(layers)} if layers else set()
    blocks = {}
    for number, (name, layer) in enumerate(layers.items()):
        blocks[f"points-{number}"] = _browser_points(layer, shown)
        if name in maps:
            blocks[f"maps-{number}"] = _browser_maps(maps[name])
    notes = [*report.notes.values()]
    if count < n_samples:
        notes.append(
            f"To limit the size of this file, a filter shows its outliers and {count:,} samples, spread evenly over "
            f"the {n_samples:,} of the probe. Clusters are numbered and counted by these points."
        )
    index = {
        "count": report.count,
        "fraction": report.fraction,
        "sparsity": four_digits(report.sparsity),
        "measured": report.measured,
        "votes": report.votes,
        "reasons": [sample_reasons(row) for row in report.samples.to_dict("records")],
        "settings": {key: str(value) for key, value in report.settings.items()},
        "samples": n_samples,
        "scores": [finite_or_none(score) for score in scores.tolist()],  # all digits: the report's table rounds once
        "ordinary": usual_score(scores),
        "views": [
            {
                "view": view,
                "ordinary": usual_score(column_tensor(report.samples, f"{view}_score")),
                "scores": [finite_or_none(score) for score in report.samples[f"{view}_score"].tolist()],
            }
            for view in views_of(report.samples)
        ],
        "agreements": [group for group in (agreements(layers) if many else ()) if many & {*group[1]}][:_GROUPS],
        "reactions": _browser_reactions(layers, n_samples),
        "layers": [_browser_layer(name, layer, ranks, maps.get(name)) for name, layer in layers.items()],
        "labels": None if labels is None else _browser_labels(labels),
        "names": names,
        "notes": notes,
    }
    return index, blocks


def _browser_reactions(layers: Mapping[str, LayerReport], n_samples: int) -> list[list[tuple[int, float | None]]]:
    """List the filters that react to each sample, numbered through all layers, and its distance from their mean.

    Those that isolate it come before those with it in a rare cluster, each kind by descending distance.
    """
    reactions: list[list[tuple[bool, float, int]]] = [[] for _ in range(n_samples)]
    start = 0
    for layer in layers.values():
        filters, members = (layer.isolated | layer.outliers).nonzero(as_tuple=True)
        distances = torch.linalg.vector_norm(layer.points[filters, members].nan_to_num(0.0, 0.0, 0.0), dim=1)
        columns = members, ~layer.isolated[filters, members], -distances, start + filters
        for sample, late, nearness, number in zip(*(column.tolist() for column in columns), strict=True):
            reactions[sample].append((late, nearness, number))
        start += len(layer.verdicts)
    return [[(number, four_digits(-near)) for _, near, number in sorted(rows)[:_REACTIONS]] for rows in reactions]


def _browser_layer(
    name: str, layer: LayerReport, ranks: Mapping[tuple[str, int], int], kept: KeptMaps | None
) -> dict[str, Any]:
    verdict_names = list(dict.fromkeys(layer.verdicts))
    described: dict[str, Any] = {
        "name": name,
        "verdict_names": verdict_names,
        "verdicts": [verdict_names.index(verdict) for verdict in layer.verdicts],
        "clearest": [ranks.get((name, index)) for index in range(len(layer.verdicts))],
        "outliers": _browser_rows(layer.outliers),
        "isolated": _browser_rows(layer.isolated),
        "map_size": list(layer.map_size),
        "analyzed_size": list(layer.analyzed_size),
        "maps": None,
        **{column: [four_digits(value) for value in getattr(layer, column).tolist()] for column in _COLUMNS},
    }
    if kept is not None:
        _, amount, height, width = kept.maps.shape
        described["maps"] = {"kept": amount, "height": height, "width": width}
        described |= {"most": kept.most.tolist(), "least": kept.least.tolist()}
    return described


def _browser_rows(flags: Tensor) -> dict[str, list[int]]:
    """List the columns that are true in each row, without empty rows."""
    return {str(row): flags[row].nonzero()[:, 0].tolist() for row in flags.any(1).nonzero()[:, 0].tolist()}


def _browser_points(layer: LayerReport, shown: Tensor) -> bytes:
    """Pack each filter's points of the `shown` samples, its outliers and its isolated samples."""
    points = layer.points.nan_to_num(0.0, 0.0, 0.0)
    low, high = points.amin(1), points.amax(1)
    included = shown | layer.outliers | layer.isolated
    included &= (high > low).any(1)[:, None]  # dead filters have no points to draw
    rows, samples = included.nonzero(as_tuple=True)
    starts = torch.nn.functional.pad(included.sum(1).cumsum(0), (1, 0))
    levels = ((points[rows, samples] - low[rows]) / (high - low)[rows].clamp_min(1e-30) * _LEVELS).round()
    steps = samples.diff(prepend=samples.new_zeros(1))
    begins = starts[:-1][starts[:-1] < len(samples)]
    steps[begins] = samples[begins]
    codes = levels.T.numpy().astype(np.uint16)
    parts = [
        starts.numpy().astype("<u4"),  # index of each filter's first point (F + 1,)
        torch.stack([low, high], 2).numpy().astype("<f4"),  # of x and of y (F, 2, 2)
        steps.numpy().astype("<u4"),  # from sample to sample
        # x and y, the low bytes before the high bytes, which compresses better
        *((axis >> shift).astype(np.uint8) for axis in codes for shift in (0, 8)),
        layer.clusters[rows, samples].numpy(),
        (layer.outliers[rows, samples] + 2 * layer.isolated[rows, samples]).numpy().astype(np.uint8),
    ]
    return b"".join(part.tobytes() for part in parts)


def _browser_maps(kept: KeptMaps) -> bytes:
    """Pack maps by sample: steps from sample to sample `(F, M)`, then pixels, two in a byte, low half first."""
    samples, order = kept.samples.sort(1)
    steps = samples.diff(dim=1, prepend=samples.new_zeros(len(samples), 1))
    levels = kept.maps.flatten(2).gather(1, order[..., None].expand(-1, -1, kept.maps[0, 0].numel()))
    levels = levels.clamp(max=247).add(8) // 17  # 255 is 15 times 17
    if levels.shape[2] % 2:
        levels = torch.nn.functional.pad(levels, (0, 1))
    packed = levels[..., ::2] | (levels[..., 1::2] << 4)
    return steps.numpy().astype("<u4").tobytes() + packed.numpy().tobytes()


def _browser_labels(values: list[Any]) -> dict[str, Any]:
    """List the distinct labels in order, and for each sample the place of its label among them."""
    texts = ["unknown" if value in (None, "") else str(value) for value in values]  # lists have no hash
    value_of = dict(zip(texts, values, strict=True))
    numeric = all(isinstance(value, (int, float)) for value in values)
    names = sorted(value_of, key=value_of.__getitem__ if numeric else None)
    places = {name: place for place, name in enumerate(names)}
    return {"names": names, "of": [places[text] for text in texts]}


def sample_lists(report: Any) -> list[SampleList]:
    """Return the lists of an `AnomalyReport`."""
    samples = report.samples
    if "class" in report.columns:
        samples = samples.assign(**{"class": ["" if label is None else str(label) for label in samples["class"]]})

    def entry(sample: int, note: str = "") -> Entry:
        return Entry(sample, "; ".join(report.outlier_reasons(sample).values()), samples["score"][sample], note)

    odd = [entry(sample) for sample in report.by_outlier_score] if views_of(samples) else []
    counts = most_singled_out(report.layers) if report.measured else {}
    chosen = [entry(sample, f"singled out by {count} filters") for sample, count in counts.items()]
    about = "More filters isolate them, or have them in a rare cluster, than chance explains."
    strange = "Validation samples, the strangest first."
    return [
        SampleList("strangest samples", "Samples", strange, samples, odd, in_report=True),
        SampleList("singled out", "Singled out", about, samples, chosen, in_report=True),
    ]
