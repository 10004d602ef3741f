"""What is ordinary, learnt from one half of a reference and measured against the other: scores with p-values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_anomaly.clustering.engines import load_engine
from lightning_anomaly.clustering.threads import torch_in_threads
from lightning_anomaly.notes import nonfinite
from lightning_anomaly.outliers.scores import Ordinary, Spread

__all__ = ["FILTERS", "Half", "Judgement", "Statistics", "learn_halves"]

FILTERS = 3  # named for each image

Statistics = dict[str, Tensor]  # (n, F, 5) of each layer
Judgement = tuple[Tensor, Tensor, Tensor, Tensor]  # scores, p-values and layers (n,), filters (n, 3)


def learn_halves(
    batches: Sequence[Statistics], device: torch.device, argument: str
) -> tuple[tuple[str, ...], tuple[Half, Half], Tensor, dict[str, str]]:
    """What is ordinary by each half of a reference.

    Returns:
        The layers that can judge, the halves, which images they consist of `(m,)`, the first half of them first, and
        notes on filters that do not judge. Left out are images with NaN or infinite values elsewhere: they are no
        example of what is ordinary, and their scores, larger than any, would be taken for one.
    """
    nothing = ValueError(
        f"Parameter `{argument}` should give maps that are finite and vary from image to image. Found none in any "
        "layer: look for NaN in the images and in the weights."
    )
    names = [name for name in batches[0] if all(name in batch for batch in batches)]
    if not names:
        raise nothing
    # Out of the batches, which are not needed any more: this is most of the memory.
    taken = {name: torch.cat([batch.pop(name) for batch in batches]) for name in names}
    unknown = {name: own.isfinite().all(2).sum(0) * 2 <= len(own) for name, own in taken.items()}
    complete = torch.stack([own[:, ~unknown[name]].isfinite().all(2).all(1) for name, own in taken.items()]).all(0)
    kept = complete.nonzero()[:, 0]
    if 2 * len(kept) <= len(complete):
        raise ValueError(
            f"Parameter `{argument}` should hold images that give finite values. Found {len(kept)} of {len(complete)}: "
            "look for NaN in the images and for values beyond the precision of the model."
        )
    if len(kept) < len(complete):
        taken = {name: taken.pop(name)[kept] for name in names}
    middle = len(kept) // 2
    engine = load_engine("auto")
    first, second = (
        dict(zip(taken, torch_in_threads(fit, taken.values(), like=torch.empty(0, device="cpu")), strict=True))
        for fit in (
            lambda own: (Ordinary.fit(own[:middle], engine), own[middle:]),
            lambda own: (Ordinary.fit(own[middle:], engine), own[:middle]),
        )
    )
    usable = tuple(name for name in names if first[name][0] is not None and second[name][0] is not None)
    if not usable:
        raise nothing
    halves = [Half({name: half[name] for name in usable}, device) for half in (first, second)]
    notes: dict[str, str] = {}
    for name in usable:
        if unknown[name].any():
            where = "in their maps of most reference images and do not judge"
            notes |= nonfinite(name, int(unknown[name].sum()), len(unknown[name]), where)
    return usable, (halves[0], halves[1]), kept, notes


class Half:
    """What is ordinary, learnt from one half of the reference and measured against the other.

    Args:
        layers: What was learnt of each layer, and the statistics of the other half.
        device: Where images are judged.

    Attributes:
        own: What `judge` says of the other half, each image being one of those that it is compared with.
    """

    def __init__(self, layers: Mapping[str, tuple[Ordinary | None, Tensor]], device: torch.device) -> None:
        self._ordinary = {name: own.to(device) for name, (own, _) in layers.items() if own is not None}
        measured = {name: statistics.to(device) for name, (_, statistics) in layers.items()}
        found = self._measure(measured)
        self._spreads = [Spread.fit(lengths) for lengths, _ in found]
        scores, layer, filters = self._strongest(measured, found)
        self._sorted = scores.sort().values
        self.own = scores, self._larger(scores).double() / len(scores), layer, filters

    def judge(self, statistics: Statistics) -> Judgement:
        """Scores, p-values and strongest layers `(n,)`, and that layer's strongest filters `(n, 3)`."""
        scores, layer, filters = self._strongest(statistics, self._measure(statistics))
        return scores, (1 + self._larger(scores)).double() / (1 + len(self._sorted)), layer, filters

    def _measure(self, statistics: Statistics) -> list[tuple[Tensor, Tensor]]:
        return [ordinary.lengths(statistics[name]) for name, ordinary in self._ordinary.items()]

    def _larger(self, scores: Tensor) -> Tensor:
        """How many of the other half have scores at least as large."""
        return len(self._sorted) - torch.searchsorted(self._sorted, scores)

    def _strongest(
        self, statistics: Statistics, found: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, layers and filters, from lengths and tails in every layer."""
        scores = [own.scores(lengths) for own, (lengths, _) in zip(self._spreads, found, strict=True)]
        largest, layer = torch.stack(scores).max(0)
        filters = layer.new_zeros(len(layer), FILTERS)
        for place, (name, ordinary) in enumerate(self._ordinary.items()):
            own = layer == place
            filters[own] = ordinary.strongest(found[place][1][own], statistics[name].shape[1], FILTERS)
        return largest.cpu(), layer.cpu(), filters.cpu()
