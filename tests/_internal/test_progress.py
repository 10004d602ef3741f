"""Progress bars appear on a terminal after two seconds, or on request."""

import io
import sys

import pytest
import torch
from reports import facts
from torch import nn

from lightning_anomaly import AnalysisSettings, analyze
from lightning_anomaly._internal.progress import track

QUICK = AnalysisSettings(max_components=2, n_init=1, rare_fraction=0.25)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, show: bool | None, patience: float = 0.0) -> str:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        patch.setattr("lightning_anomaly._internal.progress._PATIENCE", patience)
        assert [*track(range(3), 3, "waiting", show)] == [0, 1, 2]
    return stream.getvalue()


def test_a_bar_is_shown_on_a_terminal_after_a_while_or_on_request(monkeypatch):
    assert "waiting:" in shown(monkeypatch, Terminal(), None)
    assert shown(monkeypatch, Terminal(), None, patience=1e6) == ""
    assert shown(monkeypatch, Terminal(), False) == ""
    assert shown(monkeypatch, io.StringIO(), None) == ""
    assert "waiting:" in shown(monkeypatch, io.StringIO(), True, patience=1e6)


def test_analyze_shows_progress_of_batches_and_filters(capsys):
    inputs = torch.randn(150, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3))
    report = analyze(model, inputs, settings=QUICK, progress=True)
    text = capsys.readouterr().err
    assert "feature maps:" in text
    assert "0/3" in text
    assert "filters:" in text
    assert "0/3" in text.partition("filters:")[2]  # the scores of the samples, the filters of two layers
    assert facts(analyze(model, inputs, settings=QUICK)) == facts(report)
    assert capsys.readouterr().err == ""
