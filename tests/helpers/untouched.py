"""What a callback could disturb, looked at everywhere in a training, to compare one training with another."""

import random
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from trainers import SmallNet, hook_count, loader, quiet_trainer


class FrozenNorm(SmallNet):
    """Its first BatchNorm stays in evaluation mode while the rest trains."""

    def __init__(self) -> None:
        super().__init__()
        self.norm2 = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm2(x))

    def on_train_epoch_start(self) -> None:
        self.norm.eval().requires_grad_(False)


class Watcher(pl.Callback):
    """Everything that a callback could disturb, before and after each validation and at each training batch."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def look(self, module: nn.Module) -> None:
        self.seen.append(
            {
                "tensors": {key: value.clone() for key, value in module.state_dict().items()},
                "gradients": [p.grad.clone() for p in module.parameters() if p.grad is not None],
                "flags": [(m.training, *(p.requires_grad for p in m.parameters(False))) for m in module.modules()],
                "random": (torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)),
                "hooks": hook_count(module),
                "modes": (torch.is_grad_enabled(), torch.get_default_dtype()),
            }
        )

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.look(pl_module)

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        self.look(pl_module)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.look(pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.look(pl_module)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def train(folder: Any, module: Any, *callbacks: Any, **options: Any) -> list[Any]:
    pl.seed_everything(1, verbose=False)
    looks = Watcher()
    trainer = quiet_trainer(folder, *callbacks, looks, **{"max_epochs": 3, **options})
    trainer.fit(module(), loader(80, shuffle=True), loader(seed=1))
    looks.seen.append((torch.rand(3), random.random(), np.random.rand(), torch.are_deterministic_algorithms_enabled()))
    return looks.seen
