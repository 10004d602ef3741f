"""H3: does masking anomaly filters improve generalisation?

The filters that an analysis of the validation probe flags are masked after the last and after the best epoch. The last
network is measured again after 1 and 3 further epochs with the mask: by the default settings, and by the paper's if the
default flags nothing. Each mask is compared with masks of as many filters of the same layers that are not dead on the
probe: `random` ones (20 draws, of which 5 are trained further), those with the smallest weights (`l1`), and the
`sparsest`, with most zeros in their maps. Further training has a new optimizer with the settings of the run, and the
same images in the same order for every network, including the unmasked one.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lightning_anomaly import AnalysisSettings, AnomalyReport, analyze
from lightning_anomaly.pruning import mask_filters
from recipes.common.module import evaluate_parts
from recipes.experiments.fitting import Images, best_and_last, further_epochs, prepare
from recipes.experiments.spec import Training

_READINGS = {"default": AnalysisSettings(), "paper": AnalysisSettings.paper()}
_EPOCHS = (1, 3)  # of further training, after which it is measured
_RANDOM, _RANDOM_TRAINED = 20, 5
MEASURED = ("val_loss", "val_acc", "test_loss", "test_acc")
_SIZES = {"val": None, "test": 1024}  # at most as many images, as it is done thousands of times
Filters = dict[str, list[int]]
Row = list[float]  # one value for each of MEASURED


def choose(flagged: Filters, live: Filters, order: Mapping[str, Sequence[float]]) -> Filters:
    """Choose as many live filters of each layer as are flagged there: those with the smallest values in `order`."""
    return {
        layer: sorted(sorted(live[layer], key=order[layer].__getitem__)[: len(filters)])
        for layer, filters in flagged.items()
    }


@dataclass(frozen=True, eq=False)
class _Comparison:
    """One network, and the masks that are compared on it; each mask is measured once."""

    training: Training
    images: Images
    parts: dict[str, tuple[Tensor, Tensor]]
    network: nn.Sequential
    known: dict[str, dict[str, Row]] = field(default_factory=dict)

    def row(self, network: nn.Module) -> Row:
        """Compute the values of MEASURED."""
        values, _ = evaluate_parts(network, self.parts)
        return [values[name] for name in MEASURED]

    def rows(self, filters: Filters, train: bool) -> dict[str, Row]:
        """Measure a mask, by epochs of further training: `"0"` is right after masking."""
        rows = self.known.setdefault(str(filters), {})
        if "0" not in rows or (train and len(rows) == 1):
            network = copy.deepcopy(self.network)
            mask = mask_filters(network, filters, example_input=self.parts["val"][0][:2])
            rows["0"] = self.row(network)
            if train:
                for epoch in further_epochs(self.training, self.images, network, max(_EPOCHS), mask):
                    if epoch in _EPOCHS:
                        rows[str(epoch)] = self.row(network)
        return rows

    def arm(self, masks: Sequence[Filters], trained: int) -> dict[str, list[Row]]:
        """Measure several masks; train the first `trained` of them further."""
        rows: dict[str, list[Row]] = {}
        for index, filters in enumerate(masks):
            for epochs, row in self.rows(filters, index < trained).items():
                if epochs == "0" or index < trained:
                    rows.setdefault(epochs, []).append(row)
        return rows

    def reading(self, settings: AnalysisSettings, further: bool) -> dict[str, Any]:
        """Find the filters that the settings flag and measure all masks; no rows if nothing is flagged."""
        report = analyze(self.network, self.parts["val"][0][: self.training.probe_size], settings=settings)
        # One filter of each layer is never masked.
        sizes = {name: len(layer.verdicts) for name, layer in report.layers.items()}
        flagged = {name: filters[: sizes[name] - 1] for name, filters in report.anomaly_filters.items()}
        found: dict[str, Any] = {"masked": {name: len(flagged.get(name, [])) for name in report.layers}}
        if not flagged:
            return found
        parts = {name: (filters, report.layers[name].filters("normal")) for name, filters in flagged.items()}
        found["sparsity"] = {
            name: [report.layers[name].sparsity[part].mean().item() for part in both if part]
            for name, both in parts.items()
        }
        arms = self.masks(flagged, report)
        trained = dict.fromkeys(arms, 1) | {"random": _RANDOM_TRAINED}
        found["arms"] = {name: self.arm(masks, trained[name] if further else 0) for name, masks in arms.items()}
        return found

    def masks(self, flagged: Filters, report: AnomalyReport) -> dict[str, list[Filters]]:
        """Make all masks with the counts of the flagged filters."""
        live = {name: sorted(report.layers[name].filters("anomaly") + report.layers[name].filters("normal"))
                for name in flagged}  # fmt: skip
        weights = {layer: self.network.get_submodule(layer).get_parameter("weight").detach() for layer in flagged}
        smallest_first = {
            "l1": {layer: weight.flatten(1).abs().sum(1).tolist() for layer, weight in weights.items()},
            "sparsest": {layer: (-report.layers[layer].sparsity).tolist() for layer in flagged},
        }
        found = {"anomaly": [flagged], "random": []}
        for draw in range(_RANDOM):
            order = {}
            for layer, weight in weights.items():
                generator = random.Random(f"{self.training.seed} random {draw} {layer}")
                order[layer] = [generator.random() for _ in range(len(weight))]
            found["random"].append(choose(flagged, live, order))
        return found | {name: [choose(flagged, live, order)] for name, order in smallest_first.items()}


def measure(training: Training, root: str | None, weights: str | None) -> dict[str, Any]:
    """Mask the networks of a run and measure them.

    Returns:
        `epochs` of each state; `nothing`, the rows of the unmasked network by state; and `readings`, the counts and the
        rows of all masks by reading and state.
    """
    images = prepare(training, root)
    parts = {part: images.part(part, size) for part, size in _SIZES.items()}
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
        last = comparisons["last"].reading(settings, further)
        result["readings"][name] = {"last": last, "best": comparisons["best"].reading(settings, further=False)}
        further = further and "arms" not in last
    return result
