"""Callbacks do not change training: weights, flags, gradients, random numbers and hooks are the same without them."""

import gc
import os
import random
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from trainers import SmallNet, hook_count, images, loader, quiet_trainer, watch_count, watcher

from lightning_anomaly import MemorizationCallback, MemorizationEarlyStopping


class FrozenNorm(SmallNet):
    def __init__(self) -> None:
        super().__init__()
        self.norm2 = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm2(x))

    def on_train_epoch_start(self) -> None:
        self.norm.eval().requires_grad_(False)


class Looks(pl.Callback):
    """Records everything that a callback could change, after each validation and at each training batch."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def look(self, trainer: Any, module: nn.Module, *args: Any) -> None:
        self.seen.append(
            {
                "tensors": {key: value.numpy().copy() for key, value in module.state_dict().items()},
                "gradients": [p.grad.numpy().copy() for p in module.parameters() if p.grad is not None],
                "flags": [(m.training, *(p.requires_grad for p in m.parameters(False))) for m in module.modules()],
                "random": (torch.get_rng_state().numpy(), random.getstate(), np.random.get_state(legacy=False)),
                "hooks": hook_count(module),
                "modes": (torch.is_grad_enabled(), torch.get_default_dtype()),
            }
        )

    on_train_batch_start = on_after_backward = on_validation_end = on_train_end = look


def train(folder: Any, module: Any, *callbacks: Any, **options: Any) -> list[Any]:
    pl.seed_everything(1, verbose=False)
    looks = Looks()
    trainer = quiet_trainer(folder, *callbacks, looks, **{"max_epochs": 3, **options})
    trainer.fit(module(), loader(80, shuffle=True), loader(seed=1))
    numbers = torch.rand(3).tolist(), random.random(), np.random.rand()
    looks.seen.append((numbers, torch.are_deterministic_algorithms_enabled()))
    return looks.seen


class Observing(SmallNet):
    """Computes with a range that it updates in evaluation too, as in quantization-aware training."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.average.mul_(0.9).add_(0.1 * x.abs().mean())
        return super().forward(x / (1 + self.average) if self.training else x)


MAKE: dict[str, Any] = {
    "val": watcher,
    "figures": lambda: watcher(log_figures=True),
    "compared": lambda: MemorizationCallback(
        TensorDataset(images(60) + 0.1, torch.arange(60) % 3), images(80, seed=1)
    ),  # with labels, which are judged too
}


# Pairwise: every module with every callback, and every option with some of them.
@pytest.mark.parametrize(
    ("module", "options", "kinds"),
    [
        (SmallNet, {"logger": TensorBoardLogger, "max_epochs": 2}, ["figures"]),
        (FrozenNorm, {"val_check_interval": 0.5}, ["val"]),
        (FrozenNorm, {"precision": "bf16-mixed"}, ["compared"]),
        (FrozenNorm, {"accumulate_grad_batches": 3, "inference_mode": False}, ["compared", "val"]),
        (Observing, {}, ["val", "compared"]),
    ],
    ids=["figures", "frozen norm", "bf16-mixed", "accumulated", "observing"],
)
def test_training_is_bit_identical(tmp_path: Any, module: Any, options: dict[str, Any], kinds: list[str]) -> None:
    def fit(folder: str, *callbacks: Any) -> list[Any]:
        logger = {"logger": options["logger"](tmp_path / folder)} if "logger" in options else {}
        return train(tmp_path / folder, module, *callbacks, **{**options, **logger})

    callbacks = [MAKE[kind]() for kind in kinds]
    bare, watched = fit("bare"), fit("watched", *callbacks)
    assert all(callback.report is not None for callback in callbacks)
    np.testing.assert_equal(watched, bare)
    assert {look["hooks"] for look in watched[:-1]} == {0}


class Drawn(TensorDataset):
    """Draws from every global random state for each image, as transforms do."""

    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return x + torch.rand(()) + np.random.rand() + random.random(), y


class DrawingHooks(SmallNet):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] * (1 + torch.rand(()) / 10 + np.random.rand() / 10), batch[1]]


@pytest.mark.parametrize("workers", [0, 2])
def test_random_transforms_draw_the_same_numbers(tmp_path: Any, workers: int) -> None:
    def drawing(seed: int) -> DataLoader[Any]:
        data = Drawn(images(60, seed=seed), torch.arange(60) % 3)
        return DataLoader(data, 20, shuffle=seed == 0, num_workers=workers)

    def fit(*callbacks: Any) -> list[Any]:
        pl.seed_everything(1, verbose=False)
        looks = Looks()
        quiet_trainer(tmp_path, *callbacks, looks).fit(DrawingHooks(), drawing(0), drawing(1))
        return looks.seen

    compared = MemorizationCallback(sample_size=40, max_memory_mb=0)
    callbacks = [MAKE["val"](), compared, MemorizationEarlyStopping()]
    with pytest.warns(UserWarning, match="augmented anew"):
        watched = fit(*callbacks)
    assert compared.report is not None
    np.testing.assert_equal(watched, fit())


def test_no_hooks_remain_after_an_exception_in_a_validation_step(tmp_path: Any) -> None:
    class Breaks(SmallNet):
        steps = 0

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self(batch[0])
            self.steps += 1
            if self.steps == 5:
                assert watch_count() > 0 == hook_count(self)
                raise KeyboardInterrupt

    module, callback = Breaks(), watcher()
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        quiet_trainer(tmp_path, callback, num_sanity_val_steps=0).fit(module, loader(), loader(seed=1))
    assert hook_count(module) == watch_count() == 0
    assert len(callback.history) == 1
    quiet_trainer(tmp_path, callback, max_epochs=1).fit(module.train(), loader(), loader(seed=1))
    assert len(callback.history) == 1  # of a fit that begins anew
    assert hook_count(module) == 0


@pytest.mark.slow
def test_many_validations_leak_no_tensors_figures_and_files(tmp_path: Any) -> None:
    counts: list[tuple[int, int, int, int]] = []
    logger = TensorBoardLogger(tmp_path)

    class Count(pl.Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.sanity_checking or len(ours.history) not in (6, 18):
                return
            logger.experiment.flush()  # its thread reopens the file for each value
            gc.collect()
            kinds = [type(thing) for thing in gc.get_objects()]
            tensors, figures = (sum(issubclass(kind, base) for kind in kinds) for base in (Tensor, Figure))
            counts.append((tensors, figures, len(os.listdir("/proc/self/fd")), hook_count(pl_module)))

    few: dict[str, Any] = {"layers": ["conv1"], "n_init": 1, "max_components": 2}
    ours = watcher(log_figures=True, **few)
    # Figures are drawn after the 8th and the 16th validation.
    trainer = quiet_trainer(tmp_path, ours, Count(), logger=logger, max_epochs=18)
    trainer.fit(SmallNet(), loader(20), loader(seed=1))
    (tensors, figures, files, hooks), after = counts
    assert hooks == after[3] == 0
    assert (after[0] <= tensors, after[1] <= figures, after[2] <= files) == (True, True, True), counts
