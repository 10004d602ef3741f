"""Train a small CNN until it overfits, and see which images it finds strange: `python quickstart.py` (one minute)."""

import logging
import warnings

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_anomaly import (
    AnomalyFilterCallback,
    MemorizationCallback,
    MemorizationEarlyStopping,
    find_outliers,
    save_run_page,
)

DAMAGED = {"noise": [3, 20], "a white square": [50, 77], "faded": [101, 130]}  # validation images


class Classifier(pl.LightningModule):
    """Three convolutions and two linear layers, trained with Adam and cross-entropy (nats)."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            *(nn.Conv2d(1, 48, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(48, 96, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(96, 96, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4)),
            *(nn.Flatten(), nn.Linear(96 * 16, 64), nn.ReLU(), nn.Linear(64, 10)),
        )

    def forward(self, images: Tensor) -> Tensor:
        return torch.as_tensor(self.network(images))

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def main(epochs: int = 30, log_dir: str = "logs") -> AnomalyFilterCallback:
    """Train on 500 digits, one in ten with a random label, until the network overfits; then search 200 others."""
    pl.seed_everything(0, verbose=False)
    digits = load_digits()
    order = torch.randperm(len(digits.target))
    images, labels = torch.tensor(digits.images[:, None] / 16).float()[order], torch.tensor(digits.target)[order]
    images = nn.functional.interpolate(images, scale_factor=2, mode="bilinear")
    labels = torch.where(torch.rand(len(labels)) < 0.1, torch.randint(10, labels.shape), labels)
    images[DAMAGED["noise"]] += 0.4 * torch.randn(2, *images.shape[1:])
    images[DAMAGED["a white square"], :, :7, :7] = 1
    images[DAMAGED["faded"]] = 0.4 + 0.2 * images[DAMAGED["faded"]]
    data = TensorDataset((images - images.mean()) / images.std(), labels)
    train, val, searched = (TensorDataset(*data[part]) for part in (slice(600, 1100), slice(600), slice(200)))
    reference = TensorDataset(*data[[*range(200, 600), *range(1100, len(data))]])  # all others but those of training
    logger, checkpoint = TensorBoardLogger(log_dir, "quickstart"), ModelCheckpoint(monitor="val_loss")
    watcher, comparison, stopping = AnomalyFilterCallback(), MemorizationCallback(), MemorizationEarlyStopping()
    callbacks: list[pl.Callback] = [watcher, comparison, stopping, checkpoint]
    trainer = pl.Trainer(max_epochs=epochs, logger=logger, callbacks=callbacks, enable_model_summary=False)
    trainer.fit(Classifier(), DataLoader(train, batch_size=32, shuffle=True), DataLoader(val, 64))
    outliers = find_outliers(searched, Classifier.load_from_checkpoint(checkpoint.best_model_path), reference)
    outliers.save_html(f"{logger.log_dir}/outliers.html")
    save_run_page(trainer, f"{logger.log_dir}/run.html", title="Digits, one label in ten random")
    print(f"{watcher.report}\n\n{comparison.report}\n\n{outliers}\n\nDamaged: {DAMAGED}")
    print(f"What happened in this run: open {logger.log_dir}/run.html")
    print(f"The strangest of 200 others: open {logger.log_dir}/outliers.html\nCurves: tensorboard --logdir {log_dir}\n")
    losses = [entry["logged"]["val_loss"] for entry in watcher.history]
    counts = ", ".join(f"{entry['metrics']['count']:.0f}" for entry in watcher.history)
    print(f"Lowest val_loss: {min(losses):.2f}, in epoch {losses.index(min(losses))}; the last is {losses[-1]:.2f}.")
    print(f"The number of anomaly filters ({counts}) does not follow it. The gap does:")
    print(stopping.stopping_reason_message or "The run was not stopped.")
    return watcher


if __name__ == "__main__":
    logging.disable(logging.INFO)  # hides Lightning's messages on hardware and loaders
    warnings.filterwarnings("ignore", ".*(does not have many workers|smaller than the logging interval|LeafSpec)")
    main()
