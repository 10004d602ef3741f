"""Shared by the tests of pruning: a network that does not hold filters at zero by itself, and a probe with outliers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from functional import SEED
from torch import Tensor, nn
from torch.utils.data import DataLoader
from trainers import SmallNet, damaged, loader, quiet_trainer, watcher

from lightning_anomaly import AnomalyFilterCallback, AnomalyPruneCallback

PROBE = damaged()


def probe_loader() -> DataLoader[Any]:
    return loader(60, seed=1, batch_size=30, make=damaged)


class GeluNet(SmallNet):
    """Convolutions with and without a BatchNorm behind them; GELU alone does not hold a filter at zero."""

    def __init__(self, optimizer: Callable[[Any], Any] | None = None, norm: Any = nn.BatchNorm2d) -> None:
        pl.LightningModule.__init__(self)
        self.optimizer = optimizer or (lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            self.conv1 = nn.Conv2d(1, 6, 3, padding=1)
            self.norm1 = norm(6)
            self.conv2 = nn.Conv2d(6, 8, 3)
            self.up = nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2)
            self.head = nn.Linear(4, 3)

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        """The convolutions' outputs, and what the BatchNorm makes of the first."""
        conv1 = self.conv1(x)
        norm1 = self.norm1(conv1)
        conv2 = self.conv2(F.gelu(norm1))
        return {"conv1": conv1, "norm1": norm1, "conv2": conv2, "up": self.up(F.gelu(conv2))}

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.maps(x)["up"]).mean((2, 3)))

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters())


class ManualNet(GeluNet):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        convolutions = [*self.conv1.parameters(), *self.norm1.parameters(), *self.conv2.parameters()]
        rest = [*self.up.parameters(), *self.head.parameters()]
        return [torch.optim.Adam(convolutions, lr=0.01), torch.optim.SGD(rest, lr=0.1, momentum=0.9)]


def pruner(at_epoch: Any = 1, **options: Any) -> AnomalyPruneCallback:
    return AnomalyPruneCallback(at_epoch, **{"min_votes": 1, "last_reports": 1, **options})


def fit(folder: Path, model: Any, *callbacks: Any, ckpt_path: Any = None, **options: Any) -> pl.Trainer:
    """Fit with damaged validation images, and with a watcher unless one of the callbacks is one."""
    watching = [] if any(isinstance(callback, AnomalyFilterCallback) for callback in callbacks) else [watcher()]
    trainer = quiet_trainer(folder, *watching, *callbacks, **{"num_sanity_val_steps": 0, **options})
    trainer.fit(model, loader(), probe_loader(), ckpt_path=ckpt_path)
    return trainer


def leak(model: Any, masked: dict[str, list[int]], images: Tensor = PROBE) -> int:
    """Count values of the masked filters' maps that are not exactly 0, in training and in evaluation mode."""
    was, count = model.training, 0
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for training in (True, False):
        with torch.no_grad():
            maps = model.train(training).maps(images)
        for layer, filters in masked.items():
            names = {layer, layer.replace("conv", "norm")} & maps.keys()
            count += sum(int(maps[name][:, filters].count_nonzero()) for name in names)
    model.train(was).load_state_dict(buffers, strict=False)
    return count
