"""What `analyze` cannot analyze is a note in the report and one warning."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from lightning_anomaly import analyze

pytestmark = pytest.mark.usefixtures("seeded")

PROBE = torch.randn(120, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def notes_of(model: nn.Module, inputs, **options) -> dict[str, str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = analyze(model, inputs, **options)
    messages = [str(warning.message) for warning in caught]
    assert {message.split(" The same holds for ")[0] for message in messages} <= set(report.notes.values())
    assert all(warning.filename == __file__ for warning in caught)
    assert all(torch.isfinite(torch.tensor(value)) for value in report.metrics().values())
    return dict(report.notes)


class Unruly(nn.Module):
    """Has layers that are never called, give no maps, or maps of another number of samples."""

    def __init__(self) -> None:
        super().__init__()
        self.good, self.twice, self.flat = nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3), nn.Flatten(0, 3)
        self.also, self.unused = nn.Conv2d(1, 1, 3), nn.ModuleList(nn.Conv2d(1, 1, 1) for _ in range(7))

    def forward(self, x: Tensor) -> Tensor:
        self.twice(torch.cat([x, x]))
        self.also(x)
        return self.flat(self.good(x))


def test_layers_without_a_map_of_every_sample_are_left_out_with_one_warning_for_each_reason():
    layers = ["good", "also", "twice", "flat", *(f"unused.{index}" for index in range(7))]
    notes = notes_of(Unruly(), PROBE, layers=layers)
    assert list(notes) == [f"{name} left out" for name in layers[2:]]
    assert "240 maps where most layers gave 120" in notes["twice left out"]
    assert "(2160,)" in notes["flat left out"]
    assert "never called" in notes["unused.6 left out"]
    with pytest.warns(UserWarning, match="left out") as caught:
        analyze(Unruly(), PROBE)
    assert "The same holds for 'unused.1', 'unused.2'" in str(caught[1].message)


def test_a_model_that_splits_samples_gives_a_note():
    model = nn.Sequential(nn.Flatten(0, 1), nn.Unflatten(0, (-1, 1)), nn.Conv2d(1, 2, 3))
    films = torch.randn(40, 3, 8, 8)
    notes = notes_of(model, films)
    assert list(notes) == ["samples"]
    assert "120 maps for the 40 samples" in notes["samples"]


def test_a_note_names_samples_with_nan_unless_the_weights_have_nan():
    model, inputs = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3)), PROBE.clone()
    inputs[[17, 40]] = torch.nan
    with pytest.warns(UserWarning, match="NaN") as caught:
        report = analyze(model, inputs)
    assert list(report.notes) == ["0 nonfinite", "2 nonfinite"]
    assert report.outlier_scores.isinf().nonzero()[:, 0].tolist() == [17, 40]
    for name, count in (("0", "3 of 3"), ("2", "2 of 2")):
        assert count in report.notes[f"{name} nonfinite"]
        assert "samples 17, 40" in report.notes[f"{name} nonfinite"]
    assert [str(warning.message) for warning in caught] == [f"{report.notes['0 nonfinite']} The same holds for '2'."]
    model[2].weight.data[1] = torch.nan
    notes = notes_of(model, PROBE)
    assert list(notes) == ["2 nonfinite"]
    assert "1 of 2" in notes["2 nonfinite"]
    assert "sample" not in notes["2 nonfinite"]
    inputs[40] = 0
    notes = notes_of(model, inputs)
    assert list(notes) == ["0 nonfinite", "2 nonfinite"]
    assert "of sample 17 and" in notes["0 nonfinite"]
