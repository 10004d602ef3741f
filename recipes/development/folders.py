"""Content in both worlds: other things among photographs, and classes that a network never saw.

`python -m recipes.development.folders COLLECTIONS FEATURES NAME ... --data-root ROOT` needs the extra `photos` for the
first; the paths are those of `recipes.development.labels`. See docs/results/outliers.md. Whoever changes the content
score looks at both tables.

First photographs of other collections are planted among those of each, then images of two classes that a small network
never saw among new ones of the eight that it learned. A line has the mean AUROC / average precision of all draws.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

import torch
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from lightning_anomaly.scores.views import fit_views, score_views, view_samples
from recipes.common.data import load_images, mean_and_std
from recipes.common.data import normalize as scaled
from recipes.common.options import add_data_options
from recipes.development.labels import Filed, load, means_of

Found = dict[str, list[list[float]]]  # AUROC and average precision of each draw by score

_COUNTS, _DRAWS, _MOST = (3, 10, 30), 3, 500
_UNSEEN = {"fashion_mnist": ((0, 5), (2, 9), (4, 6)), "cifar10": ((0, 3), (5, 8)), "digits": ((3, 8), (4, 9))}
_SHAPES = {"GAP 512": (512, 1), "flat 1568": (32, 7), "GAP 64": (64, 1)}  # filters of the last maps, and their side
_TRAIN, _EPOCHS, _ORDINARY, _ODD = 2000, 6, 988, 12


def planted(name: str, loaded: dict[str, Filed]) -> Iterator[tuple[Filed, Tensor]]:
    """Yield photographs, up to 500 of a folder and odd ones, and which are odd."""
    generator = torch.Generator().manual_seed(7)
    others = [filed for other, filed in loaded.items() if other != name]
    every = Filed(*map(torch.cat, zip(*others, strict=True)))

    def some(filed: Filed, count: int) -> Filed:
        return filed.select(torch.randperm(len(filed.classes), generator=generator)[:count])

    for count, one_kind, _ in product(_COUNTS, (False, True), range(_DRAWS)):
        source = every
        while one_kind and (source is every or len(source.classes) < count):
            (other,) = torch.randint(len(others), (1,), generator=generator).tolist()
            (kind,) = torch.randint(int(others[other].classes.max()) + 1, (1,), generator=generator).tolist()
            source = others[other].select((others[other].classes == kind).nonzero()[:, 0])
        ordinary, odd = some(loaded[name], _MOST), some(source, count)
        joined = Filed(*map(torch.cat, zip(ordinary, odd, strict=True)))
        yield joined, torch.arange(len(joined.classes)) >= len(ordinary.classes)


def run(data: str, unseen: tuple[int, int], shape: str, root: str | None) -> dict[str, Filed]:
    """Train on eight classes; return what the network makes of training images, new ones, and unseen classes."""
    torch.manual_seed(0)
    loaded, (width, side) = load_images(data, root), _SHAPES[shape]
    images = torch.cat([loaded.train_images, loaded.test_images])
    labels = torch.cat([loaded.train_labels, loaded.test_labels])
    order = torch.randperm(len(images))
    odd = torch.isin(labels[order], torch.tensor(unseen))
    seen, new = order[~odd], 3000
    count = min(_TRAIN, int((~odd).sum()) // 2)
    rows = {"train": seen[:count], "new": seen[count : count + new], "unseen": order[odd][:new]}
    scale = mean_and_std(images[rows["train"]])
    train, targets = scaled(images[rows["train"]], *scale), torch.unique(labels[rows["train"]], return_inverse=True)[1]
    layers: list[nn.Module] = []
    for before, after, kernel in ((loaded.channels, 16, 3), (16, 32, 3), (32, width, 1)):
        layers += [nn.Conv2d(before, after, kernel, padding="same"), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    body = nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool2d(side), nn.Flatten())
    head = nn.Linear(width * side**2, 8)
    optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], 2e-3)
    for _ in range(_EPOCHS):
        for batch in torch.split(torch.randperm(count), 64):
            optimizer.zero_grad()
            torch.autograd.backward(cross_entropy(head(body(train[batch])), targets[batch]))
            optimizer.step()
    body.eval()
    made = {}
    with torch.no_grad():
        for name, part in rows.items():
            features = torch.cat([body(scaled(images[chosen], *scale)) for chosen in torch.split(part, 250)])
            made[name] = Filed(features, head(features), labels[part])
    return made


def unseen_among(made: dict[str, Filed]) -> Iterator[tuple[Filed, Tensor]]:
    """Yield new images of a run with some of unseen classes, and which are of these."""
    for draw in range(_DRAWS):
        generator, parts = torch.Generator().manual_seed(draw), []
        for name, count in (("new", _ORDINARY), ("unseen", _ODD)):
            parts.append(made[name].select(torch.randperm(len(made[name].classes), generator=generator)[:count]))
        joined = Filed(*map(torch.cat, zip(*parts, strict=True)))
        yield joined, torch.arange(len(joined.classes)) >= len(joined.classes) - _ODD


def scores_of(filed: Filed, reference: Filed | None = None) -> dict[str, Tensor]:
    """Score images by content and its simplest rivals, by a reference or among themselves."""
    fit, place = (filed, 11) if reference is None else (reference, 10)
    vectors, known = normalize(filed.features.double()), normalize(fit.features.double())
    predicted = torch.unique(fit.logits.argmax(1), return_inverse=True)[1]
    means = means_of(known, predicted)
    covariance, _ = ledoit_wolf((known - means[predicted]).numpy(), assume_centered=True)
    white = torch.linalg.cholesky(torch.linalg.inv(torch.from_numpy(covariance)))
    images, half = filed.known[0], len(known) // 2  # a search keeps the other half of a reference for p-values
    parts = (fit.known[0].select(slice(3 * half // 4)), fit.known[0].select(slice(3 * half // 4, half)))
    found = view_samples(images) if reference is None else score_views(fit_views(*parts), images)
    return {
        "content": found["content"].scores,
        "energy": -filed.logits.double().logsumexp(1),
        "10th neighbor": torch.cdist(vectors, known).kthvalue(place).values,
        "Mahalanobis": torch.cdist(vectors @ white, means @ white).amin(1),
        "distance from the mean": -vectors @ known.mean(0),
    }


def measured(cases: Iterable[tuple[Filed, Tensor]], reference: Filed | None = None) -> Found:
    """Measure all scores in all draws."""
    found: Found = {}
    for filed, truth in cases:
        for rule, values in scores_of(filed, reference).items():
            both = [roc_auc_score(truth, values), average_precision_score(truth, values)]
            found.setdefault(rule if reference is None else f"{rule}, reference", []).append(both)
    return found


def show(lines: Iterable[tuple[str, Found]]) -> None:
    """Print the means of each line as soon as it is measured, and those of all lines."""
    every: Found = {}
    for name, found in lines:
        print_means(name, found)
        for rule, values in found.items():
            every.setdefault(rule, []).extend(values)
    if every:
        print_means("mean", every)


def print_means(name: str, found: Found) -> None:
    """Print a line."""
    means = {rule: torch.tensor(values).mean(0).tolist() for rule, values in found.items()}
    cells = [f"{rule} {auroc:.3f} / {precision:.3f}" for rule, (auroc, precision) in means.items()]
    print(name, *cells, sep=" | ", flush=True)


def runs(root: str | None) -> Iterator[tuple[str, Found]]:
    """Measure what runs have never seen, without a reference and with their training images as one."""
    for data, pairs in _UNSEEN.items():
        for pair, shape in product(pairs, _SHAPES):
            made = run(data, pair, shape, root)
            found = measured(unseen_among(made)) | measured(unseen_among(made), made["train"])
            yield f"{data} without {pair[0]} and {pair[1]}, {shape}", found


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs=2, type=Path, metavar=("COLLECTIONS", "FEATURES"))
    parser.add_argument("names", nargs="*", metavar="NAME")
    add_data_options(parser)
    options = parser.parse_args()
    folder, features = options.paths
    loaded = {name: load(folder / name, features / f"{name}.npz") for name in options.names}
    show((name, measured(planted(name, loaded))) for name in loaded)
    show(runs(options.data_root))


if __name__ == "__main__":
    main()
