"""Made-up reports of outliers, and how many images each of their lists has."""

from dataclasses import replace
from typing import Any

import torch

from lightning_anomaly import OutlierReport
from lightning_anomaly.outliers.duplicates import DuplicateGroup
from lightning_anomaly.scores.views import SampleView


def made_up(count: int = 300, reason: str = "reason {}", **given: Any) -> OutlierReport:
    """Make a report with random scores, of which the largest 10% have small p-values; content has no reasons."""
    generator = torch.Generator().manual_seed(0)
    look, content = 30 * torch.rand(2, count, generator=generator, dtype=torch.float64)
    p_values = torch.where(look > 29, 1, torch.where(look > 27, 4, 1400)).double() / 2001
    views = {"look": SampleView(look, tuple(reason.format(place) for place in range(count)))}
    views["content"] = SampleView(content, ("",) * count)
    facts: dict[str, Any] = {
        "scores": torch.maximum(look, content),
        "p_values": p_values,
        "views": views,
        "view_p_values": dict.fromkeys(views, p_values),
        "n_reference": 4000,
        "n_calibration": 2000,
        "false_discovery_rate": 0.1,
    }
    return OutlierReport(**facts | given)


def planted() -> OutlierReport:
    """5,000 images with 60 planted things: 20 filed elsewhere, 20 copies, 4 of them in two classes, and more."""
    report = made_up(5000, n_calibration=0)
    filed = torch.full((5000,), torch.nan)
    filed[100:120] = torch.arange(20) + 0.5
    label = SampleView(filed, tuple("filed under a, looks like b" if 100 <= i < 120 else "" for i in range(5000)))
    report.scores[4000:4005] = report.views["look"].scores[4000:4005] = torch.inf
    return replace(
        report,
        views={**report.views, "label": label},
        view_p_values={**report.view_p_values, "label": report.p_values},
        names=[f"{place // 100}/{place}.png" for place in range(5000)],
        labels=["c" if place in (200, 203) else "a" for place in range(5000)],
        splits=["val" if 405 <= place < 420 else "train" for place in range(5000)],
        duplicates_left_out="Some were not sought.",
        looks_like=["b"] * 5000,
        faults={"nearly black": [7, 9], "of one shade": [9, 11]},
        nearest=torch.tensor([[[0, 2, 3], [4, 5, -1]]]).repeat(5000, 1, 1),
        duplicates=[
            *(DuplicateGroup([i, i + 1], True, []) for i in range(200, 218, 2)),
            DuplicateGroup([218, 300], True, []),
            *(
                DuplicateGroup([i, i + 1, i + 2], False, ["old.png"], [1.0, 0.97, 0.96, 0.9])
                for i in range(400, 412, 3)
            ),
        ],
        unreadable=dict.fromkeys(range(4000, 4005), "OSError: broken"),
        skipped={f"{name}.txt": "not an image" for name in "abc"},
    )


ROWS = {"look": 100, "content": 100, "label": 20, "twice": 4, "identical": 20, "near": 12, "faults": 3, "unreadable": 5}
ROWS["skipped"] = 3
COUNTS = ROWS | {"twice": 2, "identical": 10, "near": 12}  # of copies, those that can go
