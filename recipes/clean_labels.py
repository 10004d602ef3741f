"""Find wrong labels, of every fifth digit, while a network trains, and train without them: `python clean_labels.py`."""

import logging
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from lightning_anomaly import MemorizationCallback


class Classifier(pl.LightningModule):
    """A convolution and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        maps = nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
        self.network = nn.Sequential(*maps, nn.Linear(16 * 16, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits `(N, 10)` of images `(N, 1, 8, 8)`."""
        return torch.as_tensor(self.network(images))

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean cross-entropy (nats)."""
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Log the accuracy."""
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the Adam optimizer."""
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def train(data: Subset[Any], val: Subset[Any], epochs: int) -> tuple[MemorizationCallback, float]:
    """Return the callback and the validation accuracy."""
    pl.seed_everything(0, verbose=False)
    watcher = MemorizationCallback(sample_size=len(data))
    trainer = pl.Trainer(max_epochs=epochs, callbacks=[watcher], logger=False, enable_checkpointing=False)
    trainer.fit(Classifier(), DataLoader(data, batch_size=32, shuffle=True), DataLoader(val, batch_size=512))
    return watcher, float(trainer.callback_metrics["val_acc"])


def main(epochs: int = 15) -> tuple[list[int], float, float]:
    """Return the positions of the labels in doubt, and the validation accuracies with and without them."""
    digits = load_digits()
    images, labels = torch.tensor(digits.images[:, None] / 8 - 0.6).float(), torch.tensor(digits.target)
    labels[:800:5] = (labels[:800:5] + torch.arange(160) % 9 + 1) % 10
    data = TensorDataset(images, labels)
    watcher, before = train(Subset(data, range(800)), val := Subset(data, range(1400, 1797)), epochs)
    assert watcher.report is not None
    watcher.report.save_html("labels.html")  # look at it, to see how far down the list labels are wrong
    doubted = watcher.report.doubtful_labels or []
    _, after = train(Subset(data, sorted({*range(800)} - {*doubted})), val, epochs)
    wrong = sum(place % 5 == 0 for place in doubted)
    print(f"Of 800 labels 160 are wrong; {wrong} of the {len(doubted)} in doubt are indeed wrong.")
    print(f"Validation accuracy: {before:.3f} with them, {after:.3f} without.")
    return doubted, before, after


if __name__ == "__main__":
    logging.disable(logging.INFO)  # hides Lightning's messages on hardware and loaders
    warnings.filterwarnings("ignore", ".*(does not have many workers|smaller than the logging interval|LeafSpec)")
    main()
