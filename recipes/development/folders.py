"""Content where classes are unknown: other things planted among folders of photographs. See docs/results/outliers.md.

`python -m recipes.development.folders COLLECTIONS FEATURES NAME ...` needs the extra `photos`; the paths are those of
`recipes.development.labels`. Three, ten and thirty photographs, of many kinds or of one class, are taken from the other
collections. A line is the mean average precision of a folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch
from sklearn.metrics import average_precision_score
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch.nn.functional import normalize

from lightning_anomaly.network.features import SampleStatistics
from lightning_anomaly.scores.scorer import view_samples
from recipes.development.labels import Filed, load

_COUNTS, _DRAWS, _MOST = (3, 10, 30), 3, 500


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


def scores_of(filed: Filed) -> dict[str, Tensor]:
    """Score photographs by content and its simplest rivals."""
    vectors = normalize(filed.features.double())
    neighbors = NearestNeighbors(n_neighbors=6).fit(vectors).kneighbors(vectors)[0][:, -1]
    return {
        "content": view_samples(SampleStatistics(features=filed.features, logits=filed.logits))["content"].scores,
        "distance from the mean": -vectors @ vectors.mean(0),
        "5th neighbor": torch.from_numpy(neighbors),
    }


def main() -> None:
    """Print a line for each collection."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs=2, type=Path, metavar=("COLLECTIONS", "FEATURES"))
    parser.add_argument("names", nargs="+", metavar="NAME")
    options = parser.parse_args()
    folder, features = options.paths
    loaded = {name: load(folder / name, features / f"{name}.npz") for name in options.names}
    for name in loaded:
        found: dict[str, list[float]] = {}
        for filed, truth in planted(name, loaded):
            for rule, values in scores_of(filed).items():
                found.setdefault(rule, []).append(average_precision_score(truth, values))
        print(
            name, *(f"{rule} {sum(values) / len(values):.2f}" for rule, values in found.items()), sep=" | ", flush=True
        )


if __name__ == "__main__":
    main()
