"""MemorizationCallback logs and stores the results of `two_sample_test` in a Trainer."""

import gc
import re
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import trainers
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from reports import facts
from torch import Tensor, nn
from torch.utils.data import DataLoader
from trainers import SmallNet, hook_count, images, loader, quiet_trainer, said, watcher

from lightning_anomaly import MemorizationCallback, MemorizationEarlyStopping, two_sample_test

TRAIN, VAL = images(60) + 0.1, images(80, seed=1)
OUTPUT = ["auc", "gap", "error_ratio", "rise", "p_value"]


class Seen(pl.Callback):
    def __init__(self) -> None:
        self.values: list[dict[str, float]] = []
        self.bar: set[str] = set()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        logged = {k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith("memorization")}
        if logged:
            self.values.append(logged)
            self.bar = {key for key in trainer.progress_bar_metrics if key.startswith("memorization")}


def fit(folder: Path, *others: Any, **options: Any) -> tuple[Any, Seen]:
    seen = Seen()
    return trainers.fit(folder, *others, seen, **options).lightning_module, seen


def keys(values: dict[str, float], prefix: str = "memorization") -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in values.items()}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("compared")
    compared, keep = MemorizationCallback(TRAIN, VAL), ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
    model, seen = fit(folder, compared, keep, max_epochs=5, num_sanity_val_steps=1)
    return SimpleNamespace(model=model, compared=compared, seen=seen, folder=folder)


def test_every_validation_logs_the_results_of_the_test(fitted: SimpleNamespace) -> None:
    report = two_sample_test(fitted.model, TRAIN, VAL)  # with the weights of the last validation
    assert len(fitted.seen.values) == 5
    expected = {name: getattr(report, name) for name in OUTPUT if name != "rise"}
    last = fitted.seen.values[-1]
    untested = {key: last[key] for key in keys({"rise": 0, "seconds": 0})}
    assert last == pytest.approx(keys(expected) | untested)
    assert fitted.compared.report.layers == {}
    assert "expected error" in str(fitted.compared.report)
    assert fitted.seen.bar == {"memorization/rise"}


def test_a_history_has_the_logged_values_in_plain_types(fitted: SimpleNamespace) -> None:
    history = fitted.compared.history
    assert [(entry["epoch"], entry["step"]) for entry in history] == [(i, 4 * i + 4) for i in range(5)]
    for entry, values in zip(history, fitted.seen.values, strict=True):
        assert {key: np.float32(value) for key, value in keys(entry["metrics"]).items()} == values
        assert entry["compares_output"]
    states = torch.load(fitted.folder / "epoch=4.ckpt", weights_only=True)["callbacks"]
    saved = states[fitted.compared.state_key]["history"]  # written before the training loss of the epoch is known
    assert [{**entry, "logged": {}} for entry in saved] == [{**entry, "logged": {}} for entry in history]


class Fails(SmallNet):
    """Fails on the compared images at some validations, after its maps are computed."""

    def __init__(self, *epochs: int) -> None:
        super().__init__()
        self.epochs, self.kept = epochs, []

    def forward(self, x: Tensor) -> Tensor:
        output = super().forward(x)
        if len(x) == len(TRAIN) and self.current_epoch in self.epochs:  # the loaders' batches are smaller
            self.kept.append(weakref.ref(output))
            raise torch.OutOfMemoryError("full")
        return output


def test_a_failing_comparison_gives_one_warning_and_logs_the_last_values(tmp_path: Path) -> None:
    compared = MemorizationCallback(TRAIN, VAL)
    with pytest.warns(UserWarning, match="Could not compare") as caught:
        model, seen = fit(tmp_path, compared, module=Fails(1, 2), max_epochs=3)
    assert len(said(caught)) == 1
    assert seen.values[0] == seen.values[1] == seen.values[2]
    assert [entry["compares_output"] for entry in compared.history] == [True, False, False]
    assert hook_count(model) == 0
    gc.collect()
    assert [maps() for maps in model.kept] == [None, None]


def test_a_failing_first_comparison_logs_only_the_monitored_key_and_names_it(tmp_path: Path) -> None:
    compared, reader = MemorizationCallback(TRAIN, VAL), EarlyStopping("memorization/p_value", mode="max", patience=100)
    with pytest.warns(UserWarning, match="Could not compare") as caught:
        _, seen = fit(tmp_path, compared, reader, module=Fails(0), num_sanity_val_steps=0)
    (text,) = said(caught)
    assert "'memorization/p_value' will only see a constant" in text
    assert "last values" not in text
    assert seen.values[0] == {"memorization/p_value": 1}
    assert compared.history[0]["metrics"] == {}
    assert set(seen.values[1]) == set(keys(dict.fromkeys(["seconds", *OUTPUT], 0.0)))
    assert seen.values[1]["memorization/seconds"] > 0


class Regression(SmallNet):
    def loss(self, batch: Any) -> Tensor:
        return nn.functional.mse_loss(self(batch[0])[:, 0], batch[1].float())


@pytest.mark.parametrize(
    ("module", "inputs", "message"),
    [
        (SmallNet, (TRAIN[:5], VAL[:5]), "5 training and 5 validation images .* Nothing is measured"),
        (Regression, (TRAIN, VAL), "The output is not compared: its loss, mse_loss"),
    ],
)
def test_nothing_to_compare_gives_one_warning(
    tmp_path: Path, module: Any, inputs: Any, message: str, recwarn: Any
) -> None:
    stopping = [MemorizationEarlyStopping()] if module is Regression else []
    compared, reader = MemorizationCallback(*inputs), EarlyStopping("memorization/auc", mode="max", patience=100)
    _, seen = fit(tmp_path, compared, reader, *stopping, module=module(), max_epochs=3)
    (text,) = said(recwarn)
    assert re.search(message, text)
    monitored = ["'memorization/auc'", *["'memorization/rise'"] * len(stopping)]
    assert text.endswith(f"{', '.join(monitored)} will only see a constant.")
    rise = {"memorization/rise": 0} if stopping else {}
    assert seen.values == [{"memorization/auc": 0.5} | rise] * 3
    assert compared.history[-1]["metrics"] == {}
    assert "the output: not measured" in str(compared.report)


def test_every_nth_validation_compares_and_too_few_expected_errors_give_a_warning(tmp_path: Path) -> None:
    class Sure(SmallNet):
        compared = 0

        def forward(self, x: Tensor) -> Tensor:
            self.compared += len(x) == len(TRAIN)  # the loaders' batches are smaller
            return 1e4 * super().forward(x)

    compared = MemorizationCallback(TRAIN, VAL, every_n_validations=2)
    with pytest.warns(UserWarning, match="fewer than 10 errors"):
        model, _ = fit(tmp_path, compared, max_epochs=7, module=Sure())
    assert model.compared == 4  # once at each of them, and not in the sanity check
    assert [entry["compares_output"] for entry in compared.history] == [True, False] * 3 + [True]
    metrics = [entry["metrics"] for entry in compared.history]
    assert metrics[0] == metrics[1] != metrics[2] == metrics[3]
    assert all(0 < values["seconds"] < 60 and values["rise"] == 0 for values in metrics)


def test_batch_size_precision_and_prefix_are_respected(tmp_path: Path) -> None:
    class Notes(SmallNet):
        def __init__(self) -> None:
            super().__init__()
            self.kinds: set[Any] = set()

        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            self.kinds.add((len(x), out.dtype, torch.is_inference_mode_enabled()))
            return out

    compared = MemorizationCallback(TRAIN, VAL, log_key_prefix="memorization_too", batch_size=7)
    model, seen = fit(tmp_path, compared, module=Notes(), precision="bf16-mixed")
    ours = {kind for kind in model.kinds if kind[0] != 20}
    assert {kind[1:] for kind in ours} == {(torch.bfloat16, False)}
    assert max(kind[0] for kind in ours) <= 7
    assert set(seen.values[0]) == set(keys(dict.fromkeys(["seconds", *OUTPUT], 0.0), "memorization_too"))


def test_compared_images_affect_neither_a_probe_nor_logged_values(tmp_path: Path) -> None:
    class Logs(SmallNet):
        def forward(self, x: Tensor) -> Tensor:
            output = super().forward(x)
            if not self.training:
                self.log("largest", output.max())
            return output

    alone, beside = watcher(), watcher()
    model, _ = fit(tmp_path, alone, module=Logs())
    largest = model.trainer.callback_metrics["largest"]
    model, _ = fit(tmp_path, MemorizationCallback(TRAIN, VAL), beside, module=Logs())
    assert model.trainer.callback_metrics["largest"] == largest
    assert "log" not in vars(model)
    assert facts(beside.report) == facts(alone.report)


def test_a_validation_outside_a_fit_compares_nothing(tmp_path: Path) -> None:
    compared = MemorizationCallback(TRAIN, VAL)
    fit(tmp_path, compared, max_epochs=1)
    before, report = [*compared.history], compared.report
    (logged,) = quiet_trainer(tmp_path, compared).validate(SmallNet(), loader(seed=1), verbose=False)
    assert set(logged) == {"val_loss"}
    assert compared.history == before
    assert compared.report is report


@pytest.mark.parametrize(
    ("val_inputs", "message"),
    [
        (VAL[:, :, 1:], r"Found \(1, 8, 8\) and \(1, 7, 8\)"),
        (DataLoader(VAL, batch_size=None), "`val_inputs` .* Found `batch_size=None`"),
    ],
)
def test_images_that_cannot_be_compared_are_an_error(val_inputs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MemorizationCallback(TRAIN, val_inputs)
