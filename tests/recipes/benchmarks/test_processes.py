"""The benchmark of several processes at tiny sizes: both ways find the same, and the new one sends less."""

import sys

import pytest

from recipes.benchmarks import processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's books in /proc")


def test_both_ways_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    options = processes.parse(["--data", "digits", "--networks", "lenet5", "--samples", "64"])
    rows = processes.run(options)
    assert [(row["processes"], row["way"], row["same_report"]) for row in rows] == [
        (2, "first alone", True),
        (2, "shares", True),
    ]
    sent = [sum(own["sent_mb"] for own in row["each"]) for row in rows]
    assert 0 < sent[1] < 0.7 * sent[0]
    assert all(own["peak_mib"] > 0 for row in rows for own in row["each"])
    assert "lenet5" in capsys.readouterr().out
