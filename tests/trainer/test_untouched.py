"""Training with the callback is training without it: weights, flags, buffers, gradients, random numbers and hooks."""

import gc
import os
from collections import Counter
from typing import Any

import joblib
import lightning.pytorch as pl
import matplotlib.text
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from trainers import QUIET, SmallNet, hook_count, loader, quiet_trainer, watcher
from untouched import FrozenNorm, Watcher, same, train

from lightning_anomaly.callbacks import _probe

pytestmark = QUIET


def test_the_comparison_notices_a_difference() -> None:
    assert same([{"a": torch.ones(2)}], [{"a": torch.ones(2)}])
    assert not same([{"a": torch.ones(2)}], [{"a": torch.zeros(2)}])
    assert not same([np.ones(2)], [np.zeros(2)])
    drawing = np.random.RandomState(0)
    drawing.random()
    before = drawing.get_state(legacy=False)
    assert same(drawing.get_state(legacy=False), before)
    drawing.random()  # changes no more than the place among the numbers that are ready
    assert not same(drawing.get_state(legacy=False), before)


OPTIONS = {
    "plain": {},
    "twice an epoch": {"val_check_interval": 0.5},
    "bf16": {"precision": "bf16-true"},
    "mixed": {"precision": "bf16-mixed"},
    "double": {"precision": "64-true"},
    "accumulated": {"accumulate_grad_batches": 3},
    "no inference mode": {"inference_mode": False},
}


@pytest.mark.parametrize(
    ("kind", "module", "probe"),
    [
        ("plain", SmallNet, "val"),
        ("plain", FrozenNorm, "train"),
        ("twice an epoch", FrozenNorm, "val"),
        ("bf16", SmallNet, "train"),
        ("mixed", FrozenNorm, "train"),
        ("double", SmallNet, "train"),
        ("accumulated", SmallNet, "val"),
        ("no inference mode", FrozenNorm, "train"),
    ],
)
def test_training_is_bit_identical(tmp_path: Any, kind: str, module: Any, probe: str) -> None:
    bare = train(tmp_path, module, **OPTIONS[kind])
    callback = watcher(probe=probe)
    watched = train(tmp_path, module, callback, **OPTIONS[kind])
    assert callback.report is not None
    assert len(watched) == len(bare)
    assert same(watched, bare)
    assert {look["hooks"] for look in watched[:-1]} == {0}


@pytest.mark.parametrize("engine", ["torch", pytest.param("sklearn", marks=pytest.mark.slow)])
def test_neither_engine_nor_figures_nor_several_callbacks_touch_anything(tmp_path: Any, engine: Any) -> None:
    options = {"max_epochs": 1 if engine == "sklearn" else 3}
    bare = train(tmp_path / "a", SmallNet, logger=TensorBoardLogger(tmp_path / "a"), **options)
    few = {"layers": ["conv1"], "max_components": 2} if engine == "sklearn" else {}
    callbacks = [watcher(engine=engine, log_figures=True, **few), watcher(log_key_prefix="other", probe="train")]
    logger = TensorBoardLogger(tmp_path / "b")
    with joblib.parallel_config(backend="threading"):  # processes take seconds to start
        assert same(train(tmp_path / "b", SmallNet, *callbacks, logger=logger, **options), bare)


class Observing(SmallNet):
    """As with quantization-aware training: a range that grows in evaluation too is part of what is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.average.mul_(0.9).add_(0.1 * x.abs().mean())
        return super().forward(x / (1 + self.average))


@pytest.mark.parametrize("probe", ["val", "train"])
def test_buffers_that_change_in_evaluation_too_are_untouched(tmp_path: Any, probe: str) -> None:
    assert same(train(tmp_path / "b", Observing, watcher(probe=probe)), train(tmp_path / "a", Observing))


@pytest.mark.parametrize("probe", ["val", "train"])
def test_a_failing_analysis_touches_nothing(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, probe: str) -> None:
    def analyze_maps(*args: Any) -> Any:
        torch.rand(0)
        raise RuntimeError("out of luck")

    bare = train(tmp_path, FrozenNorm)
    monkeypatch.setattr(_probe, "analyze_maps", analyze_maps)
    with pytest.warns(UserWarning, match="out of luck"):
        assert same(train(tmp_path, FrozenNorm, watcher(probe=probe)), bare)


def test_a_training_probe_that_fails_half_way_touches_nothing(tmp_path: Any) -> None:
    class Half(FrozenNorm):
        def forward(self, x: Tensor) -> Tensor:
            if not self.training and torch.is_inference_mode_enabled() is False and len(x) == 20:
                torch.rand(1)
                raise RuntimeError("half way")
            return super().forward(x)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().forward(batch[0])

    bare = train(tmp_path, Half)
    with pytest.warns(UserWarning, match="half way"):
        assert same(train(tmp_path, Half, watcher(probe="train")), bare)


class Breaks(SmallNet):
    error: BaseException
    where = "validation_step"

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])
        self.steps += 1
        if self.steps == 5:
            assert hook_count(self) > 0
            raise self.error


class Boom(Exception):
    pass


def test_nothing_is_left_after_an_exception_in_a_validation_step(tmp_path: Any) -> None:
    module, callback = Breaks(), watcher()
    module.error = KeyboardInterrupt()
    trainer = quiet_trainer(tmp_path, callback, num_sanity_val_steps=0)
    with pytest.raises((Boom, SystemExit, KeyboardInterrupt)):
        trainer.fit(module, loader(), loader(seed=1))
    assert hook_count(module) == 0
    assert len(callback.history) == 1
    module.train().steps = 100
    quiet_trainer(tmp_path, callback, max_epochs=1).fit(module, loader(), loader(seed=1))
    assert len(callback.history) == 2
    assert hook_count(module) == 0


def test_an_analysis_that_raises_leaves_what_lightning_leaves(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaking(pl.Callback):
        def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            raise Boom

    def stopped(callback: pl.Callback) -> Any:
        module, looks = FrozenNorm(), Watcher()
        pl.seed_everything(1, verbose=False)
        with pytest.raises(Boom):
            quiet_trainer(tmp_path, callback, num_sanity_val_steps=0).fit(module, loader(shuffle=True), loader(seed=1))
        looks.look(module)
        return looks.seen

    def analyze_maps(*args: Any) -> Any:
        raise Boom

    monkeypatch.setattr(_probe, "analyze_maps", analyze_maps)
    assert same(stopped(watcher(on_error="raise", probe="train")), stopped(Breaking()))


def forget_texts() -> None:
    """matplotlib before 3.11 remembers the sizes of the last 4096 texts drawn by whomever: bounded, and no figure."""
    cache = getattr(matplotlib.text, "_get_text_metrics_with_cache_impl", None)
    if cache is not None:
        assert cache.cache_parameters()["maxsize"] == 4096
        cache.cache_clear()


class Still(SmallNet):
    """Learns nothing, so that all validations find the same.

    Of what is drawn for the first time matplotlib keeps a little, and when a network that learns has something new to
    draw depends on its dropout, and so on the tests before.
    """

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.slow
def test_sixty_validations_leave_nothing_behind(tmp_path: Any) -> None:
    counts: list[tuple[int, Counter[str], int, int]] = []
    logger = TensorBoardLogger(tmp_path)

    class Count(pl.Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.sanity_checking:
                return
            validations.append(1)
            if len(validations) in (20, 60):
                forget_texts()
                logger.experiment.flush()  # its thread opens the file anew for each value that it writes
                gc.collect()
                objects = [type(thing) for thing in gc.get_objects()]
                tensors = sum(issubclass(kind, Tensor) for kind in objects)
                names = (f"{kind.__module__}.{kind.__qualname__}" for kind in objects)
                figures = Counter(name for name in names if name.startswith("matplotlib"))
                files = len(os.listdir("/proc/self/fd"))
                counts.append((tensors, figures, files, hook_count(pl_module)))

    validations: list[int] = []
    few: dict[str, Any] = {"layers": ["conv1"], "n_init": 1, "max_components": 2}
    training = watcher(probe="train", probe_size=20, log_key_prefix="train", **few)
    callbacks = [watcher(log_figures=True, **few), training]
    trainer = quiet_trainer(tmp_path, *callbacks, Count(), logger=logger, max_epochs=60)
    trainer.fit(Still(), loader(20), loader(seed=1))
    (tensors, figures, files, hooks), after = counts
    assert hooks == 0
    assert after[0] <= tensors
    assert after[1] - figures == Counter()
    assert after[2] <= files
    assert after[3] == 0
