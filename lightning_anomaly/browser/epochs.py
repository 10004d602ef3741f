"""Points of earlier analyses, packed small; they show how a filter's points move apart over a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_anomaly.browser.pictures import even_order
from lightning_anomaly.verdicts.layer_report import LayerReport

_MOST = 20  # analyses, the last one included
_KEPT_BYTES = 4_000_000  # for one analysis in memory
_PACKED_BYTES = (1_200_000, 8_000_000)  # for all in a page, before compression: at least and at most
_FILTER_BYTES = 300  # for each filter, between those two
_MIN_SAMPLES = 24  # samples of a filter; analyses are left out before it has fewer
_STEPS = 24  # codes for each unit of asinh: steps of 0.04 standard deviations near 0, of 4% far out


@dataclass(frozen=True, eq=False)
class Frame:
    """Points of one analysis."""

    epoch: int
    step: int  # optimizer steps before it
    n_samples: int  # of the probe
    samples: Tensor  # those of the probe that the points are of `(n,)`, ascending
    codes: Mapping[str, Tensor]  # their coordinates by layer, int8 `(F, n, 2)`


class EpochPoints:
    """The points of up to twenty analyses of a fit, spread evenly over it."""

    def __init__(self) -> None:
        self._frames: list[Frame] = []
        self._seen = 0
        self._stride = 1

    def add(self, layers: Mapping[str, LayerReport], epoch: int, step: int) -> None:
        """Keep the points of an analysis. Beyond twenty only every second one is kept, then every fourth, and so on."""
        if self._seen % self._stride == 0:
            filters = sum(len(layer.verdicts) for layer in layers.values())
            count = max(1, _KEPT_BYTES // (2 * max(1, filters)))
            n_samples = _count_samples(layers)
            samples = even_order(n_samples)[:count].sort().values
            codes = {name: _encode(layer.points[:, samples]) for name, layer in layers.items()}
            self._frames.append(Frame(epoch, step, n_samples, samples, codes))
        self._seen += 1
        if len(self._frames) > _MOST:
            self._frames, self._stride = self._frames[::2], 2 * self._stride

    def before(self, layers: Mapping[str, LayerReport], step: int) -> list[Frame]:
        """The analyses before a step, of the same layers and as many samples."""
        n_samples = _count_samples(layers)
        sizes = {name: len(layer.verdicts) for name, layer in layers.items()}
        return [
            frame
            for frame in self._frames
            if frame.step < step
            and frame.n_samples == n_samples
            and {name: len(codes) for name, codes in frame.codes.items()} == sizes
        ][-_MOST + 1 :]


def packed_frames(
    layers: Mapping[str, LayerReport], frames: Sequence[Frame]
) -> tuple[list[str], int, dict[str, bytes]]:
    """Pack the points of earlier analyses: for each filter its outliers, and others spread evenly over the probe.

    The sign of a principal component is arbitrary, so each takes the sign that fits the next analysis best. The
    `layers` are those of the last analysis.

    Returns:
        Names of the E analyses, by epoch or, where an epoch has several, by step; the number of samples S of a filter;
        and bytes for each layer: steps from sample to sample, uint32 `(F, S)`, then all first and all second
        coordinates, int8 `(2, E, F, S)`.
    """
    filters = sum(len(layer.verdicts) for layer in layers.values())
    budget = min(_PACKED_BYTES[1], max(_PACKED_BYTES[0], _FILTER_BYTES * filters)) // (2 * max(1, filters))
    frames = frames[:: -(-len(frames) // max(1, budget // _MIN_SAMPLES))]
    known = frames[0].samples
    amount = min(len(known), max(1, budget // len(frames)))
    blocks = {}
    for name, layer in layers.items():
        wanted = (layer.outliers | layer.isolated)[:, known].double()
        wanted -= even_order(len(known)).argsort() / len(known)
        chosen = wanted.topk(amount, 1).indices.sort(1).values  # (F, S)
        planes, later = [], _encode(layer.points[:, known])
        for frame in reversed(frames):
            codes = frame.codes[name]
            turned = (codes.float() * later.float()).sum(1, keepdim=True) < 0
            later = torch.where(turned, -codes, codes)
            planes.append(later.gather(1, chosen[..., None].expand(-1, -1, 2)).permute(2, 0, 1))
        steps = known[chosen].diff(dim=1, prepend=known.new_zeros(len(chosen), 1))
        coordinates = torch.stack(planes[::-1], 1).contiguous()
        blocks[name] = steps.numpy().astype("<u4").tobytes() + coordinates.numpy().tobytes()
    by_epoch = len({frame.epoch for frame in frames}) == len(frames)
    return [f"epoch {frame.epoch}" if by_epoch else f"step {frame.step}" for frame in frames], amount, blocks


def _encode(points: Tensor) -> Tensor:
    return (points.nan_to_num(0.0, 0.0, 0.0).asinh() * _STEPS).round().clamp(-127, 127).to(torch.int8)


def _count_samples(layers: Mapping[str, LayerReport]) -> int:
    return next((layer.outliers.shape[1] for layer in layers.values()), 0)
