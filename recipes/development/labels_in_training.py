"""Wrong labels planted among training images: which come first? See docs/results/labels_in_training.md.

`python -m recipes.development.labels_in_training --data-root DIR` trains a small CNN on 5,000 images for each setting,
with a `MemorizationCallback` of all training images. A line of each run goes to results/labels_in_training.jsonl, the
average precision of all rules to results/labels_in_training.csv. Runs with a line are skipped; 30 runs take half an
hour on one free core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from itertools import pairwise, product
from typing import Any

import lightning.pytorch as pl
import pandas as pd
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from torch.utils.data import DataLoader, TensorDataset

from lightning_anomaly import MemorizationCallback
from recipes.common.damage import with_label_noise
from recipes.common.data import load_images, split
from recipes.common.options import SILENT, add_data_options, one_sentence_errors, quiet
from recipes.experiments.store import RESULTS, append, read_lines, rounded

SEEDS, DATA = (0, 1, 2), ("fashion_mnist", "cifar10")
NOISE = (("clean", 0.0), ("random", 0.02), ("random", 0.1), ("similar", 0.02), ("similar", 0.1))  # clean comes first
_TRAIN, _VAL, _EPOCHS = 5000, 1000, 15
_LINES = RESULTS / "labels_in_training.jsonl"


class SmallCNN(pl.LightningModule):
    """Three convolutions with BatchNorms, and two linear layers; keeps its logits of some images by epoch."""

    def __init__(self, channels: int, side: int, watched: Tensor, labels: Tensor) -> None:
        super().__init__()
        widths = channels, 16, 32, 64
        blocks = [
            layer
            for before, after in pairwise(widths)
            for layer in (nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())
        ]
        features = 64 * ((side + 7) // 8) ** 2
        self.network = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(features, 128), nn.ReLU(), nn.Linear(128, 10))
        self.watched, self.labels = watched, labels
        self.seen, self.losses = list[Tensor](), list[float]()

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits `(N, 10)`."""
        return torch.as_tensor(self.network(images))

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean cross-entropy (nats)."""
        return cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Keep the loss of all validation images, which are one batch, and the logits of the watched ones."""
        self.losses.append(cross_entropy(self(batch[0]), batch[1]).item())
        self.seen.append(torch.cat([self(images) for images in torch.split(self.watched, 500)]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the Adam optimizer."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)

    def rules(self) -> dict[str, Tensor]:
        """Score the watched images by the rules that need one training and no features, larger is more doubtful."""
        logits, own = torch.stack(self.seen), self.labels.expand(len(self.seen), -1)[..., None]
        margins = logits.scatter(2, own, -torch.inf).amax(2) - logits.gather(2, own)[..., 0]
        losses = -logits.log_softmax(2).gather(2, own)[..., 0]
        distances = (logits.softmax(2) - one_hot(self.labels, 10)).norm(dim=2)
        best, right = min(range(len(self.losses)), key=self.losses.__getitem__), margins <= 0
        forgotten = (right[:-1] & ~right[1:]).sum(0).where(right.any(0), len(right))
        early = max(1, len(logits) // 4)
        return {
            "margin, last": margins[-1],
            "margin, best validation": margins[best],
            "margin, to the best validation": margins[: best + 1].mean(0),
            "margin, all": margins.mean(0),
            "loss, mean": losses.mean(0),
            "EL2N, first quarter": distances[:early].mean(0),
            "forgetting": forgotten.float(),
        }


def plant(labels: Tensor, kind: str, rate: float, seed: int, similar: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Change a share of the labels int64 `(N,)` to a random or to the most similar class; return which, too."""
    changed, wrong = with_label_noise(labels, rate, 10, seed)
    if kind == "similar":
        changed[wrong] = torch.tensor(similar)[labels[wrong]]
    return changed, wrong


def train(name: str, kind: str, rate: float, seed: int, similar: Sequence[int], root: str | None) -> dict[str, Any]:
    """Train with planted labels, in training and validation images, and measure which rules find them."""
    torch.set_num_threads(1)
    quiet()
    pl.seed_everything(seed, verbose=False)
    data = split(load_images(name, root), _TRAIN, _VAL, 1000 + seed)
    images, val_images = (part / 127.5 - 1 for part in (data.train_images, data.val_images))
    labels, wrong = plant(data.train_labels, kind, rate, seed, similar)
    val_labels, _ = plant(data.val_labels, kind, rate, seed + 500, similar)
    module = SmallCNN(data.channels, images.shape[-1], images, labels)
    watcher = MemorizationCallback(sample_size=_TRAIN)
    options = {"num_sanity_val_steps": 0, "accelerator": "cpu", **SILENT}
    start = time.process_time()
    loader = DataLoader(TensorDataset(images, labels), 64, shuffle=True)
    trainer = pl.Trainer(max_epochs=_EPOCHS, callbacks=[watcher], **options)
    trainer.fit(module, loader, DataLoader(TensorDataset(val_images, val_labels), _VAL))
    assert watcher.report is not None
    doubts, found = watcher.report.label_doubts, watcher.report.doubtful_labels or []
    scores = {"label_doubts": torch.tensor([doubts[position] for position in range(_TRAIN)]), **module.rules()}
    with torch.no_grad():
        confused = one_hot(data.val_labels, 10).float().T @ module.eval()(val_images).softmax(1)
    return {
        "key": f"{name}/{kind}/{rate}/{seed}",
        "similar": confused.fill_diagonal_(0).argmax(1).tolist(),
        "precision": {rule: average_precision_score(wrong, score) for rule, score in scores.items() if wrong.any()},
        "in_doubt": None if watcher.report.doubtful_labels is None else len(found),
        "wrong_in_doubt": int(wrong[found].sum()),
        "seconds": time.process_time() - start,
    }


def run(options: argparse.Namespace) -> None:
    """Train what is missing, and write the table."""
    lines = {line["key"]: line for line in read_lines(_LINES)}
    for name, seed, (kind, rate) in product(DATA, SEEDS, NOISE):
        key, clean = f"{name}/{kind}/{rate}/{seed}", lines.get(f"{name}/clean/0.0/{seed}", {})
        if key not in lines:
            lines[key] = train(name, kind, rate, seed, clean.get("similar", range(10)), options.data_root)
            append(_LINES, rounded(lines[key]))
    table = pd.DataFrame([{"run": key, **line["precision"]} for key, line in lines.items() if line["precision"]])
    table.round(3).to_csv(RESULTS / "labels_in_training.csv", index=False)


def parse() -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser("python -m recipes.development.labels_in_training", description=__doc__)
    add_data_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    one_sentence_errors(run, parse)
