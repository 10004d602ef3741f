"""Train a small CNN for a minute, see which images it finds strange and whether it overfits: `python quickstart.py`."""

import importlib
import logging
import sys
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_anomaly import AnomalyFilterCallback, TwoSampleCallback, find_outliers

DAMAGED = {"noise": [3, 20], "a white square": [50, 77], "faded": [101, 130]}  # validation images


class Classifier(pl.LightningModule):
    """Three convolutions and two linear layers, learned with Adam and cross-entropy (nats)."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4)),
            *(nn.Flatten(), nn.Linear(32 * 16, 64), nn.ReLU(), nn.Linear(64, 10)),
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
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def main(data_root: str = "data", epochs: int = 12, log_dir: str = "logs") -> AnomalyFilterCallback:
    """Train on 500 images, Fashion-MNIST where torchvision has it at `data_root`, and watch 512 others."""
    pl.seed_everything(0, verbose=False)
    try:
        data: Any = importlib.import_module("torchvision.datasets").FashionMNIST(data_root)
        images, labels = data.data[:, None] / 255, data.targets
    except (ImportError, RuntimeError):
        data = load_digits()
        images, labels = torch.tensor(data.images[:, None] / 16).float(), torch.tensor(data.target)
        images = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    chosen = torch.randperm(len(images))[:1012]
    images, labels, side = images[chosen], labels[chosen], images.shape[3] // 3
    images[DAMAGED["noise"]] += 0.4 * torch.randn(2, *images.shape[1:])
    images[DAMAGED["a white square"], :, :side, :side] = 1
    images[DAMAGED["faded"]] = 0.4 + 0.2 * images[DAMAGED["faded"]]
    images = (images - images.mean()) / images.std()
    train, val = TensorDataset(images[512:], labels[512:]), TensorDataset(images[:512], labels[:512])
    train_loader, val_loader = DataLoader(train, batch_size=32, shuffle=True), DataLoader(val, batch_size=64)
    model, logger, watcher = Classifier(), TensorBoardLogger(log_dir, "quickstart"), AnomalyFilterCallback(browser=True)
    callbacks: list[pl.Callback] = [watcher, TwoSampleCallback()]
    trainer = pl.Trainer(max_epochs=epochs, logger=logger, callbacks=callbacks, enable_model_summary=False)
    trainer.fit(model, train_loader, val_loader)
    outliers = find_outliers(model, val_loader, reference=train_loader)
    outliers.save_html(f"{logger.log_dir}/outliers.html")
    print(f"{watcher.report}\n\n{outliers}\n\nDamaged: {DAMAGED}")
    print(f"The strangest images: open {logger.log_dir}/outliers.html")
    print(f"Losses, and every filter epoch by epoch: open {logger.log_dir}/anomaly_filters/browser.html")
    print(f"When it overfits, two_sample/confidence_rise passes 0.05: tensorboard --logdir {log_dir}")
    return watcher


if __name__ == "__main__":
    logging.disable(logging.INFO)  # what Lightning says about hardware and loaders
    warnings.filterwarnings("ignore", ".*(does not have many workers|smaller than the logging interval|LeafSpec)")
    main(sys.argv[1] if len(sys.argv) > 1 else "data")
