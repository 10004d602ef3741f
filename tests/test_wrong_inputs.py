"""Wrong inputs of every public function give an error that names the argument, or the model's own error."""

import warnings
from collections.abc import Callable
from inspect import signature
from typing import Any

import pytest
import torch
from functional import SEED
from torch import Tensor, nn
from torch.utils.data import Dataset

import lightning_anomaly
from lightning_anomaly import (
    AnalysisSettings,
    AnomalyEarlyStopping,
    AnomalyFilterCallback,
    AnomalyPruneCallback,
    MemorizationCallback,
    MemorizationEarlyStopping,
    OutlierDetector,
    analyze,
    find_outliers,
    save_run_page,
    two_sample_test,
)
from lightning_anomaly.pruning import mask_filters

IMAGES = torch.rand(110, 1, 6, 6, generator=torch.Generator().manual_seed(0))


class NoLength(Dataset[Tensor]):
    def __getitem__(self, index: int) -> Tensor:
        return IMAGES[index]


WRONG: dict[str, Any] = {
    "None": None,
    "a string": "images",
    "an integer": 3,
    "a negative number": -1.5,
    "no images": IMAGES[:0],
    "one image": IMAGES[:1],
    "integers": (255 * IMAGES).long(),
    "bytes": (255 * IMAGES).byte(),
    "no channels": IMAGES[:, 0],
    "numbers": IMAGES[:, 0, 0, 0],
    "a number": IMAGES[0, 0, 0, 0],
    "NaN": IMAGES * torch.nan,
    "a list": [*IMAGES],
    "an empty list": [],
    "an array": IMAGES.numpy(),
    "no length": NoLength(),
}


def net() -> nn.Module:
    torch.manual_seed(SEED)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))


def detector() -> OutlierDetector:
    return OutlierDetector(net()).fit(IMAGES, progress=False)


FUNCTIONS: dict[str, Callable[[Any], object]] = {
    "analyze": lambda x: analyze(net(), x),
    "analyze, model": lambda x: analyze(x, IMAGES),
    "analyze, layers": lambda x: analyze(net(), IMAGES, layers=x),
    "analyze, settings": lambda x: analyze(net(), IMAGES, settings=x),
    "two_sample_test": lambda x: two_sample_test(net(), x, IMAGES),
    "two_sample_test, second images": lambda x: two_sample_test(net(), IMAGES, x),
    "two_sample_test, model": lambda x: two_sample_test(x, IMAGES, IMAGES),
    "find_outliers": lambda x: find_outliers(x, net(), progress=False),
    "find_outliers, reference": lambda x: find_outliers(IMAGES, net(), x, progress=False),
    "find_outliers, model": lambda x: find_outliers(IMAGES, x, progress=False),
    "OutlierDetector": OutlierDetector,
    "OutlierDetector, class names": lambda x: OutlierDetector(net(), x),
    "OutlierDetector.fit": lambda x: OutlierDetector(net()).fit(x, progress=False),
    "OutlierDetector.score": lambda x: detector().score(x),
    "OutlierDetector.search": lambda x: detector().search(x, progress=False),
    "OutlierDetector.p_values": lambda x: detector().p_values(x),
    "save_run_page": lambda x: save_run_page(x, "run.html"),
    "mask_filters": lambda x: mask_filters(net(), x),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_wrong_inputs_give_an_error_that_names_the_argument(name: str) -> None:
    for kind, value in WRONG.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # notes of reports
                FUNCTIONS[name](value)
        except Exception as error:
            by_torch = isinstance(error, (RuntimeError, TypeError)) and "nput" in str(error)  # a layer refuses it
            if not by_torch and not (isinstance(error, (TypeError, ValueError)) and "Parameter" in str(error)):
                pytest.fail(f"{kind}: {error!r:.200}")


# What is just beyond the limits of an argument.
CLASSES: dict[Any, dict[str, list[Any]]] = {
    AnalysisSettings: {
        "max_components": [1, 256],  # labels are stored in a byte each
        "rare_fraction": [0, 0.51, float("nan")],
        "seed": [2**64],
        **{name: [0] for name in ("n_init", "max_map_side", "max_memory_mb")},
    },
    AnomalyFilterCallback: {"probe_size": [49], "every_n_validations": [0, True, "5"], "log_key_prefix": [""]},
    AnomalyPruneCallback: {"at_epoch": [0], "min_votes": [0], "last_reports": [0], "max_fraction": [0, True]},
    AnomalyEarlyStopping: {"threshold": [1.1], "patience": [4, 6.0]},
    MemorizationCallback: {
        "sample_size": [0],
        "batch_size": [0],
        "log_key_prefix": [""],
        "layers": [[], "conv1", [None]],
    },
    MemorizationEarlyStopping: {"threshold": [1.1], "patience": [0]},
}


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (kind, name, value)
        for kind, refused in CLASSES.items()
        for name in signature(kind).parameters
        for value in (object(), -1, *refused.get(name, ()))
    ],
)
def test_every_argument_of_a_constructor_is_checked(kind: Any, name: str, value: Any) -> None:
    required = {"at_epoch": 1} if kind is AnomalyPruneCallback else {}
    with pytest.raises((TypeError, ValueError), match=f"^Parameter `{name}` should be .* Found"):
        kind(**{**required, name: value})


def test_every_public_name_is_among_them() -> None:
    made = {"AnomalyReport", "LayerComparison", "LayerReport", "OutlierReport", "MemorizationReport"}
    draw = {"filter_figure", "outlier_figure"}  # parts of what is made
    known = {name.split(",")[0] for name in FUNCTIONS} | {kind.__name__ for kind in CLASSES}
    assert known >= {*lightning_anomaly.__all__} - made - draw
