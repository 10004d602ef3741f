"""What a TwoSampleCallback remembers of a fit and draws of it, inside a Trainer with a logger."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from trainers import QUIET, SmallNet, images, loader, quiet_trainer, said

from lightning_anomaly import TwoSampleCallback, TwoSampleReport
from lightning_anomaly.callbacks import _figures
from lightning_anomaly.callbacks import two_sample as two_sample_file
from lightning_anomaly.plots import comparison_figure
from lightning_anomaly.two_sample.rise import ErrorRise

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint"),
]
TRAIN, VAL = images(60) + 0.1, images(80, seed=1)
LAYERS = ["conv1", "conv2", "head"]
TAG = "two_sample/layers"


def fit(folder: Path, *callbacks: Any, ckpt_path: str | None = None, module: Any = None, **options: Any) -> Any:
    torch.manual_seed(0)
    trainer = quiet_trainer(folder, *callbacks, **options)
    trainer.fit(SmallNet() if module is None else module, loader(80), loader(seed=1), ckpt_path=ckpt_path)
    return trainer


def compared(**options: Any) -> TwoSampleCallback:
    return TwoSampleCallback(TRAIN, VAL, **{"layers": LAYERS, **options})


def logged(logger: TensorBoardLogger) -> dict[str, dict[int, Image.Image]]:
    """The images by tag and step."""
    events = EventAccumulator(logger.log_dir, {"images": 0}).Reload()
    return {
        tag: {e.step: Image.open(io.BytesIO(e.encoded_image_string)) for e in events.Images(tag)}
        for tag in events.Tags()["images"]
    }


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn, with the number of validations that each was given."""
    figures: list[Any] = []

    def draw(history: Any, *significance: float) -> Any:
        figure = comparison_figure(history, *significance)
        figures.append((len(history), figure))
        return figure

    monkeypatch.setattr(_figures, "comparison_figure", draw)
    return figures


class Reports(TwoSampleCallback):
    """Keeps every report."""

    def __init__(self) -> None:
        super().__init__(TRAIN, VAL, layers=LAYERS)
        self.reports: list[TwoSampleReport] = []

    def _take(self, trainer: Any, report: TwoSampleReport) -> None:
        super()._take(trainer, report)
        self.reports.append(report)


def test_figures_are_under_their_tag_at_the_steps_of_the_values(tmp_path: Path, drawn: list[Any]) -> None:
    logger = TensorBoardLogger(tmp_path)
    fit(tmp_path, compared(), max_epochs=6, num_sanity_val_steps=1, logger=logger)
    found = logged(logger)
    assert list(found) == [TAG]
    assert list(found[TAG]) == [3, 7, 15, 23]  # four batches in an epoch: the 1st, 2nd, 4th and last validation
    assert [number for number, _ in drawn] == [1, 2, 4, 6]
    for picture, (_, figure) in zip(found[TAG].values(), drawn, strict=True):
        assert picture.size == tuple((figure.get_size_inches() * figure.dpi).round())


def test_what_is_drawn_is_what_was_reported(tmp_path: Path, drawn: list[Any]) -> None:
    class Alike(Reports):
        """Of images that are alike from the third validation on, which chance explains."""

        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            super().on_validation_start(trainer, pl_module)
            if trainer.current_epoch > 1:
                self.train_inputs = images(len(TRAIN), seed=5)
                self.val_inputs = images(len(VAL), seed=6)

    callback = Alike()
    fit(tmp_path, callback, max_epochs=4, logger=TensorBoardLogger(tmp_path))
    whether, where, *_ = drawn[-1][1].axes
    assert list(whether.get_lines()[1].get_ydata()) == [report.confidence_auc for report in callback.reports]
    assert [label.get_text() for label in where.get_yticklabels()] == LAYERS
    expected = np.full((2, 3, 4), np.nan)
    for place, report in enumerate(callback.reports):
        for row, name in enumerate(LAYERS):
            if report.layers[name].live.any():
                expected[int(name in report.significant_layers), row, place] = report.fraction_in([name])
    shown = [mesh.get_array().filled(np.nan) for mesh in where.collections]
    np.testing.assert_array_equal(shown, expected)
    assert all(np.isfinite(expected).any((1, 2)))


def test_the_history_is_what_was_logged_in_plain_types(tmp_path: Path) -> None:
    callback = Reports()
    keep = ModelCheckpoint(tmp_path)
    trainer = fit(tmp_path, callback, keep, max_epochs=3)
    assert [(entry["epoch"], entry["step"]) for entry in callback.history] == [(0, 4), (1, 8), (2, 12)]
    for name, value in callback.history[-1]["metrics"].items():
        assert trainer.callback_metrics[f"two_sample/{name}"].item() == np.float32(value)
    for entry, report in zip(callback.history, callback.reports, strict=True):
        assert entry["compares_output"]
        judged = {name: own.share_p_value for name, own in report.layers.items() if own.live.any()}
        assert entry["share_p_values"] == judged
    states = torch.load(keep.best_model_path, weights_only=True)["callbacks"]
    assert states[callback.state_key]["history"] == callback.history


def test_a_resumed_fit_goes_on_where_it_was(tmp_path: Path, drawn: list[Any]) -> None:
    whole, keep = compared(), ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    fit(tmp_path, whole, keep, max_epochs=5, logger=TensorBoardLogger(tmp_path / "whole"))
    assert [number for number, _ in drawn] == [1, 2, 4, 5]
    drawn.clear()
    second, logger = compared(), TensorBoardLogger(tmp_path / "second")
    fit(tmp_path, second, ckpt_path=str(tmp_path / "epoch=2.ckpt"), max_epochs=5, logger=logger)
    assert second.history[:3] == whole.history[:3]
    assert [entry["step"] for entry in second.history] == [4, 8, 12, 16, 20]
    assert [number for number, _ in drawn] == [4, 5]
    assert list(logged(logger)[TAG]) == [15, 19]
    fit(tmp_path, second, max_epochs=1)  # another model
    assert [entry["step"] for entry in second.history] == [4]


def test_a_comparison_that_fails_after_a_resume_logs_the_last_values_and_is_drawn_as_none(
    tmp_path: Path, drawn: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(tmp_path, compared(), ModelCheckpoint(tmp_path, filename="first"), max_epochs=2)

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise ArithmeticError("the comparison broke")

    monkeypatch.setattr(two_sample_file, "compare_groups", fails)
    second = compared()
    with pytest.warns(UserWarning, match="could not compare .*the comparison broke.* and logs its last values") as told:
        fit(tmp_path, second, ckpt_path=str(tmp_path / "first.ckpt"), max_epochs=3, logger=TensorBoardLogger(tmp_path))
    assert len(said(told)) == 1
    assert second.history[2]["metrics"] == second.history[1]["metrics"]
    assert second.history[2]["share_p_values"] == {}
    ((number, figure),) = drawn
    assert number == 3
    whether, where, *_ = figure.axes
    assert np.isnan(whether.get_lines()[1].get_ydata()).tolist() == [False, False, True]
    assert all(mesh.get_array().mask[:, 2].all() for mesh in where.collections)


@pytest.mark.parametrize("options", [{"log_figures": False}, {"logger": False}, {"fast_dev_run": True}], ids=str)
def test_without_figures_or_logger_nothing_is_written(
    tmp_path: Path, drawn: list[Any], options: dict[str, Any]
) -> None:
    log_figures = options.pop("log_figures", True)
    logger = TensorBoardLogger(tmp_path / "logs")
    callback = compared(log_figures=log_figures)
    fit(tmp_path, callback, **{"logger": logger, **options})
    assert callback.history
    if not log_figures:
        assert logged(logger) == {}
        assert drawn == []
    else:
        assert list(tmp_path.iterdir()) == []


def test_a_rise_is_of_the_validations_of_the_fit_alone_and_goes_on_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, epochs = ErrorRise.add, iter([1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6])

    def learning(rise: ErrorRise, train: torch.Tensor, val: torch.Tensor) -> float:
        return add(rise, torch.full_like(train, 0.15), torch.full_like(val, 0.15 * 1.3 ** next(epochs)))

    def rises(callback: TwoSampleCallback) -> list[float]:
        return [entry["metrics"]["confidence_rise"] for entry in callback.history]

    monkeypatch.setattr(ErrorRise, "add", learning)
    whole, first, second = compared(), compared(), compared()
    fit(tmp_path / "whole", whole, max_epochs=6)
    assert rises(whole) == pytest.approx([0, 0, 0, 0.3, 1.3**2 - 1, 1.3**3 - 1], abs=1e-6)
    trainer = fit(tmp_path / "first", first, ModelCheckpoint(tmp_path, filename="last"), max_epochs=4)
    (validated,) = trainer.validate(trainer.lightning_module, loader(seed=1), verbose=False)
    assert validated["two_sample/confidence_rise"] == 0
    fit(tmp_path / "second", second, ckpt_path=str(tmp_path / "last.ckpt"), max_epochs=6)
    assert rises(second) == rises(whole)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint")
def test_a_rise_over_other_images_begins_anew_and_that_is_said(tmp_path: Path) -> None:
    first, keep = compared(), ModelCheckpoint(tmp_path)
    fit(tmp_path, first, keep, max_epochs=3)
    same, others = compared(), TwoSampleCallback(TRAIN + 0.1, VAL, layers=LAYERS)
    fit(tmp_path, same, ckpt_path=keep.best_model_path, max_epochs=4)
    with pytest.warns(UserWarning, match="are others than those of the checkpoint, so its `confidence_rise` begin"):
        fit(tmp_path, others, ckpt_path=keep.best_model_path, max_epochs=4)
    assert len(same._rise.recent) == 3
    assert len(others._rise.recent) == 1
    assert len(others.history) == len(same.history) == 4


def test_images_that_are_standardised_one_by_one_are_known_again_and_others_are_not() -> None:
    """Their means are 0 up to rounding, which is another one on another machine."""
    raw = torch.rand(200, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double()
    exact = (raw - raw.mean((1, 2, 3), keepdim=True)) / raw.std((1, 2, 3), keepdim=True)
    rounded = exact.float() + 3e-7 * torch.randn(raw.shape, generator=torch.Generator().manual_seed(1))
    first, same, others = (TwoSampleCallback(own, own) for own in (exact.float(), rounded, exact.float().flip(0)))
    for _ in range(3):
        first._rise.add(torch.full((200,), 0.2), torch.full((200,), 0.2))
    same.load_state_dict(first.state_dict())
    assert same._rise.lowest is not None
    with pytest.warns(UserWarning, match="are others than those of the checkpoint"):
        others.load_state_dict(first.state_dict())


def test_a_network_that_expects_too_few_errors_is_said_to(tmp_path: Path) -> None:
    class Sure(SmallNet):
        def forward(self, x: Tensor) -> Tensor:
            return 1e4 * super().forward(x)

    callback = compared()
    with pytest.warns(UserWarning, match=r"fewer than 10 errors, of which a few images decide: `confidence_rise` is 0"):
        fit(tmp_path, callback, max_epochs=3, module=Sure())
    assert [entry["metrics"]["confidence_rise"] for entry in callback.history] == [0, 0, 0]
