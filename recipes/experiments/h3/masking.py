"""H3: does masking anomaly filters improve generalisation? `python -m recipes.experiments h3 --data-root DIR`.

Takes every network of the conditions `overfitting` and `noise30` as it is after its last epoch, and as it was at its
best one, masks the filters that an analysis of the validation probe flags, and measures it right away. The last one
is measured again after 1 and 3 further epochs, the mask kept. Both readings are taken, the default settings and the
paper's; further training is for the default one, and for the paper's where the default flags nothing. Each is
compared with other masks of as many filters of the same layers, all out of the filters that are not dead on the
probe:

- `random`: 20 draws, of which the first 5 are trained further;
- `l1`: the filters with the smallest weights;
- `fpgm`: the filters nearest to the geometric median of their layer;
- `sparsest`: the filters with most zeros in their maps, which many flagged ones are;
- `matched`: of the random draws and 40 that lean more and more to small weights, because random ones alone often cost
  much more, the 2 whose accuracy on training images as they are labelled is, right after masking, nearest to that of
  the anomaly mask; both are trained further (last epoch only).

Further training starts a new optimizer with the settings of the training and shows every network the same images in
the same order, also the one with nothing masked. The results land in `h3.jsonl`.
"""

from __future__ import annotations

import argparse
import copy
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_anomaly import AnalysisSettings, analyze
from lightning_anomaly.capture.layers import modules_by_name
from lightning_anomaly.pruning.mask import FilterMask, mask_filters
from lightning_anomaly.pruning.selection import Summary, choose_filters, choose_others, filter_norms, summarise
from lightning_anomaly.report import LayerReport
from lightning_anomaly.verdicts.rare import NORMAL
from recipes.common.evaluation import evaluate
from recipes.experiments.common.fitting import every_epoch, further_epochs
from recipes.experiments.common.options import chosen_trainings
from recipes.experiments.common.store import rounded
from recipes.experiments.common.trainings import Images, Training, prepare
from recipes.experiments.h3.measures import MEASURES, Judge, Row

__all__ = ["EPOCHS", "READINGS", "experiment", "median_distances", "trainings"]

READINGS = {"default": AnalysisSettings(), "paper": AnalysisSettings.paper()}
MATRIX = ("overfitting", "noise30")
EPOCHS = (1, 3)  # of further training, after which it is measured
RANDOM, RANDOM_TRAINED, LEANING, MATCHED = 20, 5, 40, 2
_SINGLE = ("l1", "fpgm", "sparsest")
Filters = dict[str, list[int]]


def states(training: Training, images: Images, weights: str | None) -> dict[str, tuple[int, nn.Module]]:
    """The networks of a training after the `last` epoch and after the `best` one, and these epochs.

    Args:
        training: The training.
        images: Its images.
        weights: See `every_epoch`.

    Returns:
        `{state: (epochs trained, network)}`; best is the epoch with the smallest validation loss.
    """
    val = images.normalised("val").contiguous(memory_format=torch.channels_last)
    best_loss = float("inf")
    for epoch, network in every_epoch(training, images, weights):
        loss = evaluate(network, val, images.data.val_labels)[0]
        if loss < best_loss:
            best_loss, best = loss, (epoch, copy.deepcopy(network))
    return {"last": (epoch, network), "best": best}


@dataclass(frozen=True, eq=False)
class Comparison:
    """One network, and the masks that are compared on it; the same mask is measured once."""

    training: Training
    images: Images
    judge: Judge
    network: nn.Module
    known: dict[str, dict[str, Row]] = field(default_factory=dict)

    def masked(self, filters: Filters) -> tuple[nn.Module, FilterMask]:
        """A masked copy of the network."""
        network = copy.deepcopy(self.network)
        return network, mask_filters(network, filters, example_input=self.judge.images[:2])

    def rows(self, filters: Filters, train: bool) -> dict[str, Row]:
        """What a mask does, by epochs of further training: `"0"` is right after masking."""
        rows = self.known.setdefault(str(_in_order(filters)), {})
        if "0" not in rows or (train and len(rows) == 1):
            network, mask = self.masked(filters)
            rows["0"] = self.judge.row(network)
            if train:
                for epoch in further_epochs(self.training, self.images, network, max(EPOCHS), mask):
                    if epoch in EPOCHS:
                        rows[str(epoch)] = self.judge.row(network)
        return rows

    def arm(self, masks: Sequence[Filters], trained: int) -> dict[str, list[Row]]:
        """The rows of several masks, of which the first `trained` are trained further."""
        rows: dict[str, list[Row]] = {}
        for index, filters in enumerate(masks):
            for epochs, row in self.rows(filters, index < trained).items():
                if epochs == "0" or index < trained:
                    rows.setdefault(epochs, []).append(row)
        return rows

    def reading(self, settings: AnalysisSettings, match: bool, further: bool) -> dict[str, Any]:
        """What the settings flag, and the rows of all masks; no rows where nothing is flagged."""
        report = analyze(self.network, self.judge.images[: self.training.probe_size], settings=settings)
        summary = summarise(report)
        flagged = choose_filters([summary], {}, min_votes=1, max_fraction=1.0)  # leaves one filter of each layer
        found: dict[str, Any] = {
            "masked": {layer: len(flagged.get(layer, [])) for layer in summary},
            "live": {layer: sum(outliers >= 0 for outliers in known) for layer, known in summary.items()},
            "filters": {layer: len(known) for layer, known in summary.items()},
        }
        if not flagged:
            return found
        found["sparsity"] = {layer: _sparsity(report.layers[layer], chosen) for layer, chosen in flagged.items()}
        sparsity = {layer: report.layers[layer].sparsity.tolist() for layer in flagged}
        arms = self.masks(flagged, summary, sparsity)
        leaning = arms.pop("leaning")
        if match:
            arms["matched"], found["matching"] = self.matched(flagged, [*arms["random"], *leaning])
        trained = {name: (RANDOM_TRAINED if name == "random" else MATCHED) if further else 0 for name in arms}
        found["shared"] = {name: _shared(flagged, masks[0]) for name, masks in arms.items() if name in _SINGLE}
        found["arms"] = {name: self.arm(masks, trained[name]) for name, masks in arms.items()}
        return found

    def masks(
        self, flagged: Filters, summary: Summary, sparsity: Mapping[str, Sequence[float]]
    ) -> dict[str, list[Filters]]:
        """All masks with the counts of the flagged filters, and those to pick matched ones from."""
        modules = modules_by_name(self.network)
        weights = {layer: modules[layer].get_parameter("weight").detach() for layer in flagged}
        norms = {layer: filter_norms(modules[layer]) for layer in flagged}
        smallest_first = {
            "l1": norms,
            "fpgm": {layer: median_distances(weight).tolist() for layer, weight in weights.items()},
            "sparsest": {layer: [-value for value in values] for layer, values in sparsity.items()},
        }
        draws = {"random": [0.0] * RANDOM, "leaning": [8 * ((i + 1) / LEANING) ** 2 for i in range(LEANING)]}
        found = {"anomaly": [flagged]}
        for name, leans in draws.items():
            orders = [
                {layer: _lean(norms[layer], lean, f"{self.training.seed} {name} {i} {layer}") for layer in flagged}
                for i, lean in enumerate(leans)
            ]
            found[name] = [choose_others(flagged, summary, {}, order, "") for order in orders]
        for name, order in smallest_first.items():
            found[name] = [choose_others(flagged, summary, {}, order, "")]
        return found

    def matched(self, flagged: Filters, pool: Sequence[Filters]) -> tuple[list[Filters], dict[str, Any]]:
        """Different draws with the training accuracy of the anomaly mask, and how well they match it.

        A draw of just the flagged filters is no comparison and left out.
        """
        different = {str(filters): filters for filters in map(_in_order, pool) if _shared(flagged, filters) < 1}
        wanted, *found = [self.judge.train_accuracy(self.masked(mask)[0]) for mask in (flagged, *different.values())]
        nearest = sorted(zip(found, different.values(), strict=True), key=lambda draw: abs(draw[0] - wanted))[:MATCHED]
        matching = {
            "anomaly": wanted,
            "matched": [accuracy for accuracy, _ in nearest],
            "pool": [min(found, default=None), max(found, default=None)],
        }
        return [filters for _, filters in nearest], rounded(matching, 4)


def median_distances(weight: Tensor) -> Tensor:
    """Sum `(F,)` of the Euclidean distances of each filter of a weight `(F, ...)` to all filters of the layer.

    Smallest for the filter nearest to the layer's geometric median; He et al., "Filter Pruning via Geometric Median for
    Deep Convolutional Neural Networks Acceleration" (2019).
    """
    filters = weight.double().flatten(1)
    return torch.cdist(filters, filters).sum(1)


def _lean(norms: Sequence[float], lean: float, seed: str) -> list[float]:
    """Random numbers, 0 to 1, plus the rank of each norm, 0 to 1, times `lean`."""
    rank = {index: place / len(norms) for place, index in enumerate(sorted(range(len(norms)), key=norms.__getitem__))}
    generator = random.Random(seed)
    return [generator.random() + lean * rank[index] for index in range(len(norms))]


def _sparsity(layer: LayerReport, flagged: list[int]) -> list[float]:
    """Mean sparsity of the flagged filters and of the normal ones, if there are any."""
    parts = (flagged, layer.filters(NORMAL))
    return [layer.sparsity[part].mean().item() for part in parts if part]


def _in_order(filters: Filters) -> Filters:
    return {layer: sorted(chosen) for layer, chosen in filters.items()}


def _shared(flagged: Filters, mask: Filters) -> float:
    """Fraction of the flagged filters that a mask has too."""
    same = sum(len(set(filters) & set(mask[layer])) for layer, filters in flagged.items())
    return same / sum(map(len, flagged.values()))


def experiment(training: Training, root: str | None = None, weights: str | None = None) -> dict[str, Any]:
    """Mask the networks of a training and measure what that does.

    Args:
        training: The training.
        root: See `prepare`.
        weights: See `states`.

    Returns:
        The training's settings, `epochs` of each state, `nothing`: the rows of the unmasked network by state, and
        `readings`: what was flagged and the rows of all masks, by reading and state.
    """
    images = prepare(training, root)
    judge = Judge.of(training, images, root)
    found = states(training, images, weights)
    by_epoch = {epochs: Comparison(training, images, judge, network) for epochs, network in found.values()}
    comparisons = {state: by_epoch[epochs] for state, (epochs, _) in found.items()}
    result: dict[str, Any] = {
        "cell": asdict(training),
        "measures": MEASURES,
        "epochs": {state: epochs for state, (epochs, _) in found.items()},
        "nothing": {state: compared.arm([{}], trained=state == "last") for state, compared in comparisons.items()},
        "readings": {},
    }
    further = True
    for name, settings in READINGS.items():
        last = comparisons["last"].reading(settings, match=True, further=further)
        result["readings"][name] = {"last": last, "best": comparisons["best"].reading(settings, False, False)}
        further = further and "arms" not in last
    return result


def trainings(options: argparse.Namespace) -> list[Training]:
    """The trainings that the options ask for; of the quick ones the first has nothing to mask."""
    chosen = chosen_trainings(options, MATRIX, quick=MATRIX)
    return [*chosen[:-1], replace(chosen[-1], network="simple_cnn")] if options.quick else chosen
