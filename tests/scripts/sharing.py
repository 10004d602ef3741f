"""Analyses of the same maps by one process and by several, each of which has a part of the samples.

`python sharing.py FOLDER` leaves `SCENARIO-PROCESSES-RANK.json` for each process, see `forked.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from forked import LIMIT, Outcome, run_forked
from torch import Tensor, nn

from lightning_anomaly import AnalysisSettings
from lightning_anomaly.analysis import analyze_maps
from lightning_anomaly.capture.hooks import MapCapture
from lightning_anomaly.capture.maps import LayerMaps
from lightning_anomaly.report.pictures import take_pictures
from lightning_anomaly.sharing.together import Wanted, analyse_together

SETTINGS = AnalysisSettings(n_init=3, max_components=3, rare_fraction=0.05, max_map_side=3)
NOTES = {"from": "the caller"}
SAMPLES = 61


def outputs(samples: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """What layers give for so many samples `(N, F, ...)`: some have few filters, some dead or not finite ones."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"wide": (7, 5, 5), "flat": (4,), "narrow": (2, 3, 3), "one": (1, 2, 2), "late": (5, 2, 3)}
    found = {name: torch.randn(samples, *shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}
    for values in found.values():
        values[3] *= 9  # an outlier of every filter
    found["wide"][:, 2] = 0
    found["late"][5, 1] = torch.nan
    found["late"][9, 4] = torch.inf
    return found


def captured(outputs: dict[str, Tensor]) -> dict[str, LayerMaps]:
    layers = {name: nn.Identity() for name in outputs}
    capture = MapCapture(dict(layers), rectify=False, max_map_side=SETTINGS.max_map_side)
    for parts in zip(*(torch.split(values, 4) for values in outputs.values()), strict=True):
        with capture:
            for layer, part in zip(layers.values(), parts, strict=True):
                layer(part)
    return capture.maps


def dealt(counts: list[int]) -> list[list[int]]:
    """Which samples each process has: they are dealt out one by one, to those that have not got all of theirs."""
    own: list[list[int]] = [[] for _ in counts]
    for turn in range(max(counts)):
        for rank, count in enumerate(counts):
            if turn < count:
                own[rank].append(sum(map(len, own)))
    return own


def analyse(counts: list[int], wanted: bool, dtype: torch.dtype, limit: int, rank: int, world: int) -> Outcome:
    """Whether the report is that of one process, and so what is shown."""
    dist.init_process_group("gloo", rank=rank, world_size=world, timeout=timedelta(seconds=LIMIT))
    everything = outputs(sum(counts), dtype)
    images = torch.rand(sum(counts), 3, 8, 8, generator=torch.Generator().manual_seed(1))
    own = dealt(counts)[rank]
    maps = captured({name: values[own] for name, values in everything.items()})
    want = Wanted(wanted, wanted) if rank == 0 else Wanted()
    found = analyse_together(maps, images[own], SETTINGS, NOTES, limit=limit, wanted=want)
    left = sum(len(layer.batches) + len(layer.statistics) for layer in maps.values())

    kept = min(limit, sum(counts))
    whole = captured({name: values[:kept] for name, values in everything.items()})
    expected = analyze_maps(whole, SETTINGS, NOTES)
    reports = found.report.to_dict(), expected.to_dict()
    for report in reports if kept < sum(counts) else []:
        for layer in report["layers"].values():  # which is that of all samples seen
            layer["sparsity"] = None
    if rank:
        for layer in reports[1]["layers"].values():
            layer["points"] = layer["labels"] = [[] for _ in layer["verdicts"]]
    outcome = {
        "same": repr(reports[0]) == repr(reports[1]),  # nan is nan
        "notes": list(found.report.notes),
        "left": left,
        "images": found.images is not None and torch.equal(found.images, images[:kept]),
        "pictures": _same_pictures(found.pictures, take_pictures(expected.layers, whole, images[:kept])),
    }
    dist.destroy_process_group()
    return outcome


def _same_pictures(found: Any, expected: Any) -> bool:
    if found is None or set(found.maps) != set(expected.maps):
        return False
    fields = ("samples", "maps", "most", "least")
    return torch.equal(found.images, expected.images) and all(
        torch.equal(getattr(found.maps[name], field), getattr(kept, field))
        for name, kept in expected.maps.items()
        for field in fields
    )


def problem(rank: int, world: int) -> Outcome:
    """Process 1 could not take the maps of one layer, and those of another are of another size there."""
    dist.init_process_group("gloo", rank=rank, world_size=world, timeout=timedelta(seconds=LIMIT))
    own = {name: values[rank::world] for name, values in outputs(SAMPLES + 1).items()}
    if rank == 1:
        own["late"] = own["late"][:, :, :1]
    maps = captured(own)
    if rank == 1:
        maps["wide"].problem = "it is out of order"
    found = analyse_together(maps, None, SETTINGS, {}, limit=SAMPLES + 1, wanted=Wanted(True, True))
    dist.destroy_process_group()
    return {"notes": found.report.notes, "layers": list(found.report.layers), "images": found.images is None}


SCENARIOS: dict[str, tuple[int, Callable[[int, int], Outcome]]] = {
    "even": (2, partial(analyse, [32, 32], True, torch.float32, 100)),
    "seen only": (2, partial(analyse, [32, 32], False, torch.float32, 64)),
    "cut": (2, partial(analyse, [31, 31], True, torch.float32, SAMPLES)),
    "uneven": (2, partial(analyse, [40, 21], True, torch.float64, 100)),
    "none in the first": (2, partial(analyse, [0, 64], True, torch.float32, 100)),
    "three": (3, partial(analyse, [21, 20, 20], True, torch.float32, 100)),
    "more than filters": (6, partial(analyse, [20, 11, 10, 0, 10, 10], True, torch.float32, 100)),
    "problem": (2, problem),
}


def main(folder: Path, names: list[str]) -> None:
    analyze_maps(captured(outputs(20)), SETTINGS)  # what takes time but once is paid before the processes are forked
    run_forked(folder, [(name, SCENARIOS[name][1], SCENARIOS[name][0]) for name in names or SCENARIOS])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
