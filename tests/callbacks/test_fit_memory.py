"""Only what is alike is compared: a rise is over levels of the same layers, probe and settings."""

from types import SimpleNamespace
from typing import Any

import pytest

from lightning_anomaly.callbacks._history import FitMemory

TRAINER = SimpleNamespace(current_epoch=0, global_step=0)


def add(
    memory: FitMemory, fraction: float, times: int, probe: str = "val", left_out: tuple[str, ...] = (), **others: Any
) -> float:
    """Remembers equal reports; the rise after the last."""
    found = {"anomaly_filters": {"conv": [1]}, "layers": ["conv"], "n_samples": 60, "settings": {"rectify": True}}
    report: Any = SimpleNamespace(live_in=lambda _: 9, fraction_in=lambda _: fraction, **{**found, **others})
    for _ in range(times):
        values = {"rise": 0.0, **{f"layer/{name}": 0.0 for name in (*report.layers, *left_out)}}
        memory.add(TRAINER, values, report, None, probe)
    return values["rise"]


def resumed(memory: FitMemory, **without: Any) -> FitMemory:
    again, state = FitMemory(), memory.state_dict()
    again.load_state_dict({name: value for name, value in state.items() if name not in without})
    return again


def test_a_rise_goes_on_through_a_checkpoint() -> None:
    memory = FitMemory()
    add(memory, 0.1, 6)
    assert add(resumed(memory), 0.5, 5) == pytest.approx(0.4)
    assert add(resumed(memory, comparable=None), 0.5, 5) == pytest.approx(0.4)  # of release 0.1
    assert add(resumed(memory), 0.5, 5, settings={"rectify": True, "engine": "torch"}) == pytest.approx(0.4)


@pytest.mark.parametrize(
    "other",
    [
        {"settings": {"rectify": False}},
        {"n_samples": 50},
        {"probe": "train"},
        {"layers": ["conv", "other"]},
    ],
    ids=str,
)
def test_what_changes_with_the_analysis_is_no_rise(other: dict[str, Any]) -> None:
    memory = FitMemory()
    add(memory, 0.1, 6)
    memory = resumed(memory)
    assert add(memory, 0.5, 9, **other) == 0
    assert add(resumed(memory), 0.7, 5, **other) == pytest.approx(0.2)
    assert len(memory.history) == 15


def test_only_the_last_entry_keeps_the_flagged_filters_also_of_an_older_checkpoint() -> None:
    memory = FitMemory()
    add(memory, 0.1, 3)
    assert ["anomaly_filters" in entry for entry in memory.history] == [False, False, True]
    old = memory.state_dict()
    old["history"] = [{**entry, "anomaly_filters": {"conv": [1]}} for entry in old["history"]]
    again = FitMemory()
    again.load_state_dict(old)
    assert again.history == memory.history


def test_a_layer_that_is_left_out_once_does_not_restart_the_rise() -> None:
    memory = FitMemory()
    add(memory, 0.1, 6, layers=["conv", "late"])
    add(memory, 0.1, 1, layers=["conv"], left_out=("late",))
    assert add(memory, 0.5, 5, layers=["conv", "late"]) == pytest.approx(0.4)
