"""Is there a better rule for H1? `python -m recipes.experiments search --data-root DIR`.

Analyses the networks that `h1` trained, epoch by epoch, with other settings and with a rule that has a null of its own;
each run's counts are a line of `search.jsonl`. Which one is best is decided on the runs of one seed, see
`choice`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_anomaly import AnalysisSettings, AnomalyReport
from lightning_anomaly.analysis import analyze_maps
from lightning_anomaly.report import LayerReport
from lightning_anomaly.verdicts.rare import ANOMALY, NORMAL
from recipes.common.evaluation import evaluate, logits_of
from recipes.common.maps import capture, choose
from recipes.experiments.common.fitting import every_epoch
from recipes.experiments.common.trainings import Training, prepare
from recipes.experiments.h1.layer_statistics import tail_gaps

__all__ = ["CANDIDATES", "Candidate", "analyse", "follow"]

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


def follow(training: Training, root: str | None = None, weights: str | None = None) -> dict[str, Any]:
    """The counts of a training in the shape of a line of `h1`.

    Args:
        training: The training.
        root: See `prepare`.
        weights: See `every_epoch`.

    Returns:
        The training's settings, and `epochs`, at most about twenty: `epoch`, the validation loss, the network's
        `confidence` on training images less that on validation images, and `layers`, by candidate and layer.
    """
    images = prepare(training, root)
    val = images.normalised("val").contiguous(memory_format=torch.channels_last)
    probes = {"val": val[:1024], "train": images.normalised("train", training.probe_size)}
    stride = max(1, training.epochs // _MEASURED)
    epochs = [
        {
            "epoch": epoch,
            "val_loss": evaluate(network, val, images.data.val_labels)[0],
            "confidence": confidence(network, probes["train"])
            - confidence(network, probes["val"][: training.probe_size]),
            "layers": analyse(network, probes),
        }
        for epoch, network in every_epoch(training, images, weights)
        if epoch % stride == 0
    ]
    return {"cell": asdict(training), "epochs": epochs}
