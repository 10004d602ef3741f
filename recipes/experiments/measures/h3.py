"""H3: does masking anomaly filters improve generalisation?

For every network after its last and after its best epoch, masks the filters that an analysis of the validation probe
flags, and measures the network. The last one is measured again after 1 and 3 further epochs with the mask. The two
readings are the default settings and the paper's; further training is for the default one, and for the paper's if the
default flags nothing. Each mask is compared with masks of as many filters of the same layers, chosen among the filters
that are not dead on the probe:

- `random`: 20 draws, the first 5 of which are trained further;
- `l1`: the filters with the smallest weights;
- `fpgm`: the filters nearest to the geometric median of their layer;
- `sparsest`: the filters with most zeros in their maps, as many flagged ones are;
- `matched`: the 2 masks whose accuracy on training images, right after masking, is nearest to that of the anomaly mask,
  out of the random draws and 40 that lean more and more to small weights, because random masks alone often cost much
  more; both are trained further (last epoch only).

Further training starts a new optimizer with the settings of the run, and shows the same images in the same order to
every network, including the unmasked one.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_anomaly import AnalysisSettings, AnomalyReport, analyze
from lightning_anomaly.pruning import FilterMask, mask_filters
from recipes.common.module import evaluate, evaluate_parts
from recipes.experiments.fitting import Images, best_and_last, further_epochs, prepare
from recipes.experiments.spec import Training

_READINGS = {"default": AnalysisSettings(), "paper": AnalysisSettings.paper()}
_EPOCHS = (1, 3)  # of further training, after which it is measured
_RANDOM, _RANDOM_TRAINED, _LEANING, _MATCHED = 20, 5, 40, 2
_SINGLE = ("l1", "fpgm", "sparsest")
MEASURED = ("val_loss", "val_acc", "val_ece", "test_loss", "test_acc", "train_acc")
_SIZES = {"val": None, "test": 1024, "train": 512}  # at most as many images, as it is done thousands of times
Filters = dict[str, list[int]]
Parts = dict[str, tuple[Tensor, Tensor]]
Row = list[float]  # one value for each of MEASURED


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Compute the expected calibration error of probabilities `(N, C)`, with equal bins of the largest probability.

    The mean over the samples of |accuracy - confidence| of their bin; Guo et al., "On Calibration of Modern Neural
    Networks" (2017).
    """
    confidence, prediction = probabilities.max(1)
    right = (prediction == labels).double()
    bin_of = (confidence * bins).long().clamp(max=bins - 1)
    surplus = torch.zeros(bins, dtype=torch.float64).index_add_(0, bin_of, right - confidence.double())
    return (surplus.abs().sum() / len(labels)).item()


def measured_parts(images: Images) -> Parts:
    """Return the validation, test and training images that networks are measured on, with wrong labels included."""
    return {part: images.part(part, size) for part, size in _SIZES.items()}


def measures_of(network: nn.Module, parts: Parts) -> Row:
    """Compute the values of MEASURED."""
    values, logits = evaluate_parts(network, parts)
    values["val_ece"] = calibration_error(logits["val"].softmax(1), parts["val"][1])
    return [values[name] for name in MEASURED]


def choose(flagged: Filters, live: Filters, order: Mapping[str, Sequence[float]]) -> Filters:
    """Choose as many live filters of each layer as are flagged there: those with the smallest values in `order`."""
    return {
        layer: sorted(sorted(live[layer], key=order[layer].__getitem__)[: len(filters)])
        for layer, filters in flagged.items()
    }


def median_distances(weight: Tensor) -> Tensor:
    """Sum the Euclidean distances `(F,)` of each filter of a weight `(F, ...)` to all filters of the layer.

    Smallest for the filter nearest to the layer's geometric median; He et al., "Filter Pruning via Geometric Median for
    Deep Convolutional Neural Networks Acceleration" (2019).
    """
    filters = weight.double().flatten(1)
    return torch.cdist(filters, filters).sum(1)


def _lean(norms: Sequence[float], lean: float, seed: str) -> list[float]:
    """Return random numbers in [0, 1] plus `lean` times the rank of each norm, scaled to [0, 1]."""
    rank = {index: place / len(norms) for place, index in enumerate(sorted(range(len(norms)), key=norms.__getitem__))}
    generator = random.Random(seed)
    return [generator.random() + lean * rank[index] for index in range(len(norms))]


def _shared(flagged: Filters, mask: Filters) -> float:
    """Return the fraction of flagged filters that a mask also contains."""
    same = sum(len(set(filters) & set(mask[layer])) for layer, filters in flagged.items())
    return same / sum(map(len, flagged.values()))


@dataclass(frozen=True, eq=False)
class _Comparison:
    """One network, and the masks that are compared on it; each mask is measured once."""

    training: Training
    images: Images
    parts: Parts
    network: nn.Sequential
    known: dict[str, dict[str, Row]] = field(default_factory=dict)

    def masked(self, filters: Filters) -> tuple[nn.Module, FilterMask]:
        """Return a masked copy of the network."""
        network = copy.deepcopy(self.network)
        return network, mask_filters(network, filters, example_input=self.parts["val"][0][:2])

    def rows(self, filters: Filters, train: bool) -> dict[str, Row]:
        """Measure a mask, by epochs of further training: `"0"` is right after masking."""
        rows = self.known.setdefault(str(filters), {})
        if "0" not in rows or (train and len(rows) == 1):
            network, mask = self.masked(filters)
            rows["0"] = measures_of(network, self.parts)
            if train:
                for epoch in further_epochs(self.training, self.images, network, max(_EPOCHS), mask):
                    if epoch in _EPOCHS:
                        rows[str(epoch)] = measures_of(network, self.parts)
        return rows

    def arm(self, masks: Sequence[Filters], trained: int) -> dict[str, list[Row]]:
        """Measure several masks; train the first `trained` of them further."""
        rows: dict[str, list[Row]] = {}
        for index, filters in enumerate(masks):
            for epochs, row in self.rows(filters, index < trained).items():
                if epochs == "0" or index < trained:
                    rows.setdefault(epochs, []).append(row)
        return rows

    def reading(self, settings: AnalysisSettings, match: bool, further: bool) -> dict[str, Any]:
        """Find the filters that the settings flag and measure all masks; no rows if nothing is flagged."""
        report = analyze(self.network, self.parts["val"][0][: self.training.probe_size], settings=settings)
        live = {name: sorted(layer.filters("anomaly") + layer.filters("normal")) for name, layer in
                report.layers.items()}  # fmt: skip
        # One filter of each layer is never masked.
        sizes = {name: len(layer.verdicts) for name, layer in report.layers.items()}
        flagged = {name: filters[: sizes[name] - 1] for name, filters in report.anomaly_filters.items()}
        found: dict[str, Any] = {"masked": {name: len(flagged.get(name, [])) for name in live}}
        if not flagged:
            return found
        parts = {name: (filters, report.layers[name].filters("normal")) for name, filters in flagged.items()}
        found["sparsity"] = {
            name: [report.layers[name].sparsity[part].mean().item() for part in both if part]
            for name, both in parts.items()
        }
        arms = self.masks(flagged, live, report)
        leaning = arms.pop("leaning")
        if match:
            arms["matched"] = self.matched(flagged, [*arms["random"], *leaning])
        trained = {name: (_RANDOM_TRAINED if name == "random" else _MATCHED) if further else 0 for name in arms}
        found["shared"] = {name: _shared(flagged, arms[name][0]) for name in _SINGLE}
        found["arms"] = {name: self.arm(masks, trained[name]) for name, masks in arms.items()}
        return found

    def masks(self, flagged: Filters, live: Filters, report: AnomalyReport) -> dict[str, list[Filters]]:
        """Make all masks with the counts of the flagged filters, and candidates for the matched ones."""
        weights = {layer: self.network.get_submodule(layer).get_parameter("weight").detach() for layer in flagged}
        norms = {layer: weight.flatten(1).abs().sum(1).tolist() for layer, weight in weights.items()}
        smallest_first = {
            "l1": norms,
            "fpgm": {layer: median_distances(weight).tolist() for layer, weight in weights.items()},
            "sparsest": {layer: (-report.layers[layer].sparsity).tolist() for layer in flagged},
        }
        draws = {"random": [0.0] * _RANDOM, "leaning": [8 * ((i + 1) / _LEANING) ** 2 for i in range(_LEANING)]}
        found = {"anomaly": [flagged]}
        for name, leans in draws.items():
            orders = [
                {layer: _lean(norms[layer], lean, f"{self.training.seed} {name} {i} {layer}") for layer in flagged}
                for i, lean in enumerate(leans)
            ]
            found[name] = [choose(flagged, live, order) for order in orders]
        return found | {name: [choose(flagged, live, order)] for name, order in smallest_first.items()}

    def matched(self, flagged: Filters, pool: Sequence[Filters]) -> list[Filters]:
        """Return the draws whose training accuracy is nearest to that of the anomaly mask, and which differ from it."""
        different = {str(filters): filters for filters in pool if _shared(flagged, filters) < 1}
        masked = (self.masked(mask)[0] for mask in (flagged, *different.values()))
        target, *accuracies = [evaluate(network, *self.parts["train"])[1] for network in masked]
        draws = zip(accuracies, different.values(), strict=True)
        return [filters for _, filters in sorted(draws, key=lambda draw: abs(draw[0] - target))[:_MATCHED]]


def measure(training: Training, root: str | None, weights: str | None) -> dict[str, Any]:
    """Mask the networks of a run and measure them.

    Returns:
        `epochs` of each state; `nothing`, the rows of the unmasked network by state; and `readings`, the counts and the
        rows of all masks by reading and state.
    """
    images = prepare(training, root)
    parts = measured_parts(images)
    found = best_and_last(training, images, weights)
    by_epoch = {epochs: _Comparison(training, images, parts, network) for epochs, network in found.values()}
    comparisons = {state: by_epoch[epochs] for state, (epochs, _) in found.items()}
    result: dict[str, Any] = {
        "measures": MEASURED,
        "epochs": {state: epochs for state, (epochs, _) in found.items()},
        "nothing": {state: compared.arm([{}], trained=state == "last") for state, compared in comparisons.items()},
        "readings": {},
    }
    further = True
    for name, settings in _READINGS.items():
        last = comparisons["last"].reading(settings, match=True, further=further)
        result["readings"][name] = {"last": last, "best": comparisons["best"].reading(settings, False, False)}
        further = further and "arms" not in last
    return result
