"""Which scores find odd images, on well-trained networks? `python -m recipes.experiments.odd_images --data-root DIR`.

`--weights DIR` holds the networks of `recipes.experiments.good_networks`; two small ones, trained on 4,000 images, are
added. Each network is one line of results/outliers.jsonl; networks with a line are skipped.

In each draw, 10 of 512 test images are replaced by images of one kind of damage, or 15 by images of a class that the
network was not trained on. There are two questions. `probe`: a score sees only these images, as in `analyze`.
`reference`: it also sees 3,000 training images, with labels if it needs them, as in `find_outliers`. The measures are
AUROC, average precision, and the share of the n planted images among the first 2n.

The score was chosen with `CHOSEN_KINDS` on a ResNet-20 that others had trained on CIFAR-10, and with the classes of
`CHOSEN_CLASSES` left out; these are not reported.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed, parallel_config
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from lightning_anomaly import OutlierReport
from lightning_anomaly.capture.hooks import MapCapture
from lightning_anomaly.capture.layers import select_layers
from lightning_anomaly.capture.maps import map_statistics
from lightning_anomaly.capture.probe import probing
from lightning_anomaly.outliers.combine import Tail, combine, conformal_p_values
from lightning_anomaly.outliers.filter_view import layer_scores
from lightning_anomaly.outliers.scorer import Scorer, Statistics, fit_scorers
from lightning_anomaly.outliers.views import view_samples
from recipes.common.damage import damage_all
from recipes.common.data import load_images
from recipes.common.options import one_sentence_errors
from recipes.experiments.fitting import prepare, trained
from recipes.experiments.good_networks import NETWORKS, GoodNetwork, Normalised, load_good, parser_of
from recipes.experiments.measures.planted import FOREIGN
from recipes.experiments.measures.rivals import Seen, look_at, rival_scores
from recipes.experiments.measures.scores import auroc
from recipes.experiments.spec import Training
from recipes.experiments.store import RESULTS, append, read_lines, rounded

CHOSEN_KINDS = ("shot_noise", "defocus_blur", "frost", "contrast", "elastic_transform", "saturate", "transposed",
                "digits")  # fmt: skip
CHOSEN_CLASSES = (0, 1, 2, 3, 8, 9)  # of Fashion-MNIST
LITTLE = [Training("small_vgg", data, "clean", 1, 16, 2e-3) for data in ("cifar10", "fashion_mnist")]
_PROBE, _PLANTED, _OF_CLASS = 512, 10, 15
_DRAWS = {"kind": 4, "class": 8}
_ODD, _ORDINARY, _REFERENCE = 100, 3000, 3000  # images of a kind, test images, and training images
_RATE, _FITS, _SOME = 0.1, 10, 26  # of false discoveries: references, and planted images

Groups = Mapping[str, Tensor]


def _images(data: str, left_out: tuple[int, ...], root: str | None, weights: Path) -> tuple[dict[str, Tensor], Tensor]:
    """Load images uint8 by group, `clean`, `reference`, `held out` and each kind, and the labels of the reference."""
    source = load_images(data, root)
    unknown = torch.tensor(left_out)
    known, seen = ~torch.isin(source.test_labels[:-_ODD], unknown), ~torch.isin(source.train_labels, unknown)
    test = source.test_images[:-_ODD][known]
    train, labels = source.train_images[seen], source.train_labels[seen]
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(1))[:_REFERENCE]
    found = {"clean": test[:_ORDINARY], "reference": train[chosen], "held out": test[_ORDINARY : 2 * _ORDINARY]}
    if left_out:
        found |= {f"class {one}": source.test_images[source.test_labels == one][: 2 * _ODD] for one in left_out}
    else:
        found |= _damaged(data, source.test_images[-_ODD:], root, weights)
    return found, labels[chosen]


def _damaged(data: str, images: Tensor, root: str | None, weights: Path) -> dict[str, Tensor]:
    """Damage images in every kind; they are cached in the folder of the weights."""
    path = weights / f"damaged-{data}.npz"
    if not path.is_file():
        foreign = {"digits": load_images("digits").train_images}
        foreign["other_data"] = load_images(FOREIGN[data], root).test_images
        arrays: dict[str, Any] = {kind: part.numpy() for kind, part in damage_all(images, foreign, seed=0).items()}
        np.savez_compressed(path, **arrays)
    with np.load(path) as file:
        return {kind: torch.from_numpy(file[kind]) for kind in file.files}


def statistics_of(network: nn.Module, images: Tensor) -> Statistics:
    """Run a network on images and collect the statistics that scores use."""
    parts = []
    for positions in torch.split(torch.arange(len(images)), 256):
        capture = MapCapture(select_layers(network, None), summary=map_statistics, model=network)
        with probing(network) as call, capture:
            call(images[positions])
        layers = {name: layer.maps for name, layer in capture.maps.items()}
        parts.append(Statistics(positions, layers, capture.samples.collected(len(positions))))
    return Statistics.join(parts)


def _joined(seen: Mapping[str, Any], chosen: Mapping[str, Tensor]) -> Statistics:
    return Statistics.join([seen[group].select(places) for group, places in chosen.items()])


def _probes(sizes: Mapping[str, int]) -> Iterator[tuple[str, dict[str, Tensor], Tensor]]:
    """Yield the kind, the positions of the images of a probe by group, and which are odd, bool `(512,)`."""
    generator = torch.Generator().manual_seed(0)
    for kind in sizes:
        if kind in ("clean", "reference", "held out"):
            continue
        count = _OF_CLASS if kind.startswith("class") else _PLANTED
        for _ in range(_DRAWS["class" if kind.startswith("class") else "kind"]):
            others = torch.randperm(sizes["clean"], generator=generator)[: _PROBE - count]
            odd = torch.randperm(sizes[kind], generator=generator)[:count]
            yield kind, {"clean": others, kind: odd}, torch.arange(_PROBE) >= len(others)


def probe_scores(statistics: Statistics) -> dict[str, Tensor]:
    """Compute the scores `(N,)` that `analyze` gives these images, and those of each view, without its clustering."""
    views = {name: view.scores for name, view in view_samples(statistics.samples).items()}
    layers = [layer_scores(values) for values in statistics.layers.values()]
    views["filters"] = torch.stack([Tail.fit(layer).surprise(layer) for layer in layers]).mean(0)
    surprises = {name: Tail.fit(scores).surprise(scores) for name, scores in views.items()}
    pixels = Tail.fit(views["pixels"].exp()).surprise(views["pixels"].exp())
    energy = -Tail.fit(views["logits"]).share(views["logits"]).log()
    farthest = torch.stack(layers).amax(0)
    return {
        "outlier score": combine(surprises),
        **{f"view: {name}": scores for name, scores in surprises.items()},
        "features and logits": surprises["features"] + surprises["logits"],
        "lead 1": torch.maximum(pixels, energy),
        "lead 2": pixels + (Tail.fit(farthest).surprise(farthest) + energy) / 2,
    }


def _by_reference(scorer: Scorer, scale: Statistics, images: Statistics) -> dict[str, Tensor]:
    """Compute the scores of `probe_scores` by a reference."""
    judged = scorer.judge(images)
    (known, _, _), (found, _, _) = scorer._view(scale), scorer._view(images)
    distances = known["pixels"].scores.exp(), found["pixels"].scores.exp()
    pixels = Tail.fit(distances[0]).surprise(distances[1])
    energy = -Tail.fit(known["logits"].scores).share(found["logits"].scores).log()
    farthest = [_farthest(scorer, part) for part in (scale, images)]
    views = judged.views
    return {
        "outlier score": judged.scores,
        **{f"view: {name}": view.scores for name, view in views.items()},
        "features and logits": views["features"].scores + views["logits"].scores,
        "lead 1": torch.maximum(pixels, energy),
        "lead 2": pixels + (Tail.fit(farthest[0]).surprise(farthest[1]) + energy) / 2,
    }


def _farthest(scorer: Scorer, images: Statistics) -> Tensor:
    """Compute the largest standardised distance in any layer, which was once the view of filters."""
    layers = scorer.layers.items()
    distances = [layer.spread.scores(layer.model.mahalanobis_squared(images.layers[name])[0]) for name, layer in layers]
    return torch.stack(distances).amax(0)


def _measures(truth: Tensor, scores: Tensor) -> list[float]:
    """Compute AUROC, average precision, and the share of the n planted images among the first 2n."""
    values = scores.double().nan_to_num(posinf=1e30)
    first = values.argsort(descending=True, stable=True)[: 2 * int(truth.sum())]
    return [auroc(truth, values), average_precision_score(truth, values), truth[first].double().mean().item() * 2]


def measure(network: Normalised, images: Groups, labels: Tensor) -> dict[str, Any]:
    """Measure all scores, by question, kind and score; return means over the draws."""
    seen = {group: statistics_of(network, part) for group, part in images.items()}
    plain: Any = network.network
    looked = {group: look_at(plain, network.scaled(part), part) for group, part in images.items()}
    count = _REFERENCE // 2
    fit, scale = slice(3 * count // 4), slice(3 * count // 4, count)
    reference = seen["reference"]
    (scorer,) = fit_scorers([(reference.select(fit), reference.select(scale))], "reference")
    beside = {
        group: {
            **_by_reference(scorer, reference.select(scale), part),
            **rival_scores(looked[group], plain[-1], looked["reference"], labels),
        }
        for group, part in seen.items()
        if group not in ("reference", "held out")
    }
    found: dict[str, Any] = {}
    for kind, chosen, truth in _probes({group: len(part) for group, part in images.items()}):
        scores = {
            "probe": {
                **probe_scores(_joined(seen, chosen)),
                **rival_scores(Seen.join([looked[group][places] for group, places in chosen.items()]), plain[-1]),
            },
            "reference": {
                name: torch.cat([beside[group][name][places] for group, places in chosen.items()])
                for name in beside["clean"]
            },
        }
        for question, values in scores.items():
            for name, value in values.items():
                cell = found.setdefault(question, {}).setdefault(kind, {}).setdefault(name, [])
                cell.append(_measures(truth, value))
    return {
        question: {
            kind: {name: torch.tensor(draws).mean(0).tolist() for name, draws in scores.items()}
            for kind, scores in kinds.items()
        }
        for question, kinds in found.items()
    } | ({"draws": _false_discoveries(seen)} if "blended" in images else {})


def _false_discoveries(seen: Mapping[str, Statistics]) -> dict[str, Any]:
    """Count significant images among 512 test images, of which 0 or 26 are odd, for each kind of reference.

    Returns:
        By reference and number of planted images, for each fit the numbers of significant images and of planted ones
        among them, with 0, 30 and 100 unreadable files in the data set.
    """
    generator = torch.Generator().manual_seed(2)
    kinds = [kind for kind in seen if kind not in ("clean", "reference", "held out", *CHOSEN_KINDS)]
    odd = Statistics.join([seen[kind].select(slice(None)) for kind in kinds])
    found: dict[str, Any] = {}
    for name in ("reference", "held out"):
        for _ in range(_FITS):
            order = torch.randperm(len(seen[name].positions), generator=generator)[:2000]
            parts = [seen[name].select(order[part]) for part in (slice(750), slice(750, 1000), slice(1000, 2000))]
            (scorer,) = fit_scorers([(parts[0], parts[1])], name)
            calibration = scorer.judge(parts[2]).scores.sort().values
            clean, bad = scorer.judge(seen["clean"]).scores, scorer.judge(odd).scores
            for planted in (0, _SOME):
                for _ in range(2 * _FITS):
                    others = clean[torch.randperm(len(clean), generator=generator)[: _PROBE - planted]]
                    scores = torch.cat([others, bad[torch.randperm(len(bad), generator=generator)[:planted]]])
                    counts = []
                    for broken in (0, 30, 100):
                        every = torch.cat([scores, torch.full((broken,), torch.inf, dtype=scores.dtype)])
                        report = _report(every, conformal_p_values(every, calibration), len(order), len(calibration))
                        counts.append([len(report), sum(place >= len(others) for place in report)])
                    found.setdefault(name, {}).setdefault(str(planted), []).append(counts)
    return found


def _report(scores: Tensor, p_values: Tensor, n_reference: int, n_calibration: int) -> list[int]:
    nothing = torch.zeros(len(scores), dtype=torch.int64)
    return OutlierReport(scores, p_values, (), nothing, nothing[:, None], n_reference, n_calibration, _RATE).significant


def _line(good: GoodNetwork | Training, root: str | None, weights: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    left_out = () if isinstance(good, Training) else good.left_out
    images, labels = _images(good.data, left_out, root, weights)
    if isinstance(good, Training):
        prepared = prepare(replace(good, test_size=100), root)
        network = Normalised(trained(good, prepared, str(weights)), prepared.mean, prepared.std).eval()
    else:
        network = load_good(good, weights, images["clean"].shape[1])
    cell = {"network": good.network, "data": good.data, "left_out": list(left_out)}
    return {"key": good.key, "cell": cell, **measure(network, images, labels)}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options."""
    return parser_of("recipes.experiments.odd_images", __doc__).parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Measure the networks that have no line yet."""
    path = RESULTS / "outliers.jsonl"
    done = {line["key"] for line in read_lines(path)}
    every: list[GoodNetwork | Training] = [*NETWORKS, *LITTLE]
    missing = [good for good in every if good.key not in done]
    with parallel_config("loky", inner_max_num_threads=1):
        pool = Parallel(n_jobs=options.workers or -1, return_as="generator_unordered")
        for line in pool(delayed(_line)(good, options.data_root, options.weights) for good in missing):
            print(line["key"], flush=True)
            append(path, rounded(line))


if __name__ == "__main__":
    one_sentence_errors(run, parse)
