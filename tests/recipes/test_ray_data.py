"""A search with real Ray: two workers report what one process does, and one that dies loses nothing."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lightning_anomaly import OutlierDetector
from lightning_anomaly.images import FolderImages

ray = pytest.importorskip("ray")

from pyarrow.fs import LocalFileSystem  # noqa: E402

from recipes.ray_data import Scorer, search  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray's own


class DiesOnce(nn.Sequential):
    """A network that ends its process in the second block, unless another one did."""

    mark: str

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.mark and len([*Path(self.mark).parent.glob("*.parquet")]) and not os.path.exists(self.mark):
            Path(self.mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(images)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RAY_worker_niceness", "0")  # or a busy machine starves them
    ray.cloudpickle.register_pickle_by_value(__import__(__name__))
    ray.init(num_cpus=3, include_dashboard=False)
    yield
    ray.shutdown()


def test_two_workers_report_what_one_process_does_and_lose_nothing(tmp_path: Path, workers: None) -> None:
    generator, output = np.random.default_rng(0), tmp_path / "output"
    for part, count in (("reference", 60), ("photos", 20)):
        for label, level in (("dark", 60), ("light", 190)):
            (tmp_path / part / label).mkdir(parents=True)
            for place in range(count):
                pixels = generator.normal(level, 30, (16, 16, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).resize((64, 64)).save(tmp_path / part / label / f"{place:02}.png")
    photos = tmp_path / "photos"
    for place in range(8):  # as many as a block has
        (photos / f"dark/broken{place}.png").write_bytes(b"no image")
    (photos / "dark/notes.txt").write_text("no image")
    shutil.copy(photos / "dark/03.png", photos / "light/99.png")  # a copy in another block
    for place in range(10):  # so many that some are significant
        Image.fromarray(np.full((64, 64, 3), 25 * place, np.uint8)).save(photos / f"light/flat{place}.png")
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 5)
    model = DiesOnce(*layers)
    model.mark = ""
    output.mkdir()
    OutlierDetector(model).fit(FolderImages(tmp_path / "reference")).save(output / "detector.pt")
    expected = OutlierDetector.load(output / "detector.pt", model).search(FolderImages(photos))

    first = sorted(map(str, photos.rglob("*.png")))[:8]  # of a search that was interrupted
    labels = {"class": np.array(["dark"] * 8), "split": np.array([""] * 8)}
    Scorer(model, LocalFileSystem(), output)({"path": np.array(first), **labels})
    (before,) = output.glob("*.parquet")
    written = before.stat().st_mtime_ns
    model.mark = str(output / "died")
    report = search(str(photos), model, output, block_size=8)
    assert (output / "died").exists()
    assert before.stat().st_mtime_ns == written
    assert [name.removeprefix(f"{photos}/") for name in report.samples["name"]] == [*expected.samples["name"]]
    for name in ("scores", "p_values", "look_scores", "content_scores", "label_scores"):
        torch.testing.assert_close(getattr(report, name), getattr(expected, name), rtol=1e-5, atol=1e-5, equal_nan=True)
    assert report.significant == expected.significant != []
    assert [*(report.samples["error"] != "")] == [*(expected.samples["error"] != "")]
    assert (expected.samples["error"] != "").any()
    assert [group[:2] for group in report.duplicates] == [group[:2] for group in expected.duplicates] != []
    assert [*report.samples["class"]] == [*expected.samples["class"]]
