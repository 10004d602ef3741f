"""A small network, loaders of fixed images, and Trainers without output, in either of Lightning's package trees."""

import importlib
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from functional import SEED
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils.data import DataLoader, TensorDataset

from lightning_anomaly import AnalysisSettings, AnomalyFilterCallback


def images(samples: int = 60, channels: int = 1, side: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(samples, channels, side, side, generator=generator)


def damaged(samples: int = 60, seed: int = 1) -> Tensor:
    """Images of which three are over-exposed: outliers of nearly every filter."""
    found = images(samples, seed=seed)
    found[[3, 20, 41]] *= 20
    return found


def loader(
    samples: int = 60, seed: int = 0, shuffle: bool = False, batch_size: int = 20, make: Any = images
) -> DataLoader[Any]:
    dataset = TensorDataset(make(samples, seed=seed), torch.arange(samples) % 3)
    return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle)


class Steps:
    """Two convolutions, BatchNorm and dropout; logs `train_loss`, by default of an epoch, and `val_loss`."""

    each_step = False  # whether the training loss is that of each step

    def __init__(self, lr: float = 0.1, drop: float = 0.3, norm: bool = True) -> None:
        super().__init__()
        self.lr = lr
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
            # In two processes, DDP exchanges the buffers of a BatchNorm in every step, so that they wait.
            self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()
            self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
            self.drop = nn.Dropout(drop)
            self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv1(x)).relu()
        return self.head(self.drop(self.conv2(x).relu().mean((2, 3))))

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=self.each_step, on_epoch=not self.each_step)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)


class SmallNet(Steps, pl.LightningModule):
    """That of `lightning.pytorch`."""


def resumable(tree: str = "lightning.pytorch", lr: float = 0.05) -> Any:
    """Make a network whose runs can be resumed exactly: without dropout, and without a loss of a whole epoch."""
    kind = type("SmallNet", (Steps, importlib.import_module(tree).LightningModule), {"each_step": True})
    return kind(lr, drop=0.0)


def watcher(**options: Any) -> AnomalyFilterCallback:
    """A quick callback: a probe of all 60 samples, few starts, and no figures."""
    quick = {"probe_size": 60, "rare_fraction": 0.05, "n_init": 2, "max_components": 3, "log_figures": False}
    given, names = {**quick, **options}, [field.name for field in fields(AnalysisSettings)]
    settings = AnalysisSettings(**{name: given.pop(name) for name in names if name in given})
    return AnomalyFilterCallback(**given, settings=settings)


def quiet_trainer(folder: Path | None, *callbacks: Any, tree: str = "lightning.pytorch", **options: Any) -> Any:
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
    return importlib.import_module(tree).Trainer(callbacks=list(callbacks), **{**defaults, **options})


def fit(
    folder: Path | None,
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
    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.seen.append(dict(trainer.callback_metrics))


def hook_count(model: nn.Module) -> int:
    """Count the hooks of all modules, and each `forward` that the package has set on a module itself."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooks = sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)
    set_on_modules = [type(vars(module).get("forward")).__module__ for module in model.modules()]
    return hooks + sum(place.startswith("lightning_anomaly") for place in set_on_modules)


class FakeTrainer:
    """Has the attributes that are given, for what a real Trainer cannot have here."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


def watch_count() -> int:
    """Count torch's global hooks and function modes, through which the package watches a step."""
    named = vars(torch.nn.modules.module).items()
    hooks = sum(len(found) for name, found in named if name.startswith("_global_") and isinstance(found, dict))
    return hooks + len(_get_current_function_mode_stack())


def plain(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A history without seconds, which differ between runs."""
    return [{**e, "metrics": {k: v for k, v in e["metrics"].items() if k != "seconds"}} for e in history]


def said(caught: Iterable[Any]) -> list[str]:
    """The messages of recorded warnings that the package itself raised."""
    return [str(w.message) for w in caught if "lightning_anomaly" in w.filename]
