"""Train from a configuration file: `python cli.py fit --config config.yaml` (needs `jsonargparse[signatures]`)."""

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LightningCLI
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Classifier(pl.LightningModule):
    """Two convolutions, with `width` and `2 * width` filters, and two linear layers."""

    def __init__(self, width: int = 32, lr: float = 1e-3) -> None:
        super().__init__()
        self.lr = lr
        self.network = nn.Sequential(
            *(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(2 * width * 16, 64), nn.ReLU(), nn.Linear(64, 10)),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits `(N, 10)` of images `(N, 1, 8, 8)`."""
        return torch.as_tensor(self.network(images))

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean cross-entropy (nats)."""
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Log the mean cross-entropy (nats)."""
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the Adam optimizer."""
        return torch.optim.Adam(self.parameters(), self.lr)


class Digits(pl.LightningDataModule):
    """scikit-learn's digits: `train_size` for training, 512 for validation, two of these over-exposed."""

    def __init__(self, train_size: int = 200) -> None:
        super().__init__()
        order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))[: 512 + train_size]
        pixels, targets = (torch.tensor(array)[order] for array in load_digits(return_X_y=True))
        images = (pixels / 8 - 0.6).float().view(-1, 1, 8, 8)
        images[[3, 20]] *= 4
        self.val, self.train = TensorDataset(images[:512], targets[:512]), TensorDataset(images[512:], targets[512:])

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the training images, shuffled."""
        return DataLoader(self.train, 32, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the validation images, in order."""
        return DataLoader(self.val, 512)


if __name__ == "__main__":
    LightningCLI(Classifier, Digits, seed_everything_default=0)
