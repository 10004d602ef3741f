"""Made-up reports of outliers, and how many images each of their lists has."""

from dataclasses import replace
from typing import Any

import torch

from lightning_anomaly import OutlierReport
from lightning_anomaly.outliers.duplicates import DuplicateGroup
from lightning_anomaly.outliers.outlier_report import mark_copies
from lightning_anomaly.scores.sample_table import sample_table


def made_up(count: int = 300, reason: str = "reason {}", **given: Any) -> OutlierReport:
    """Make a report with random scores, of which the largest 10% have small p-values; content has no reasons."""
    generator = torch.Generator().manual_seed(0)
    look, content = 30 * torch.rand(2, count, generator=generator, dtype=torch.float64)
    p_values = torch.where(look > 29, 1, torch.where(look > 27, 4, 1400)).double() / 2001
    columns = {
        **{"score": torch.maximum(look, content), "look_score": look, "content_score": content},
        **dict.fromkeys(("p_value", "look_p_value", "content_p_value"), p_values),
        **{"look_reason": [reason.format(place) for place in range(count)], "content_reason": [""] * count},
    }
    facts: dict[str, Any] = {"n_reference": 4000, "n_calibration": 2000, "false_discovery_rate": 0.1}
    return OutlierReport(sample_table(columns, range(count)), **facts | given)


def with_columns(report: OutlierReport, **columns: Any) -> OutlierReport:
    """Replace columns of a report's samples; those of copies are of its duplicates, and paths of its folder."""
    known = {name: [*values] for name, values in report.samples.items() if name not in ("name", "path", "also_in")}
    if (report.samples["path"] != "").any():
        known["name"] = [*report.samples["name"]]
    samples = sample_table(known | columns, report.samples.index, report.folder)
    return replace(report, samples=mark_copies(samples, report.duplicates))


def planted() -> OutlierReport:
    """5,000 images with 60 planted things: 20 filed elsewhere, 20 copies, 4 of them in two classes, and more."""
    broken, filed = range(4000, 4005), range(100, 120)
    report = made_up(5000, n_calibration=0)
    scores = {name: report.samples[name].to_numpy().copy() for name in ("score", "look_score")}
    for values in scores.values():
        values[broken] = torch.inf
    report = replace(
        report,
        duplicates_left_out="Some were not sought.",
        duplicates=[
            *(DuplicateGroup([i, i + 1], True, []) for i in range(200, 218, 2)),
            DuplicateGroup([218, 300], True, []),
            *(
                DuplicateGroup([i, i + 1, i + 2], False, ["old.png"], [1.0, 0.97, 0.96, 0.9])
                for i in range(400, 412, 3)
            ),
        ],
        skipped=sample_table({"name": [f"{name}.txt" for name in "abc"], "error": ["not an image"] * 3}, range(3)),
    )
    faults = {7: "nearly black", 9: "nearly black; of one shade", 11: "of one shade"}
    return with_columns(
        report,
        **scores,
        name=[f"{place // 100}/{place}.png" for place in range(5000)],
        split=["val" if 405 <= place < 420 else "train" for place in range(5000)],
        label_score=[place - 99.5 if place in filed else torch.nan for place in range(5000)],
        label_p_value=report.p_values,
        label_reason=["filed under a, looks like b" if place in filed else "" for place in range(5000)],
        looks_like=["b"] * 5000,
        clear=[place in range(110, 120) for place in range(5000)],
        nearest=[([0, 2, 3], [4, 5])] * 5000,
        faults=[faults.get(place, "") for place in range(5000)],
        error=["OSError: broken" if place in broken else "" for place in range(5000)],
        **{"class": ["c" if place in (200, 203) else "a" for place in range(5000)]},
    )


ROWS = {"label": 20, "twice": 4, "identical": 20, "near": 12, "unreadable": 5, "content": 100, "look": 100, "faults": 3}
ROWS["skipped"] = 3
COUNTS = ROWS | {"identical": 10, "near": 12}  # of copies, those that can go
