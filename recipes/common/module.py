"""The LightningModule of the experiments, and the losses and accuracies of a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional


class Classifier(LightningModule):
    """A network trained with AdamW on the cross-entropy; logs `train_loss`, `val_loss` and `val_acc` by epoch."""

    def __init__(
        self,
        network: nn.Module,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        label_smoothing: float = 0.0,
        cosine: bool = False,  # whether the learning rate falls to 0 along half a cosine
    ) -> None:
        super().__init__()
        self.network, self.lr, self.weight_decay = network, lr, weight_decay
        self.label_smoothing, self.cosine = label_smoothing, cosine

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits `(n, classes)` of images `(n, C, H, W)`."""
        return torch.as_tensor(self.network(images))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Compute and log the mean cross-entropy of a batch (nats)."""
        images, labels = batch
        loss = functional.cross_entropy(self(images), labels, label_smoothing=self.label_smoothing)
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the mean cross-entropy (nats) and the accuracy."""
        images, labels = batch
        logits = self(images)
        self.log("val_loss", functional.cross_entropy(logits, labels), prog_bar=True)
        self.log("val_acc", (logits.argmax(1) == labels).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> Any:
        """Return AdamW, which is Adam without weight decay."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        if not self.cosine:
            return optimizer
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs or 1)
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def logits_of(network: nn.Module, images: Tensor) -> Tensor:
    """Switch a network to evaluation mode and compute its logits `(N, classes)` of images `(N, C, H, W)`."""
    network.eval()
    with torch.no_grad():
        return torch.cat([network(batch) for batch in torch.split(images, 256)])


def evaluate_parts(
    network: nn.Module, parts: Mapping[str, tuple[Tensor, Tensor]]
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Compute `PART_loss` (nats) and `PART_acc` for the images and labels of each part, and the logits in float64."""
    metrics: dict[str, float] = {}
    logits = {part: logits_of(network, images).double() for part, (images, _) in parts.items()}
    for part, (_, labels) in parts.items():
        metrics[f"{part}_loss"] = functional.cross_entropy(logits[part], labels).item()
        metrics[f"{part}_acc"] = (logits[part].argmax(1) == labels).double().mean().item()
    return metrics, logits
