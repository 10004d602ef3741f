"""Is there a better rule for H1? `python -m recipes.experiments.search --data-root DIR [--weights DIR]`.

Analyses the networks that `h1` trained, epoch by epoch, with other settings and with a rule that has a null of its own;
each run's counts are a line of `lines/search.jsonl`. Which one is best is decided on the runs of one seed, see
`h1_choice`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from lightning_anomaly import AnalysisSettings, AnomalyReport
from lightning_anomaly.analysis import analyze_maps
from lightning_anomaly.report import LayerReport
from lightning_anomaly.verdicts import ANOMALY, NORMAL
from recipes.experiments.cells import Cell, full_matrix, held_out_matrix, prepare, quick_matrix
from recipes.experiments.lines import run_missing
from recipes.experiments.options import add_matrix_options, lines_file
from recipes.experiments.statistics import tail_gaps
from recipes.experiments.training import evaluate, every_epoch, logits_of
from recipes.options import one_sentence_errors
from recipes.stability import capture, choose

__all__ = ["CANDIDATES", "MATRIX", "Candidate", "add_options", "analyse", "run_missing_cells"]

MATRIX = ("overfitting", "noise30", "augmented", "more_data")
Follow = Callable[..., dict[str, Any]]
_MEASURED = 20  # at most about as many epochs of a training
_CHANCE = 0.01  # of a false alarm, for the rule with a null


@dataclass(frozen=True)
class Candidate:
    """One way to flag filters.

    Args:
        settings: How the maps are clustered.
        probe: "val", or "train" for the first training images, as they are without augmentation.
        size: Images in the probe.
        gaps: Whether to flag a filter for a gap in the tail of its points, see `tail_gaps`, not for a rare cluster.
    """

    settings: AnalysisSettings = field(default_factory=AnalysisSettings)
    probe: str = "val"
    size: int = 512
    gaps: bool = False


_RAW = AnalysisSettings(rectify=False)
CANDIDATES = {
    "default": Candidate(),
    "paper's reading": Candidate(AnalysisSettings.paper()),
    "rare at 1%": Candidate(AnalysisSettings(rare_fraction=0.01)),
    "rare at 5%": Candidate(AnalysisSettings(rare_fraction=0.05)),
    "K up to 8": Candidate(AnalysisSettings(max_components=8)),
    "K by Calinski-Harabasz": Candidate(AnalysisSettings(rule="best")),
    "1,024 images": Candidate(size=1024),
    "paper's reading, 1,024 images": Candidate(AnalysisSettings.paper(), size=1024),
    "not rectified": Candidate(_RAW),
    "paper's reading, not rectified": Candidate(replace(AnalysisSettings.paper(), rectify=False)),
    "gap in the tail": Candidate(gaps=True),
    "gap in the tail, not rectified": Candidate(_RAW, gaps=True),
    "training probe": Candidate(probe="train"),
    "paper's reading, training probe": Candidate(AnalysisSettings.paper(), probe="train"),
    "not rectified, training probe": Candidate(_RAW, probe="train"),
    "gap in the tail, training probe": Candidate(probe="train", gaps=True),
}  # fmt: skip


def _counts(layer: LayerReport, gaps: bool) -> dict[str, int]:
    live = layer.filters(ANOMALY) + layer.filters(NORMAL)
    flagged = (tail_gaps(layer.points[live]) <= _CHANCE).sum() if gaps else len(layer.filters(ANOMALY))
    return {"count": int(flagged), "live": len(live)}


def analyse(network: nn.Module, probes: dict[str, Tensor]) -> dict[str, dict[str, dict[str, int]]]:
    """Flagged and live filters by candidate and layer; `probes` are the images `(N, C, H, W)` by name."""
    found = {}
    for rectify in (True, False):  # one set of maps in memory at a time
        maps = {name: capture(network, images, AnalysisSettings(rectify=rectify)) for name, images in probes.items()}
        reports: dict[tuple[AnalysisSettings, str, int], AnomalyReport] = {}
        for name, candidate in CANDIDATES.items():
            if candidate.settings.rectify == rectify:
                key = candidate.settings, candidate.probe, min(candidate.size, len(probes[candidate.probe]))
                if key not in reports:  # the rule with gaps judges the points of the others
                    reports[key] = analyze_maps(choose(maps[candidate.probe], torch.arange(key[2])), candidate.settings)
                found[name] = {layer: _counts(result, candidate.gaps) for layer, result in reports[key].layers.items()}
    return {name: found[name] for name in CANDIDATES}


def confidence(network: nn.Module, images: Tensor) -> float:
    """The mean of the largest probability of each image."""
    return logits_of(network, images).softmax(1).amax(1).mean().item()


def follow(cell: Cell, root: str | None = None, weights: str | None = None) -> dict[str, Any]:
    """The counts of a training in the shape of a line of `h1`.

    Args:
        cell: The cell.
        root: See `prepare`.
        weights: See `every_epoch`.

    Returns:
        The cell's settings, and `epochs`, at most about twenty: `epoch`, the validation loss, the network's
        `confidence` on training images less that on validation images, and `layers`, by candidate and layer.
    """
    images = prepare(cell, root)
    val = images.normalised("val").contiguous(memory_format=torch.channels_last)
    probes = {"val": val[:1024], "train": images.normalised("train", cell.probe_size)}
    stride = max(1, cell.epochs // _MEASURED)
    epochs = [
        {
            "epoch": epoch,
            "val_loss": evaluate(network, val, images.data.val_labels)[0],
            "confidence": confidence(network, probes["train"]) - confidence(network, probes["val"][: cell.probe_size]),
            "layers": analyse(network, probes),
        }
        for epoch, network in every_epoch(cell, images, weights)
        if epoch % stride == 0
    ]
    return {"cell": asdict(cell), "epochs": epochs}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a script that follows trainings."""
    add_matrix_options(parser)
    parser.add_argument("--held-out", action="store_true", help="the network that had no part in the choice")
    parser.add_argument("--weights", default=None, help="folder in which `h1` kept weights; trains what is not there")


def run_missing_cells(options: argparse.Namespace, experiment: str, follow: Follow) -> list[dict[str, Any]]:
    """Follow the trainings that are missing in the lines of an experiment; returns all of them."""
    if options.quick:
        cells = quick_matrix()
    elif options.held_out:
        cells = held_out_matrix()
    else:
        cells = full_matrix(options.networks, conditions=MATRIX, seeds=options.seeds)
    work = partial(follow, root=options.data_root, weights=options.weights)
    return run_missing(cells, attrgetter("key"), work, lines_file(options, experiment), options.workers)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run what is missing; returns the lines."""
    return run_missing_cells(options, "search", follow)


if __name__ == "__main__":
    one_sentence_errors(run, parse)
