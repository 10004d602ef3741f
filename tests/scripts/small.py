"""A small module and its data, for either of Lightning's package trees."""

from __future__ import annotations

import importlib
from typing import Any

import lightning.pytorch
import torch
from network import images, network
from torch import Tensor, nn
from torch.utils.data import DataLoader


def loader(n: int = 96, **options: Any) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(images(n), **{"batch_size": 16, **options})


class Steps:
    """The methods of the modules of both trees."""

    def __init__(self, lr: float = 0.05, norm: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lr = lr
        self.net = network(norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self: Any, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self: Any, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)


class Small(Steps, lightning.pytorch.LightningModule):
    """The module of LightningCLI and of classes made from it."""


def module(tree: str = "lightning.pytorch", lr: float = 0.05, norm: bool = True) -> Any:
    return type("Small", (Steps, importlib.import_module(tree).LightningModule), {})(lr, norm)


def quiet(tree: str = "lightning.pytorch", **options: Any) -> Any:
    """Make a Trainer on the CPU that writes and prints nothing by default."""
    silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    defaults = {"accelerator": "cpu", "devices": 1, "max_epochs": 3, "num_sanity_val_steps": 0, **silent}
    return importlib.import_module(tree).Trainer(**{**defaults, **options})
