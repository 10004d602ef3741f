"""An analysis in which every process does its share of the filters, and process 0 gets what is shown.

The maps of a layer go to those who analyse its filters, the statistics of its maps to the one who scores the samples by
it. Then all learn what was found of every filter, and process 0 the points too, and the images of the probe and of maps
where somebody wants to see them. The report of process 0 is to the bit what one process alone would have found.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_anomaly.analysis import Share, analyze_share, join_shares
from lightning_anomaly.capture.maps import LayerMaps
from lightning_anomaly.distributed import exchange, gather_results, raise_if_any_failed
from lightning_anomaly.report import AnomalyReport, LayerReport
from lightning_anomaly.report.pictures import Pictures, join_pictures, take_pictures
from lightning_anomaly.settings import AnalysisSettings
from lightning_anomaly.sharing.map_exchange import ToldLayer, exchange_maps
from lightning_anomaly.sharing.shares import sample_places

__all__ = ["Found", "Wanted", "analyse_together", "pictures_of"]


_SAME = (
    "Every process seems to have seen the same samples: then each is in the probe as often as there are processes, "
    "outliers hide each other, and samples are not numbered as those of the loader. Let Lightning deal them out "
    "(`use_distributed_sampler = True`), give a `DistributedSampler`, or shard an iterable data set."
)


@dataclass(frozen=True)
class Wanted:
    """What somebody wants to see of a probe.

    Attributes:
        images: Its images.
        pictures: Pictures of it and of its maps.
    """

    images: bool = False
    pictures: bool = False


@dataclass(frozen=True, eq=False)
class Found:
    """What an analysis found.

    Attributes:
        report: The report. Of several processes only the first one has `points` and `labels` of any samples in it.
        images: The probe's images `(N, C, H, W)`, if wanted.
        pictures: Pictures of the probe and its maps if wanted, or why there are none.
    """

    report: AnomalyReport
    images: Tensor | None = None
    pictures: Pictures | str | None = None


@dataclass(frozen=True, eq=False)
class _Shown:
    """What process 0 gets of a share: points and labels by layer, images of its samples, pictures of its maps."""

    points: Mapping[str, tuple[Tensor, Tensor]]
    images: Tensor | None
    pictures: Pictures | str | None


def analyse_together(
    maps: Mapping[str, LayerMaps],
    images: Tensor | None,
    settings: AnalysisSettings,
    notes: Mapping[str, str],
    *,
    limit: int,
    wanted: Wanted,
    failure: Exception | None = None,
) -> Found:
    """Analyse the maps of all processes; all of them call it, also one that has no maps, or has failed.

    Args:
        maps: This process's maps, which are given away: none are left.
        images: This process's images of the probe `(n, C, H, W)`.
        settings: See `AnalysisSettings`.
        notes: Notes that the report should have.
        limit: Number of samples to keep of all.
        wanted: What is wanted. Only what process 0 wants counts, and only it gets that.
        failure: Why this process has no maps, if it failed.

    Raises:
        Exception: If a process fails, in all of them: its own failure there, an OtherFailed in the others.
    """
    rank, world = dist.get_rank(), dist.get_world_size()

    def begin() -> tuple[dict[str, ToldLayer], int, Wanted, dict[str, str]]:
        if failure is not None:
            raise failure
        layers = {name: ToldLayer.of(layer) for name, layer in maps.items()}
        return layers, 0 if images is None else len(images), wanted, dict(notes)

    begun = gather_results(begin)
    told, counts, wanted_by, noted = zip(*begun, strict=True)
    wanted_first = wanted_by[0]
    notes = {key: note for own in reversed(noted) for key, note in own.items()}
    if _all_saw_the_same(told):
        notes = {**notes, "same samples": _SAME}
    # One process without the images of its maps leaves all without: they would stand at the places of others.
    known = all(
        count or not any(layer.count for layer in own.values()) for own, count in zip(told, counts, strict=True)
    )
    places = sample_places(counts if known else [0] * world, limit)
    shown: _Shown | None = None
    packed = torch.empty(0, dtype=torch.uint8)

    def analyse() -> tuple[Share, int]:
        nonlocal shown, packed
        own_maps, statistics = exchange_maps(maps, told, limit)
        share = analyze_share(own_maps, settings, statistics)
        filters = sum(next(own[name].filters for own in told if own[name].filters) for name in share.names)
        pictures = pictures_of(share.layers, own_maps, None, filters) if wanted_first.pictures else None
        kept = images[: len(places[rank])] if wanted_first.images and images is not None else None
        points = {name: (layer.points, layer.labels) for name, layer in share.layers.items()}
        shown = _Shown(points, kept, pictures)
        if rank:
            packed = _packed(shown)
        return _light(share), len(packed)

    ended = gather_results(analyse)
    lights = [light for light, _ in ended]
    lengths = [0 if rank else size for _, size in ended]
    came = exchange(lambda: [packed, *[packed[:0]] * (world - 1)], lengths, torch.uint8)

    found: Found | None = None
    try:
        if shown is None or rank:
            found = Found(join_shares([_full(light) for light in lights], settings, notes))
        else:
            found = _join(lights, [shown, *map(_unpacked, came[1:])], places, settings, notes)
    except Exception as error:
        failure = error
    raise_if_any_failed(failure)
    assert found is not None
    return found


def _all_saw_the_same(told: Sequence[Mapping[str, ToldLayer]]) -> bool:
    """Whether all processes have as many values at most 0 in every filter, of which some tell anything."""
    zeros = [
        {name: (layer.count, [] if layer.zeros is None else layer.zeros.tolist()) for name, layer in own.items()}
        for own in told
    ]
    telling = any(len({*numbers}) > 2 for _, numbers in zeros[0].values())
    return telling and all(own == zeros[0] for own in zeros)


def pictures_of(
    layers: Mapping[str, LayerReport], maps: Mapping[str, LayerMaps], images: Tensor | None, filters: int | None = None
) -> Pictures | str:
    """What `take_pictures` gives, or why it fails: pictures are not worth an analysis."""
    try:
        return take_pictures(layers, maps, images, filters)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _light(share: Share) -> Share:
    """What all processes are told of a share: no points and labels, and of the samples those that stand out."""
    layers = {
        name: replace(
            layer,
            points=layer.points[:, :0].clone(),
            labels=layer.labels[:, :0].clone(),
            outliers=layer.outliers.to_sparse(),
            isolated=layer.isolated.to_sparse(),
        )
        for name, layer in share.layers.items()
    }
    return replace(share, layers=layers)


def _full(light: Share, shown: _Shown | None = None) -> Share:
    """The way back, with points and labels where they are known."""
    layers = {}
    for name, layer in light.layers.items():
        layers[name] = replace(layer, outliers=layer.outliers.to_dense(), isolated=layer.isolated.to_dense())
        if shown is not None:
            points, labels = shown.points[name]
            layers[name] = replace(layers[name], points=points, labels=labels)
    return replace(light, layers=layers)


def _join(
    lights: Sequence[Share],
    shown: Sequence[_Shown],
    places: Sequence[Tensor],
    settings: AnalysisSettings,
    notes: Mapping[str, str],
) -> Found:
    """What process 0 finds in what all processes found."""
    report = join_shares([_full(*pair) for pair in zip(lights, shown, strict=True)], settings, notes)
    images = _join_images([own.images for own in shown], places)
    parts = [own.pictures for own in shown if isinstance(own.pictures, Pictures)]
    if len(parts) < len(shown):
        reasons = (own.pictures for own in shown if isinstance(own.pictures, str))
        return Found(report, images, next(reasons, None))
    return Found(report, images, join_pictures(parts, images, report.n_samples))


def _join_images(parts: Sequence[Tensor | None], places: Sequence[Tensor]) -> Tensor | None:
    """The images of all processes `(N, C, H, W)`; None if there are none, or of several sizes."""
    known = [(part, own) for part, own in zip(parts, places, strict=True) if part is not None and len(part)]
    if len({part.shape[1:] for part, _ in known}) != 1:
        return None
    images = known[0][0].new_empty(sum(len(part) for part, _ in known), *known[0][0].shape[1:])
    for part, own in known:
        images[own] = part
    return images


def _packed(shown: _Shown) -> Tensor:
    return torch.frombuffer(bytearray(pickle.dumps(shown)), dtype=torch.uint8)


def _unpacked(packed: Tensor) -> _Shown:
    shown: _Shown = pickle.loads(packed.cpu().numpy().tobytes())
    return shown
