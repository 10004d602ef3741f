"""Score a dataset with Ray Data, on all machines of a cluster: `python ray_data.py` (needs the extra `ray`).

The detector is fitted and saved once. Each worker loads it and scores batches.
"""

from pathlib import Path

import numpy as np
import ray
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightning_anomaly import OutlierDetector

Batch = dict[str, np.ndarray]


class Scorer:
    """Load a detector in each worker, and score batches."""

    def __init__(self, network: nn.Module, file: Path) -> None:
        self.detector = OutlierDetector.load(file, network)

    def __call__(self, batch: Batch) -> Batch:
        """Add the scores `(n,)` of images `(n, C, H, W)`, and drop the images."""
        scores = self.detector.score(torch.tensor(batch.pop("image")))
        return {**batch, "score": scores.numpy()}


def score(network: nn.Module, file: Path, images: Tensor, workers: int) -> list[dict[str, float]]:
    """Return the position and the score of each of the images `(N, C, H, W)`, as one row per image."""
    rows = [{"position": position, "image": image} for position, image in enumerate(images.numpy())]
    pool = ray.data.ActorPoolStrategy(size=workers)
    data = ray.data.from_items(rows)  # in place of `ray.data.read_images(folder)` and the like
    scored = data.map_batches(Scorer, fn_constructor_args=(network, file), compute=pool, batch_size=64)
    return sorted(scored.iter_rows(), key=lambda row: row["position"])


if __name__ == "__main__":
    file, images = Path("detector.pt").absolute(), torch.tensor(load_digits().images[:, None] / 16).float()
    torch.manual_seed(0)  # random weights, in place of your trained network
    network = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 10))
    OutlierDetector(network).fit(images[:900]).save(file)
    rows = score(network, file, images[900:], workers=2)
    torch.save(torch.tensor([row["score"] for row in rows], dtype=torch.float64), "scores.pt")
