"""A small network, loaders of fixed images, and Trainers without output."""

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from functional import SEED
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_anomaly import AnalysisSettings, AnomalyFilterCallback

# Lightning's warnings about resumed checkpoints, which these tests have on purpose.
QUIET = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch"),
]

# Lightning's warning about the few batches that recipes are tested with.
SMALL_RUNS = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the logging"),
]


def images(samples: int = 60, channels: int = 1, side: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(samples, channels, side, side, generator=generator)


def loader(samples: int = 60, seed: int = 0, shuffle: bool = False, batch_size: int = 20) -> DataLoader[Any]:
    dataset = TensorDataset(images(samples, seed=seed), torch.arange(samples) % 3)
    return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle)


class SmallNet(pl.LightningModule):
    """Two convolutions, BatchNorm and dropout; logs `train_loss` and `val_loss`."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
            self.norm = nn.BatchNorm2d(4)
            self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
            self.drop = nn.Dropout(0.3)
            self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv1(x)).relu()
        return self.head(self.drop(self.conv2(x).relu().mean((2, 3))))

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def watcher(**options: Any) -> AnomalyFilterCallback:
    """A quick callback: a probe of all 60 samples, few starts, and no figures."""
    quick = {"probe_size": 60, "rare_fraction": 0.05, "n_init": 2, "max_components": 3, "log_figures": False}
    return AnomalyFilterCallback(**arguments({**quick, **options}))


def arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Move options that are arguments of `AnalysisSettings` into `settings`."""
    names = {field.name for field in fields(AnalysisSettings)}
    settings = AnalysisSettings(**{name: value for name, value in options.items() if name in names})
    return {**{name: value for name, value in options.items() if name not in names}, "settings": settings}


def quiet_trainer(folder: Path, *callbacks: Any, **options: Any) -> pl.Trainer:
    defaults: dict[str, Any] = {
        "default_root_dir": folder,
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": any(isinstance(c, pl.callbacks.ModelCheckpoint) for c in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    return pl.Trainer(callbacks=list(callbacks), **{**defaults, **options})


def fit(
    folder: Path,
    *callbacks: Any,
    module: Any = None,
    train: Any = None,
    val: Any = None,
    ckpt_path: Any = None,
    **options: Any,
) -> pl.Trainer:
    """Fit a model; by default a `SmallNet` with 80 training and 60 validation images."""
    torch.manual_seed(SEED)
    trainer = quiet_trainer(folder, *callbacks, **options)
    loaders = loader(80) if train is None else train, loader(seed=1) if val is None else val
    trainer.fit(SmallNet() if module is None else module, *loaders, ckpt_path=ckpt_path)
    return trainer


class Values(pl.Callback):
    """Keeps the logged values at the end of each training epoch."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.seen.append(dict(trainer.callback_metrics))


def hook_count(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def plain(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A history without seconds, which differ between runs."""
    return [{**e, "metrics": {k: v for k, v in e["metrics"].items() if k != "seconds"}} for e in history]


def said(caught: Iterable[Any]) -> list[str]:
    """The messages of recorded warnings that the package itself raised."""
    return [str(w.message) for w in caught if "lightning_anomaly" in w.filename]
