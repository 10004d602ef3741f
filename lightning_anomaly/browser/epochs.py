"""Points of earlier analyses, which show how a filter's points separate over a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_anomaly.browser.pictures import even_order
from lightning_anomaly.verdicts.layer_report import LayerReport

_MOST = 20  # analyses, the last one included
_KEPT_BYTES = 4_000_000  # of one analysis in memory
_PACKED_BYTES = (1_200_000, 8_000_000)  # least and most of all analyses in a page, before compression
_FILTER_BYTES = 300  # of each filter in a page, between these limits
_MIN_SAMPLES = 24  # of a filter; analyses are omitted before there are fewer
_STEPS = 24  # codes in a unit of asinh: steps of 0.04 standard deviations near 0, of 4% far out


class Frame(NamedTuple):
    """Points of one analysis."""

    epoch: int
    step: int  # optimizer steps before it
    shapes: Mapping[str, tuple[int, int]]  # filters and probe samples of each layer
    samples: Tensor  # the probe samples whose points are kept `(n,)`, ascending
    codes: Mapping[str, Tensor]  # their coordinates by layer, int8 `(F, n, 2)`


class EpochPoints:
    """The points of up to 20 analyses, spread evenly over a fit."""

    def __init__(self) -> None:
        self._frames: list[Frame] = []
        self._seen = 0
        self._stride = 1

    def add(self, layers: Mapping[str, LayerReport], epoch: int, step: int) -> None:
        """Keep the points of an analysis; beyond 20 analyses, of every second one, then every fourth, and so on."""
        if self._seen % self._stride == 0:
            shapes = _shapes(layers)
            count = max(1, _KEPT_BYTES // (2 * max(1, sum(filters for filters, _ in shapes.values()))))
            n_samples = max((samples for _, samples in shapes.values()), default=0)
            samples = even_order(n_samples)[:count].sort().values
            codes = {name: _encode(layer.points[:, samples]) for name, layer in layers.items()}
            self._frames.append(Frame(epoch, step, shapes, samples, codes))
        self._seen += 1
        if len(self._frames) > _MOST:
            self._frames, self._stride = self._frames[::2], 2 * self._stride

    def before(self, layers: Mapping[str, LayerReport], step: int) -> list[Frame]:
        """Return the analyses before a step that have the same layers and as many samples."""
        shapes = _shapes(layers)
        return [frame for frame in self._frames if frame.step < step and frame.shapes == shapes][-_MOST + 1 :]


def packed_frames(
    layers: Mapping[str, LayerReport], frames: Sequence[Frame]
) -> tuple[list[str], int, dict[str, bytes]]:
    """Pack the points of earlier analyses for a page; `layers` are those of the last analysis.

    Each filter has its outliers, and samples spread evenly over the probe. The sign of a principal component is
    arbitrary, so each takes the sign that fits the next analysis best.

    Returns:
        Names of the E analyses, by epoch, or by step if an epoch has several; the number of samples S of a filter; and
        bytes for each layer: steps from sample to sample, uint32 `(F, S)`, then the first and the second coordinates,
        int8 `(2, E, F, S)`.
    """
    filters = sum(len(layer.verdicts) for layer in layers.values())
    budget = min(_PACKED_BYTES[1], max(_PACKED_BYTES[0], _FILTER_BYTES * filters)) // (2 * max(1, filters))
    frames = frames[:: -(-len(frames) // max(1, budget // _MIN_SAMPLES))]
    kept = frames[0].samples
    amount = min(len(kept), max(1, budget // len(frames)))
    blocks = {}
    for name, layer in layers.items():
        priority = (layer.outliers | layer.isolated)[:, kept].double() - even_order(len(kept)).argsort() / len(kept)
        chosen = priority.topk(amount, 1).indices.sort(1).values  # (F, S)
        planes, later = [], _encode(layer.points[:, kept])
        for frame in reversed(frames):
            codes = frame.codes[name]
            turned = (codes.float() * later.float()).sum(1, keepdim=True) < 0
            later = torch.where(turned, -codes, codes)
            planes.append(later.gather(1, chosen[..., None].expand(-1, -1, 2)).permute(2, 0, 1))
        steps = kept[chosen].diff(dim=1, prepend=kept.new_zeros(len(chosen), 1))
        coordinates = torch.stack(planes[::-1], 1).contiguous()
        blocks[name] = steps.numpy().astype("<u4").tobytes() + coordinates.numpy().tobytes()
    by_epoch = len({frame.epoch for frame in frames}) == len(frames)
    return [f"epoch {frame.epoch}" if by_epoch else f"step {frame.step}" for frame in frames], amount, blocks


def _encode(points: Tensor) -> Tensor:
    return (points.nan_to_num(0.0, 0.0, 0.0).asinh() * _STEPS).round().clamp(-127, 127).to(torch.int8)


def _shapes(layers: Mapping[str, LayerReport]) -> dict[str, tuple[int, int]]:
    return {name: (len(layer.verdicts), layer.outliers.shape[1]) for name, layer in layers.items()}
