"""What finds images that do not belong?

Images are damaged by the nineteen corruptions of ImageNet-C, which nobody here chose, and in other ways, see `pool`.
There are three questions, and rivals are asked the same, see `rivals`:

- `probe`: a score sees nothing but the images of a probe, as `analyze` does;
- `reference`: it sees the training images too, as `find_outliers` does with a reference. What an image gets does not
  depend on the share of damaged images, so all of these are compared with all validation images;
- `trained_on`: the network was trained on damaged images, and these are to be found among the training images.

The score was chosen on `spec.CHOSEN_KINDS`; all else is held out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from lightning_anomaly.outliers.conformal import Statistics, fit_halves
from torch import Tensor, nn

from lightning_anomaly import OutlierReport, analyze, find_outliers
from lightning_anomaly.capture.hooks import MapCapture
from lightning_anomaly.capture.layers import select_layers
from lightning_anomaly.capture.maps import map_statistics
from lightning_anomaly.capture.probe import probing
from lightning_anomaly.outliers.combine import Tail, combine
from lightning_anomaly.outliers.scores import layer_scores
from lightning_anomaly.outliers.views import view_samples
from recipes.common.damage import GROUPS
from recipes.experiments.fitting import prepare
from recipes.experiments.measures.pool import append_found, make_pool
from recipes.experiments.measures.scores import auroc
from recipes.experiments.spec import CHOSEN_KINDS, Training

_VOTES = {kinds[0] for kinds in GROUPS.values()}  # for which votes are counted, as they take a whole analysis
_RATE = 0.1  # of false discoveries
_FITS, _DRAWS = 10, 20  # references, and draws that each judges
_PLANTED = 26  # of 512 images, if any
_REFERENCE = 2000  # images, and as many test images to draw from


def look_at(network: nn.Module, inputs: Tensor) -> Statistics:
    """Run a network on images `(N, C, H, W)` and keep what they are scored by."""
    parts = []
    for positions in torch.split(torch.arange(len(inputs)), 256):
        capture = MapCapture(select_layers(network, None), summary=map_statistics, model=network)
        with probing(network) as call, capture:
            call(inputs[positions])
        layers = {name: layer.maps for name, layer in capture.maps.items()}
        parts.append(Statistics(positions, layers, capture.samples.collected(len(positions))))
    return Statistics.join(parts)


def probe_scores(statistics: Statistics) -> dict[str, Tensor]:
    """Compute the scores `(N,)` that `analyze` gives these images, and those of each view, without its clustering."""
    views = {name: view.scores for name, view in view_samples(statistics.samples).items()}
    views["filters"] = torch.stack([layer_scores(own) for own in statistics.layers.values()]).amax(0)
    surprises = {name: Tail.fit(scores).surprise(scores) for name, scores in views.items()}
    return {"outlier score": combine(surprises), **{f"view: {name}": own for name, own in surprises.items()}}


def _found(scores: Tensor, p_values: Tensor, n_reference: int) -> Tensor:
    """Which images `find_outliers` finds `(N,)`, if these are all that it is given."""
    nothing = torch.zeros(len(scores), dtype=torch.int64)
    report = OutlierReport(scores, p_values, (), nothing, nothing[:, None], n_reference, _RATE)
    found = torch.zeros(len(scores), dtype=torch.bool)
    found[report.found] = True
    return found


def measure(training: Training, root: str | None, weights: str | None) -> dict[str, Any]:
    """Train, and score.

    Returns:
        Of a network that was trained on damaged images `trained_on`, AUROCs by kind and score; else `probe`, likewise
        by kind, share and score, one for each probe, of some kinds of the votes too; `reference`, by kind and score;
        and `found`, by kind and share what `find_outliers` finds in each probe: images, damaged ones among them, and
        how many of these there are.
    """
    pool = make_pool(training, root, weights)
    if pool.planted:
        among = find_outliers(pool.network, pool.trained_on[1], progress=False)
        return {"trained_on": pool.among_trained({"outlier score": among.scores})}
    report = find_outliers(pool.network, pool.inputs, pool.reference[1], progress=False)
    beside = {"outlier score": report.scores, **{f"view: {name}": own for name, own in report.view_scores.items()}}
    seen = look_at(pool.network, pool.inputs)
    probe: dict[str, Any] = {}
    found: dict[str, Any] = {}
    for kind, share, chosen, truth in pool.probes():
        scores = probe_scores(seen.select(chosen))
        if kind in _VOTES and share == 0.01 and str(share) not in probe.get(kind, {}):
            scores["votes"] = torch.tensor(analyze(pool.network, pool.inputs[chosen], progress=False).outlier_samples)
        append_found(probe, kind, share, {name: auroc(truth, own) for name, own in scores.items()})
        flagged = _found(report.scores[chosen], report.p_values[chosen], report.n_reference)
        counts = [int(flagged.sum()), int((flagged & truth).sum()), int(truth.sum())]
        append_found(found, kind, share, {"found": counts})
    return {"probe": probe, "reference": pool.by_kind(beside), "found": found}


def false_discoveries(training: Training, root: str | None, weights: str | None) -> dict[str, Any]:
    """Find outliers among test images, of which none or a few of all held-out kinds are damaged.

    Returns:
        `draws`, by reference ("training images", or "held-out images": other test images) and number of planted images:
        of each draw the number of images found and of damaged ones among these. Twenty draws share one fit.
    """
    pool = make_pool(training, root, weights)
    inputs, _ = prepare(replace(training, test_size=2 * _REFERENCE), root).part("test")
    clean = len(inputs) // 2
    references = {
        "training images": look_at(pool.network, pool.reference[1][: 2 * _REFERENCE]),
        "held-out images": look_at(pool.network, inputs[clean:]),
    }
    places = [place for kind, own in pool.damaged.items() if kind not in CHOSEN_KINDS for place in own]
    judged = look_at(pool.network, torch.cat([inputs[:clean], pool.inputs[places]]))
    generator = torch.Generator().manual_seed(training.seed)
    draws: dict[str, Any] = {}
    for name, reference in references.items():
        for _ in range(_FITS):
            order = torch.randperm(len(reference.positions), generator=generator)[:_REFERENCE]
            (fit,), _, _ = fit_halves([reference.select(order)], "reference", both=False)
            judgement = fit.judge(judged)
            for planted in (0, _PLANTED):
                for _ in range(_DRAWS):
                    others = torch.randperm(clean, generator=generator)[: training.probe_size - planted]
                    bad = clean + torch.randperm(len(places), generator=generator)[:planted]
                    chosen = torch.cat([others, bad])
                    flagged = _found(judgement.scores[chosen], judgement.p_values[chosen], len(order))
                    counts = [int(flagged.sum()), int(flagged[len(others) :].sum())]
                    draws.setdefault(name, {}).setdefault(str(planted), []).append(counts)
    return {"draws": draws}
