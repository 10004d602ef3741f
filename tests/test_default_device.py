"""torch's default device does not change results.

The meta device stands in for a GPU: tensors that are created there cannot be read.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reports import facts
from torch import nn

from lightning_anomaly import AnalysisSettings, analyze, find_outliers, two_sample_test
from lightning_anomaly.pages.figures import outlier_figure
from lightning_anomaly.pruning import mask_filters

IMAGES = torch.randn(150, 1, 10, 10, generator=torch.Generator().manual_seed(0))
IMAGES[7] *= 20
NETWORK = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 2, 3), nn.Flatten(), nn.Linear(200, 3))


def analyzed() -> list[Any]:
    report = analyze(NETWORK, IMAGES, settings=AnalysisSettings(n_init=2), keep_images=True)
    figure = outlier_figure(report.images, report.outlier_scores, report.votes)
    return [facts(report), report.metrics(), str(report), figure is None]


def page(folder: Path) -> str:
    analyze(NETWORK, IMAGES, keep_images=True).save_html(folder / "browser.html")
    return (folder / "browser.html").read_text()


def masked() -> list[Any]:
    model = copy.deepcopy(NETWORK)
    mask_filters(model, {"0": [1], "2": [1]})
    return [values.tolist() for values in model.state_dict().values()]


FUNCTIONS: dict[str, Callable[[Path], Any]] = {
    "analysis": lambda _: analyzed(),
    "two-sample test": lambda _: str(two_sample_test(NETWORK, IMAGES[:80], IMAGES[80:])),
    "outliers": lambda _: str([part.entries for part in find_outliers(IMAGES, NETWORK).lists(20)]),
    "page": page,
    "mask": lambda _: masked(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_default_device_changes_nothing(name, tmp_path):
    expected = FUNCTIONS[name](tmp_path)
    with torch.device("meta"):  # like `torch.set_default_device`
        found = FUNCTIONS[name](tmp_path)
    assert found == expected
