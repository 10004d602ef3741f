"""How large is the filter browser, how fast is it written and drawn? `python -m recipes.benchmarks.browser`, a minute.

The reports are made up, with points and maps that compress as little as any could: half of each map's values are zero
behind a ReLU, and the other half are noise. Beside the times on the wall stand those of the processors, which do not
depend on what else the machine does. Opening needs a Chromium (Debian: `apt-get install chromium`) and Playwright, and
the processes' memory is read as Linux tells it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from playwright.sync_api import Page
from torch import nn
from torch.nn import functional
from torchvision.models import resnet50

from lightning_anomaly import AnomalyReport
from lightning_anomaly.capture.maps import LayerMaps
from lightning_anomaly.report import LayerReport
from lightning_anomaly.report.pictures import KeptMaps, Pictures, probe_images, take_pictures
from lightning_anomaly.tables import text_table
from recipes.common.networks import build
from recipes.common.options import one_sentence_errors
from recipes.pictures.browser import open_page

_KEPT_VALUES = 64_000_000  # what an analysis keeps of all maps
_DRAWN = """() => new Promise(done => {
    const cells = [...document.querySelectorAll("canvas.cells")];
    const look = () => cells.every(canvas => canvas.style.height) ? done() : requestAnimationFrame(look);
    look();
})"""
_VIEWS = ("#/filters?sort=clearest", "#/filter/{layer}/0", "#/samples", "#/sample/3")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=("alexnet", "resnet50"), default=("alexnet", "resnet50"))
    parser.add_argument("--samples", type=int, default=512, help="probe images, default: %(default)s")
    return parser.parse_args(arguments)


def made_up(layers: dict[str, int], samples: int, side: int) -> AnomalyReport:
    """A report of layers with so many filters, maps of 4x4 and smooth images of `side` pixels; 1 in 20 is flagged."""
    generator = torch.Generator().manual_seed(0)
    reports: dict[str, LayerReport] = {}
    kept: dict[str, KeptMaps] = {}
    for name, filters in layers.items():
        outliers = torch.zeros(filters, samples, dtype=torch.bool)
        outliers[::20, :3] = True
        numbers = torch.rand(filters, generator=generator, dtype=torch.float64)
        reports[name] = LayerReport(
            verdicts=tuple("normal" if place % 20 else "anomaly" for place in range(filters)),
            n_components=torch.full((filters,), 4),
            calinski_harabasz=numbers,
            smallest_share=numbers,
            labels=torch.randint(0, 4, (filters, samples), generator=generator),
            points=torch.randn(filters, samples, 2, generator=generator),
            outliers=outliers,
            isolated=torch.zeros_like(outliers),
            explained=numbers,
            sparsity=numbers,
            map_size=(4, 4),
            analysed_size=(4, 4),
        )
        maps = torch.randn(samples, filters, 4, 4, generator=generator).clamp_min(0)
        taken = take_pictures({name: reports[name]}, {name: LayerMaps([maps], samples, (4, 4))}, None)
        room = _KEPT_VALUES // (16 * sum(layers.values()))
        own = taken.maps[name]
        kept[name] = replace(own, samples=own.samples[:, :room], maps=own.maps[:, :room])
    small = torch.rand(samples, 3, side // 4, side // 4, generator=generator)
    images = probe_images(functional.interpolate(small, side, mode="bicubic"))
    return AnomalyReport(reports, samples, pictures=Pictures(images, kept))


def measure(name: str, report: AnomalyReport, page: Page, folder: Path) -> dict[str, float]:
    """Sizes (MB) and times (seconds) of one page; it is opened, and one of each kind of its views is looked at."""
    file = folder / f"{name}.html"
    started, worked = time.perf_counter(), time.process_time()
    report.save_html(file, title=name)
    written, worked = time.perf_counter() - started, time.process_time() - worked
    page.goto("about:blank")
    opening, before = time.perf_counter(), _processes(page)
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-shown]")
    page.evaluate(_DRAWN)
    drawn, after = time.perf_counter() - opening, _processes(page)
    for address in _VIEWS:
        page.evaluate("address => { window.location.hash = address; }", address.format(layer=next(iter(report.layers))))
        page.wait_for_load_state("networkidle")
        page.wait_for_timeout(500)
    return {
        "file (MB)": file.stat().st_size / 1e6,
        "written (s)": written,
        "of a processor (s)": worked,
        "opened and drawn (s)": drawn,
        "of processors (s)": sum(seconds - before.get(process, 0.0) for process, seconds in after.items()),
        "most memory (MB)": max(map(_most_memory, _processes(page))),
    }


def _processes(page: Page) -> dict[int, float]:
    """The processes that show pages, with the processor's time that they took (seconds)."""
    assert page.context.browser is not None
    told = page.context.browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")
    return {process["id"]: process["cpuTime"] for process in told["processInfo"] if process["type"] == "renderer"}


def _most_memory(process: int) -> float:
    """The most that a process ever had in memory (MB)."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def run(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measure, print a table, and return the numbers."""
    networks = {"alexnet": (lambda: build("alexnet", 3, 10), 32), "resnet50": (resnet50, 224)}
    numbers = {}
    with tempfile.TemporaryDirectory() as folder, open_page(1280, 900) as page:
        for name in options.networks:
            make, side = networks[name]
            layers = {layer: m.out_channels for layer, m in make().named_modules() if isinstance(m, nn.Conv2d)}
            report = made_up(layers, options.samples, side)
            numbers[name] = measure(name, report, page, Path(folder))
    heading = ["network", *next(iter(numbers.values()))]
    print(
        text_table([heading, *([name, *(f"{n:.1f}" for n in found.values())] for name, found in numbers.items())], [])
    )
    return numbers


if __name__ == "__main__":
    one_sentence_errors(run, parse)
