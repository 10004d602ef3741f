"""Train a small CNN on scikit-learn's digits and see which images its filters single out: `python quickstart.py`."""

import logging
import warnings

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_anomaly import AnomalyFilterCallback

DAMAGED = {"over-exposed": [3, 20], "white": [50, 77], "noise": [101, 130]}  # validation images


class Classifier(pl.LightningModule):
    """Three convolutions and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4)),
            *(nn.Flatten(), nn.Linear(64 * 16, 64), nn.ReLU(), nn.Linear(64, 10)),
        )

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Log and return the mean cross-entropy (nats)."""
        loss = nn.functional.cross_entropy(self.network(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Log the mean cross-entropy (nats)."""
        self.log("val_loss", nn.functional.cross_entropy(self.network(batch[0]), batch[1]), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def main(epochs: int = 15, log_dir: str = "logs") -> AnomalyFilterCallback:
    """Train on 200 digits, watching the filters on 512 others, of which six are damaged."""
    pl.seed_everything(0, verbose=False)
    digits = load_digits()
    images = torch.tensor(digits.images[:, None] / 16).float().repeat_interleave(2, 2).repeat_interleave(2, 3)
    train, val = torch.split(torch.randperm(len(images))[:712], [200, 512])
    labels, mean, std = torch.tensor(digits.target), images[train].mean(), images[train].std()
    val_images = images[val]
    val_images[DAMAGED["over-exposed"]] *= 4
    val_images[DAMAGED["white"]] = 1
    val_images[DAMAGED["noise"]] = torch.rand(2, 1, 16, 16)
    train_loader = DataLoader(TensorDataset((images[train] - mean) / std, labels[train]), batch_size=32, shuffle=True)
    val_loader = DataLoader(TensorDataset((val_images - mean) / std, labels[val]), batch_size=32)
    watcher, logger = AnomalyFilterCallback(browser=True), TensorBoardLogger(log_dir, "quickstart")
    trainer = pl.Trainer(max_epochs=epochs, logger=logger, callbacks=[watcher], enable_model_summary=False)
    trainer.fit(Classifier(), train_loader, val_loader)
    print(f"{watcher.report}\n\nDamaged: {DAMAGED}")
    print(f"Every filter and image: open {logger.log_dir}/anomaly_filters/browser.html")
    print(f"Losses and anomaly filters: tensorboard --logdir {log_dir}, tab 'Custom Scalars'")
    return watcher


if __name__ == "__main__":
    logging.disable(logging.INFO)  # what Lightning says about hardware and loaders
    warnings.filterwarnings("ignore", ".*(does not have many workers|smaller than the logging interval|LeafSpec)")
    main()
