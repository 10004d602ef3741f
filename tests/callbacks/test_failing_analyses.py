"""Analyses that fail, find little to analyze or take long are told once, and the run continues."""

import math
import re
from collections import OrderedDict
from typing import Any

import pytest
import torch
from datasets import NEEDS_FORK
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from trainers import SmallNet, Values, fit, hook_count, loader, quiet_trainer, said, watcher

from lightning_anomaly import AnomalyEarlyStopping, AnomalyPruneCallback, MemorizationCallback
from lightning_anomaly.callbacks import _guard, anomaly_filter, memorization


class NoConvolution(SmallNet):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm, self.conv2 = nn.Identity(), nn.Identity(), nn.Identity()
        self.head = nn.Linear(1, 3)


class Teacher(SmallNet):
    """Has a second network that validations do not call, like averaged weights or a perceptual loss."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.ModuleList(nn.Conv2d(1, 2, 1) for _ in range(9))


class Diverges(SmallNet):
    def __init__(self) -> None:
        super().__init__()
        nn.init.constant_(self.conv1.weight, math.nan)


WAITS = "Nothing is measured.* 'anomaly_filters/count' will only see a constant"


@pytest.mark.parametrize(
    ("module", "options", "val", "message"),
    [
        (SmallNet, {}, {"shuffle": True}, "^AnomalyFilterCallback: The validation loader shuffles"),
        (SmallNet, {"probe_size": 70}, {}, r"60 samples, fewer than `probe_size = 70`\.$"),
        (SmallNet, {"probe_size": 512, "rare_fraction": 0.01}, {}, f"60 samples, .*at least 100 are needed.*{WAITS}"),
        (NoConvolution, {}, {}, f"The model has no convolution.*{WAITS}"),
        (Teacher, {}, {}, "Layer 'teacher.0' .* never called.* The same holds for 'teacher.1', .* 3 more"),
        (Diverges, {}, {}, f"Layer 'conv1': 4 of 4 filters .* The same holds for 'conv2'.*{WAITS}"),
    ],
)
def test_each_problem_is_one_warning_and_what_nobody_measured_is_logged_for_its_monitor_only(
    tmp_path: Any, module: Any, options: Any, val: Any, message: str, recwarn: Any
) -> None:
    callback, values, waits = watcher(**options), Values(), EarlyStopping("anomaly_filters/count", patience=100)
    trainer = fit(tmp_path, callback, values, waits, module=module(), val=loader(**val), max_epochs=3)
    (text,) = said(recwarn)
    assert re.search(message, text)
    assert trainer.current_epoch == len(callback.history) == 3
    logged = [{key: value for key, value in seen.items() if "anomaly" in key} for seen in values.seen]
    assert all(math.isfinite(value) for found in logged for value in found.values())
    if "Nothing is measured" in text:
        assert logged == [{"anomaly_filters/count": 0}] * 3
        assert [entry["metrics"] for entry in callback.history] == [{}] * 3
        assert "anomaly filters: not measured" in str(callback.report)


class Plateau(NoConvolution):
    """Lowers its learning rate by a count that is never measured."""

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return [optimizer], [{"scheduler": scheduler, "monitor": "anomaly_filters/dead"}]


def test_a_scheduler_gets_the_value_that_it_monitors_and_the_logger_gets_no_other(tmp_path: Any) -> None:
    logger = CSVLogger(tmp_path)
    with pytest.warns(UserWarning, match="'anomaly_filters/dead'.*constant"):
        fit(tmp_path, watcher(log_figures=True), module=Plateau(), logger=logger, max_epochs=2)
    with open(logger.experiment.metrics_file_path) as file:
        columns = file.readline().strip().split(",")
    assert [name for name in columns if "anomaly" in name] == ["anomaly_filters/dead"]


class Wraps(SmallNet):
    """Renames its layer `body.conv` to `body.inner.conv`, so that the watched layer is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 1, 3, padding=1)))
        nn.init.ones_(self.body.conv.weight)  # so that it responds to all images

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.body(x))

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.body = nn.Sequential(OrderedDict(inner=self.body))


def test_an_analysis_that_fails_warns_once_and_logs_the_last_values_or_raises(tmp_path: Any) -> None:
    ours, values, module = watcher(layers=["body.conv"]), Values(), Wraps()
    with pytest.warns(UserWarning, match="Could not .* last values") as caught:
        trainer = fit(tmp_path, ours, values, module=module, max_epochs=3)
    assert [text.split()[0] for text in said(caught)] == ["AnomalyFilterCallback:"]
    assert trainer.current_epoch == len(ours.history) == 3
    assert ours.history[2]["metrics"] == ours.history[0]["metrics"]
    assert all(values.seen[0][key] == values.seen[2][key] for key in values.seen[0] if "anomaly" in key)
    assert hook_count(module) == 0
    ours = watcher(layers=["body.conv"], on_error="raise")
    trainer = quiet_trainer(tmp_path, ours, max_epochs=3)
    with pytest.raises(ValueError, match=r"`layers` .* Found \['body.conv'\]"):
        trainer.fit(module := Wraps(), loader(), loader())
    assert trainer.current_epoch == 1
    assert hook_count(module) == 0


class Late(SmallNet):
    """Uses its convolutions from the sixth epoch on and gives them NaN in the ninth; learns nothing."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        x = batch[0] * math.nan if self.current_epoch == 8 else batch[0]
        early = self.current_epoch < 5
        self.log("val_loss", self.head(x.flatten(1)[:, :6]).mean() if early else self.loss([x, batch[1]]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_a_failed_analysis_repeats_values_and_counts_neither_for_a_rise_nor_as_a_report(tmp_path: Any) -> None:
    ours, prune, values = watcher(), AnomalyPruneCallback(at_epoch=2), Values()
    probe = loader(seed=1)
    probe.dataset.tensors[0][[3, 20, 41]] *= 20  # outliers of all filters
    with (
        pytest.warns(UserWarning, match="Nothing is measured"),
        pytest.warns(UserWarning, match="reports is 0"),
        pytest.warns(UserWarning, match="NaN.*last values"),
    ):
        trainer = fit(tmp_path, ours, AnomalyEarlyStopping(), prune, values, module=Late(), val=probe, max_epochs=16)
    assert trainer.current_epoch == 16
    assert [entry["clustered"] for entry in ours.history] == [False] * 5 + [True] * 3 + [False] + [True] * 7
    assert [entry["metrics"].get("count", 0) > 0 for entry in ours.history[:8]] == [False] * 5 + [True] * 3
    assert [entry["metrics"] for entry in ours.history[:5]] == [{}] * 5
    assert [entry["analyzed"] for entry in ours.history].index(False) == 8
    assert ours.history[8]["metrics"] == ours.history[7]["metrics"]
    assert {entry["metrics"]["rise"] for entry in ours.history[5:]} == {0}
    masked = [seen["anomaly_prune/masked"] > 0 for seen in values.seen]
    assert masked.index(True) == 7  # after two reports, which have to agree
    for _ in range(2):  # each validation warns
        with pytest.warns(UserWarning, match="Nothing is measured"):
            (logged,) = quiet_trainer(tmp_path, ours).validate(SmallNet(), loader(5), verbose=False)
        assert set(logged) == {"val_loss"}  # not the values of the fit


@pytest.mark.filterwarnings("ignore:You .* Skipping val loop")
def test_without_validation_there_is_one_warning(tmp_path: Any) -> None:
    ours = watcher()
    trainer = quiet_trainer(tmp_path, ours, AnomalyEarlyStopping())
    with pytest.warns(UserWarning, match="no validations") as caught:
        trainer.fit(SmallNet(), loader())
    (text,) = said(caught)
    assert text.endswith("'anomaly_filters/rise' will only see a constant.")
    assert trainer.current_epoch == 2
    assert ours.history == []
    assert "anomaly_filters/count" not in trainer.callback_metrics


@NEEDS_FORK
def test_a_callback_that_takes_a_tenth_of_the_time_says_so_once_if_it_measured(tmp_path: Any, monkeypatch: Any) -> None:
    """The clock of this test makes each analysis take two seconds; the first analysis does not count."""
    told, clock = list[str](), iter(range(0, 10**6, 2)).__next__
    for module in (_guard, anomaly_filter, memorization):
        monkeypatch.setattr(module, "perf_counter", clock)
    monkeypatch.setattr(_guard, "rank_zero_info", told.append)
    fit(tmp_path, watcher(), MemorizationCallback(), max_epochs=2)
    assert told == []
    fit(tmp_path, watcher(), MemorizationCallback(), max_epochs=5)
    assert [line.partition(" took ")[0] for line in told] == ["AnomalyFilterCallback", "MemorizationCallback"]
    assert all("`every_n_validations`" in line for line in told)
    with pytest.warns(UserWarning, match="no convolution"):
        fit(tmp_path, watcher(), module=NoConvolution(), max_epochs=5)
    assert len(told) == 2
