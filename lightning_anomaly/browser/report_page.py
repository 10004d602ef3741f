"""The page of an `AnomalyReport`: its filters and the samples of its probe.

It holds a report in few bytes: an index of plain values that it reads at once, and blocks that it unpacks when needed,
with points and maps of each layer, scores and reactions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_anomaly.browser.epochs import Frame, packed_frames
from lightning_anomaly.browser.page import assemble, plain_labels
from lightning_anomaly.browser.pictures import KeptMaps, Pictures, even_order
from lightning_anomaly.plots import clearest_filters
from lightning_anomaly.verdicts.layer_report import LayerReport

_CODE = (
    "dom unpack data wording csv colours canvas scatter components overview filter_list filter_page samples shell main"
)
_POINTS = 4_000_000  # of all filters together
_LEVELS = 4095  # of a point's coordinate, between the smallest and the largest of its filter
_REACTIONS = 24  # filters told for each sample
_COLUMNS = ("n_components", "calinski_harabasz", "smallest_share", "explained", "sparsity")


def page_text(
    facts: Mapping[str, Any], layers: Mapping[str, LayerReport], pictures: Pictures, frames: Sequence[Frame]
) -> str:
    """Write the layers of a report as the text of an HTML page, see `AnomalyReport.page_text`, which gives the facts.

    `frames` are the points of earlier analyses.
    """
    scores, n_samples = facts["scores"], len(facts["scores"])
    filters = sum(len(layer.verdicts) for layer in layers.values())
    count = min(n_samples, max(1, _POINTS // max(1, filters)))
    shown = torch.zeros(n_samples, dtype=torch.bool, device="cpu")
    shown[even_order(n_samples)[:count]] = True
    ranks = {place: rank for rank, place in enumerate(clearest_filters(layers, filters))}
    described: list[dict[str, Any]] = []
    blocks: dict[str, bytes] = {}
    for number, (name, layer) in enumerate(layers.items()):
        described.append(_layer(name, layer, [ranks.get((name, index)) for index in range(len(layer.verdicts))]))
        blocks[f"points-{number}"] = _points(layer, shown)
        if name in pictures.maps:
            kept = pictures.maps[name]
            blocks[f"maps-{number}"] = _maps(kept)
            _, amount, height, width = kept.maps.shape
            described[-1]["maps"] = {"kept": amount, "height": height, "width": width}
            described[-1] |= {"most": kept.most.tolist(), "least": kept.least.tolist()}
    views, blocks["views"] = _views(facts["views"], layers)
    reactions, blocks["reactions"] = _reactions(layers)
    labels = facts["labels"]
    index = {
        **facts,
        "samples": n_samples,
        "fraction": _short(facts["fraction"]),
        "sparsity": _short(facts["sparsity"]),
        # Not rounded: rounded twice, a score may differ from that in the report's table. Infinite ones are None.
        "scores": [score if math.isfinite(score) else None for score in scores.tolist()],
        "ordinary": usual_score(scores),
        "views": views,
        "reactions": reactions,
        "epochs": None,
        "layers": described,
        "labels": None if labels is None else _labels(plain_labels(labels, n_samples)),
        "notes": [*facts["notes"], *_left_out(n_samples, count, [*pictures.maps.values()])],
        "history": _history(facts["history"]),
    }
    if frames and layers:
        epochs, amount, packed = packed_frames(layers, frames)
        index["epochs"] = {"of": epochs, "samples": amount}
        blocks |= {f"epochs-{number}": packed[name] for number, name in enumerate(layers)}
    return assemble(_CODE, index, pictures.images, blocks)


def usual_score(scores: Tensor) -> float:
    """Return the score that 95% of the finite scores are below; 0 if there are none."""
    finite = scores[scores.isfinite()].double()
    return _short(torch.quantile(finite, 0.95).item()) or 0.0 if len(finite) else 0.0


def _views(view_scores: Mapping[str, Tensor], layers: Mapping[str, LayerReport]) -> tuple[list[dict[str, Any]], bytes]:
    """Describe each view of the samples and each layer, and pack their scores, float64 `(N,)` each."""
    views: list[tuple[str | None, str | None, Tensor]] = [(view, None, scores) for view, scores in view_scores.items()]
    views += [(None, name, layer.outlier_scores) for name, layer in layers.items()]
    told = [{"view": view, "layer": name, "ordinary": usual_score(scores)} for view, name, scores in views]
    return told, b"".join(scores.double().numpy().astype("<f8").tobytes() for *_, scores in views)


def _reactions(layers: Mapping[str, LayerReport]) -> tuple[int, bytes]:
    """Pack the k filters that react most to each sample, uint32 `(N, k)`, and how strongly, float32 `(N, k)`.

    A reaction is the distance of the sample's point from the filter's mean. Filters are numbered through all layers.
    Returns k first.
    """
    if not layers:
        return 0, b""
    distances = torch.cat([layer.points.nan_to_num(0.0, 0.0, 0.0).square().sum(2).sqrt() for layer in layers.values()])
    found = distances.T.topk(min(_REACTIONS, len(distances)), 1)
    parts = found.indices.numpy().astype("<u4"), found.values.float().numpy().astype("<f4")
    return found.indices.shape[1], b"".join(part.tobytes() for part in parts)


def _layer(name: str, layer: LayerReport, ranks: list[int | None]) -> dict[str, Any]:
    known = list(dict.fromkeys(layer.verdicts))
    found: dict[str, Any] = {
        "name": name,
        "verdict_names": known,
        "verdicts": [known.index(verdict) for verdict in layer.verdicts],
        "clearest": ranks,
        "outliers": _rows(layer.outliers),
        "isolated": _rows(layer.isolated),
        "map_size": list(layer.map_size),
        "analyzed_size": list(layer.analyzed_size),
        "maps": None,
    }
    for column in _COLUMNS:
        found[column] = [_short(value) for value in getattr(layer, column).tolist()]
    return found


def _rows(flags: Tensor) -> dict[str, list[int]]:
    """List the places that are true in each row, without empty rows."""
    rows: dict[str, list[int]] = {}
    for row, place in flags.nonzero().tolist():
        rows.setdefault(str(row), []).append(place)
    return rows


def _short(value: float) -> float | None:
    """Round to four digits; None for infinite numbers and NaN, which JSON does not have."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _points(layer: LayerReport, shown: Tensor) -> bytes:
    """Pack each filter's points of the samples `shown`, of its outliers and of its isolated samples."""
    points = layer.points.nan_to_num(0.0, 0.0, 0.0)
    low, high = points.amin(1), points.amax(1)
    included = shown | layer.outliers | layer.isolated
    included &= (high > low).any(1)[:, None]  # dead filters have no points worth a picture
    rows, samples = included.nonzero(as_tuple=True)
    starts = torch.nn.functional.pad(included.sum(1).cumsum(0), (1, 0))
    levels = ((points[rows, samples] - low[rows]) / (high - low)[rows].clamp_min(1e-30) * _LEVELS).round()
    steps = samples.diff(prepend=samples.new_zeros(1))
    begins = starts[:-1][starts[:-1] < len(samples)]
    steps[begins] = samples[begins]
    codes = levels.T.numpy().astype(np.uint16)
    parts = [
        starts.numpy().astype("<u4"),  # where each filter's points begin (F + 1,)
        torch.stack([low, high], 2).numpy().astype("<f4"),  # of x and of y (F, 2, 2)
        steps.numpy().astype("<u4"),  # from sample to sample
        # x and y, each the low bytes before the high ones, which compress
        *((axis >> shift).astype(np.uint8) for axis in codes for shift in (0, 8)),
        layer.labels[rows, samples].numpy(),
        (layer.outliers[rows, samples] + 2 * layer.isolated[rows, samples]).numpy().astype(np.uint8),
    ]
    return b"".join(part.tobytes() for part in parts)


def _maps(kept: KeptMaps) -> bytes:
    """Pack maps by sample: steps from sample to sample `(F, M)`, then pixels, two in a byte, low half first."""
    samples, order = kept.samples.sort(1)
    steps = samples.diff(dim=1, prepend=samples.new_zeros(len(samples), 1))
    levels = kept.maps.flatten(2).gather(1, order[..., None].expand(-1, -1, kept.maps[0, 0].numel()))
    levels = levels.clamp(max=247).add(8) // 17  # 255 is 15 times 17
    if levels.shape[2] % 2:
        levels = torch.nn.functional.pad(levels, (0, 1))
    packed = levels[..., ::2] | (levels[..., 1::2] << 4)
    return steps.numpy().astype("<u4").tobytes() + packed.numpy().tobytes()


def _labels(values: list[Any]) -> dict[str, Any]:
    """List the distinct labels in order, and for each sample the place of its label among them."""
    told = [str(value) for value in values]  # as lists have no hash, and NaN does not equal itself
    known = dict(zip(told, values, strict=True))
    numbers = all(isinstance(value, (int, float)) for value in values)
    names = sorted(known, key=known.__getitem__ if numbers else None)
    places = {name: place for place, name in enumerate(names)}
    return {"names": names, "of": [places[name] for name in told]}


def _history(history: Sequence[Mapping[str, Any]] | None) -> dict[str, Any] | None:
    """The curves: epochs and, at each of them, counts and losses."""
    if not history:
        return None
    losses = list(dict.fromkeys(name for entry in history for name in entry.get("losses", {})))
    return {
        "epochs": [entry["epoch"] for entry in history],
        "counts": {
            name: [_short(entry["metrics"].get(key, 0.0)) for entry in history]
            for name, key in (("anomaly filters", "count"), ("isolated filters", "isolated"))
        },
        "losses": {name: [_short(entry.get("losses", {}).get(name, math.nan)) for entry in history] for name in losses},
    }


def _left_out(samples: int, count: int, maps: Sequence[KeptMaps]) -> list[str]:
    """Say what the page leaves out: points beyond `count` samples, and maps."""
    notes, kept = [], [layer.samples.shape[1] for layer in maps]
    if count < samples:
        notes.append(
            f"To keep this file small, a filter shows the points of {count:,} samples, spread evenly over the "
            f"{samples:,} of the probe, and of its outliers. Clusters are numbered and counted by these points."
        )
    if kept and min(kept) < samples:
        few = f"{min(kept):,}" if min(kept) == max(kept) else f"{min(kept):,} to {max(kept):,}"
        notes.append(
            f"To keep this file small, the maps of {few} of {samples:,} samples are kept for each filter: of "
            "its outliers, of its most and least active samples, and of others."
        )
    return notes
