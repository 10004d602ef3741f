"""Mask flagged filters during training: `python prune.py`.

The data are scikit-learn's digits. Few filters would be flagged, so two validation images are over-exposed; the filters
that single them out are masked before epoch 6.
"""

import logging
import warnings

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_anomaly import AnomalyFilterCallback, AnomalyPruneCallback


class Classifier(pl.LightningModule):
    """Two convolutions with BatchNorms and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(64 * 16, 64), nn.ReLU(), nn.Linear(64, 10)),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits `(N, 10)` of images `(N, 1, 8, 8)`."""
        return torch.as_tensor(self.network(images))

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean cross-entropy (nats)."""
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Log the accuracy."""
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the Adam optimizer."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def main(epochs: int = 12, at_epoch: int = 6) -> tuple[AnomalyPruneCallback, Classifier]:
    """Train, mask, train on, and print which filters were masked."""
    pl.seed_everything(0, verbose=False)
    digits = load_digits()
    images, labels = torch.tensor(digits.images[:, None] / 8 - 0.6).float(), torch.tensor(digits.target)
    train, val = torch.split(torch.randperm(len(images))[:712], [200, 512])
    images[val[[3, 20]]] *= 4
    train_loader = DataLoader(TensorDataset(images[train], labels[train]), batch_size=32, shuffle=True)
    val_loader = DataLoader(TensorDataset(images[val], labels[val]), batch_size=512)
    prune = AnomalyPruneCallback(at_epoch=at_epoch, max_fraction=0.25)
    callbacks: list[pl.Callback] = [AnomalyFilterCallback(), prune]
    trainer = pl.Trainer(max_epochs=epochs, callbacks=callbacks, logger=False, enable_checkpointing=False)
    model = Classifier()
    trainer.fit(model, train_loader, val_loader)
    print(f"Masked filters: {prune.masked}\nValidation accuracy: {trainer.callback_metrics['val_acc']:.3f}")
    return prune, model


if __name__ == "__main__":
    logging.disable(logging.INFO)  # hides Lightning's messages on hardware and loaders
    warnings.filterwarnings("ignore", ".*(does not have many workers|smaller than the logging interval|LeafSpec)")
    main()
