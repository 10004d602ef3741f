"""Stop a training run that overfits, and not a healthy one: `python early_stopping.py`."""

import logging
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_anomaly import TwoSampleCallback, TwoSampleEarlyStopping


class Classifier(pl.LightningModule):
    """Two convolutions and two linear layers; `augment` shifts training images and adds dropout."""

    def __init__(self, augment: bool) -> None:
        super().__init__()
        self.augment, self.losses = augment, list[float]()
        self.network = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Flatten()),
            *(nn.Dropout(0.3 * augment), nn.Linear(64 * 16, 64), nn.ReLU(), nn.Linear(64, 10)),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits `(N, 10)` of images `(N, 1, 8, 8)`."""
        return torch.as_tensor(self.network(images))

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean cross-entropy (nats)."""
        shift = torch.randint(-1, 2, (2,)).tolist() if self.augment else [0, 0]
        return nn.functional.cross_entropy(self(batch[0].roll(shift, (2, 3))), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Log the mean cross-entropy (nats) of all validation images, which are one batch."""
        self.losses.append(nn.functional.cross_entropy(self(batch[0]), batch[1]).item())
        self.log("val_loss", self.losses[-1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the Adam optimizer."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def main(size: int, healthy: bool, epochs: int = 40) -> tuple[TwoSampleEarlyStopping, list[float]]:
    """Train on `size` images until the callback stops it; return the callback and the validation losses."""
    pl.seed_everything(0, verbose=False)
    digits = load_digits()
    images, labels = torch.tensor(digits.images[:, None] / 8 - 0.6).float(), torch.tensor(digits.target)
    train, val = torch.split(torch.randperm(len(images))[: size + 512], [size, 512])
    if not healthy:
        labels[train[: size // 2]] = torch.randint(10, (size // 2,))
    stop = TwoSampleEarlyStopping(verbose=False)
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    trainer = pl.Trainer(max_epochs=epochs, callbacks=[TwoSampleCallback(), stop], **options)
    train_loader = DataLoader(TensorDataset(images[train], labels[train]), batch_size=32, shuffle=True)
    model, val_loader = Classifier(healthy), DataLoader(TensorDataset(images[val], labels[val]), batch_size=512)
    trainer.fit(model, train_loader, val_loader)
    best, last, reason = min(model.losses), model.losses[-1], stop.stopping_reason_message or "Not stopped."
    print(f"Validation loss: best {best:.3f}, last {last:.3f}. {reason}")
    return stop, model.losses


if __name__ == "__main__":
    logging.disable(logging.INFO)  # hides Lightning's messages on hardware and loaders
    warnings.filterwarnings("ignore", ".*(does not have many workers|smaller than the logging interval|LeafSpec)")
    main(300, healthy=False)  # with 50% random labels
    main(900, healthy=True)  # with random shifts and dropout
