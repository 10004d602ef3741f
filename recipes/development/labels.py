"""Wrong folders and other things planted among photographs in class folders. See docs/results/labels.md.

`python -m recipes.development.labels COLLECTIONS FEATURES FILE.csv NAME ...` needs the extra `photos` and cleanlab.
COLLECTIONS has a folder for each collection NAME, with a folder for each class; FEATURES keeps what the network makes
of them. A row is written as soon as it is measured; collections in the file are not measured again. With `--lists`, it
measures what the list of images that are filed elsewhere holds; `digits` are scikit-learn's.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import chain, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.covariance import ledoit_wolf
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from lightning_anomaly.images import FolderImages
from lightning_anomaly.network.features import SampleStatistics
from lightning_anomaly.network.pretrained import load_pretrained
from lightning_anomaly.outliers.image_reader import Batch, ImageReader, open_scaled
from lightning_anomaly.scores.distributions import SURPRISING, conformal_p_values
from lightning_anomaly.scores.label_score import Label, LabelMeasures
from lightning_anomaly.scores.views import view_samples

_DRAWS, _ODD, _OTHERS, _SPLITS = 3, 10, 4, 20
_SHARES = 0, 2, 5, 10, 20, 30  # of wrong folders, in percent


class Filed(NamedTuple):
    """Features `(n, D)`, logits `(n, classes)` and classes `(n,)` of photographs."""

    features: Tensor
    logits: Tensor
    classes: Tensor

    @property
    def known(self) -> tuple[SampleStatistics, list[str | None]]:
        """What a search knows of them."""
        return SampleStatistics(features=self.features, logits=self.logits), [*map(str, self.classes.tolist())]

    def select(self, rows: Tensor) -> Filed:
        """Select photographs by an index."""
        return Filed(*(part[rows] for part in self))


def load(folder: Path, file: Path) -> Filed:
    """Read features, or run the pretrained network on a folder and write them; those of digits are their pixels."""
    if folder.name == "digits":
        digits = load_digits()
        return Filed(*map(torch.from_numpy, (digits.data / 16, digits.data, digits.target)))
    if not file.exists():
        source = open_scaled(FolderImages(folder), "images", None)
        reader = ImageReader(load_pretrained().model, None, None, None)
        batch = Batch.join([*reader.batches(source, range(len(source)), folder.name)])
        features, logits = np.array(batch.samples.features), np.array(batch.samples.logits)
        np.savez(file, features=features, logits=logits, classes=np.array(batch.labels))
    saved = np.load(file)
    parts = saved["features"], saved["logits"], np.unique(saved["classes"], return_inverse=True)[1]
    return Filed(*map(torch.from_numpy, parts))


def measured(fit: Filed, new: Filed) -> LabelMeasures:
    """Fit to photographs, and measure the same or new ones."""
    label = Label.fit(*fit.known)
    assert label is not None
    return label.measure(*new.known, left_out=new is fit)


def means_of(vectors: Tensor, classes: Tensor) -> Tensor:
    """Compute the mean vector of each class."""
    members = one_hot(classes).to(vectors)
    return members.T @ vectors / members.sum(0)[:, None]


def scores_of(filed: Filed, question: str) -> dict[str, Tensor]:
    """Score photographs by ours and its rivals; `question` is "label" or "content"."""
    features, _, classes = filed
    vectors, rows, sizes = normalize(features.double()), torch.arange(len(classes)), classes.bincount()
    means = means_of(vectors, classes)
    distances = torch.cdist(vectors, means).square()
    distances[rows, classes] *= (sizes / (sizes - 1)).square()[classes]  # without the image itself
    own = distances[rows, classes]
    near, places = torch.cdist(vectors, vectors).fill_diagonal_(torch.inf).topk(10, largest=False)
    within = vectors - means[classes]
    precision = torch.linalg.inv(torch.from_numpy(ledoit_wolf(within.numpy(), assume_centered=True)[0]))
    found = {
        "ours": getattr(measured(filed, filed), question),
        "neighbors of another class": (classes[places] != classes[:, None]).double().mean(1) + 1e-4 * near[:, 0],
        "nearer mean": own - distances.scatter(1, classes[:, None], torch.inf).amin(1),
        "5th neighbor": near[:, 4],
        "content without classes": view_samples(filed.known[0])["content"].scores,
        "Mahalanobis": ((within @ precision) * within).sum(1),
    }
    if question == "label":
        told, issues = issues_of_cleanlab(filed)
        found["self-confidence"] = -told[rows, classes]
        found["find_label_issues"] = found["self-confidence"] + issues
    return found


def issues_of_cleanlab(filed: Filed) -> tuple[Tensor, Tensor]:
    """Predict each photograph by a logistic regression in five folds, and let cleanlab say which are misfiled."""
    from cleanlab.filter import find_label_issues

    folds, probe = StratifiedKFold(5, shuffle=True, random_state=0), LogisticRegression(max_iter=300, tol=1e-3)
    labels = filed.classes.numpy()
    told = cross_val_predict(probe, filed.features.numpy(), labels, cv=folds, method="predict_proba")
    return torch.from_numpy(told), torch.from_numpy(find_label_issues(labels, told, n_jobs=1))


def listed(base: Filed) -> Iterator[dict[str, Any]]:
    """Yield how many are listed, and how many of these rightly, with each share of wrong folders, chosen at random."""
    classes, count = base.classes, int(base.classes.max()) + 1
    for share, draw in product(_SHARES, range(_DRAWS)):
        generator, moved, filed = np.random.default_rng([draw, 3]), round(share / 100 * len(classes)), classes.clone()
        chosen = torch.from_numpy(generator.permutation(len(classes))[:moved])
        filed[chosen] = (classes[chosen] + torch.from_numpy(generator.integers(1, count, moved))) % count
        made, wrong = base._replace(classes=filed), filed != classes
        label = Label.fit(*made.known)
        assert label is not None
        margins = label.measure(*made.known, left_out=True).label
        scores, _ = label.label.scores(margins[:, None])
        lists = {
            "ours": margins > label.clear,
            "clear": (margins > label.clear) & (scores >= SURPRISING),
            "cleanlab": issues_of_cleanlab(made)[1],
        }
        found = {"percent": share, "wrong": int(wrong.sum())}
        for rule, marked in lists.items():
            found |= {rule: int(marked.sum()), f"{rule}, right": int((marked & wrong).sum())}
        yield found


def planted(base: Filed, others: Sequence[Filed], draw: int) -> Iterator[tuple[str, Filed, Tensor]]:
    """Yield what is planted, the photographs with it, and which of them it is."""
    classes = base.classes
    many, count = len(classes), int(classes.max()) + 1
    means = means_of(normalize(base.features), classes)
    similar = torch.cdist(means, means).fill_diagonal_(torch.inf).argmin(1)
    for kind, moved in (("ten", _ODD), ("ten, similar", _ODD), ("a tenth", many // 10), ("a fifth", many // 5)):
        generator, filed = np.random.default_rng([draw, 2]), classes.clone()
        chosen = torch.from_numpy(generator.choice(many, moved, replace=False))
        away = torch.from_numpy(generator.integers(1, count, moved))
        filed[chosen] = similar[classes[chosen]] if "similar" in kind else (classes[chosen] + away) % count
        yield kind, base._replace(classes=filed), filed != classes
    for other in others:
        generator = np.random.default_rng([draw, 1])
        odd = other.select(torch.from_numpy(generator.choice(len(other.classes), _ODD, replace=False)))
        odd = odd._replace(classes=torch.from_numpy(generator.integers(0, count, _ODD)))
        yield "other things", Filed(*map(torch.cat, zip(base, odd, strict=True))), torch.arange(many + _ODD) >= many


def checks(base: Filed) -> Iterator[tuple[str, float]]:
    """Yield shares of ordinary photographs with p <= 0.05, and whether shuffled classes tell something."""
    classes = base.classes
    size = min(50, int(classes.bincount().min() / 3))  # of a class, to fit to, to calibrate, and new ones
    for split in range(_SPLITS):
        order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(split))
        rank = one_hot(classes[order]).cumsum(0)[torch.arange(len(order)), classes[order]]
        fit, rest, new = (order[(rank > low * size) & (rank <= (low + 1) * size)] for low in range(3))
        both = torch.cat([rest, new])
        found = measured(base.select(fit), base.select(both))
        for view in ("content", "label"):
            known, got = getattr(found, view).split([len(rest), len(new)])
            yield f"p, {view}", float((conformal_p_values(got, known.sort().values) <= 0.05).double().mean())
        yield "shuffled", float(Label.fit(*base._replace(classes=classes[order]).known) is not None)


def main() -> None:
    """Measure the collections that have no rows yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs=3, type=Path, metavar=("COLLECTIONS", "FEATURES", "FILE"))
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--lists", action="store_true", help="what the list finds, instead of the ranking")
    options = parser.parse_args()
    (folder, features, output), names = options.paths, options.names
    loaded = {name: load(folder / name, features / f"{name}.npz") for name in names}
    for name, base in loaded.items():
        if output.exists() and f"{name}," in output.read_text():
            continue
        facts = {"collection": name, "photographs": len(base.classes), "classes": int(base.classes.max()) + 1}
        if options.lists:
            frame = pd.DataFrame({**facts, **found} for found in listed(base))
            means = frame.groupby([*facts, "percent"], sort=False).mean()
            means.to_csv(output, mode="a", header=not output.exists(), float_format="%.1f")
            continue
        others = [filed for other, filed in loaded.items() if other.split("_")[0] != name.split("_")[0]][:_OTHERS]
        rows: list[dict[str, Any]] = [{**facts, "planted": kind, "ours": share} for kind, share in checks(base)]
        for kind, filed, truth in chain.from_iterable(planted(base, others, draw) for draw in range(_DRAWS)):
            scores = scores_of(filed, "content" if kind == "other things" else "label")
            found = {rule: average_precision_score(truth, values.nan_to_num(-99)) for rule, values in scores.items()}
            rows.append({**facts, "planted": kind, **found})
        means = pd.DataFrame(rows).groupby([*facts, "planted"], sort=False).mean()
        means.to_csv(output, mode="a", header=not output.exists(), float_format="%.3f")


if __name__ == "__main__":
    main()
