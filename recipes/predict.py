"""Score a dataset in several processes with `Trainer.predict`, under any strategy: `python predict.py`.

The detector is fitted and saved once. Each process loads it, scores its share of the images and writes a file.
"""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_anomaly import OutlierDetector


class Scorer(pl.LightningModule):
    """Load a detector in each process, and score batches."""

    def __init__(self, network: nn.Module, file: Path) -> None:
        super().__init__()
        self.network, self.file = network, file

    def setup(self, stage: str) -> None:
        self.detector = OutlierDetector.load(self.file, self.network)

    def predict_step(self, batch: Sequence[Tensor]) -> Tensor:
        return self.detector.score(batch[0])


class Writer(BasePredictionWriter):
    """Write `scores_RANK.pt` beside the detector: the scores, and the positions of the images in the dataset."""

    def write_on_epoch_end(self, trainer: pl.Trainer, pl_module: Any, predictions: Any, batch_indices: Any) -> None:
        scores = {"positions": torch.tensor([*chain(*batch_indices[0])]), "scores": torch.cat(predictions)}
        torch.save(scores, pl_module.file.with_name(f"scores_{trainer.global_rank}.pt"))


if __name__ == "__main__":
    file, images = Path("detector.pt"), torch.tensor(load_digits().images[:, None] / 16).float()
    torch.manual_seed(0)  # random weights, in place of your trained network
    network = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 10))
    if not file.exists():  # Lightning starts the other processes when the first one calls `predict`
        OutlierDetector(network).fit(images[:900]).save(file)
    trainer = pl.Trainer(accelerator="cpu", devices=2, callbacks=[Writer("epoch")], logger=False)
    trainer.predict(Scorer(network, file), DataLoader(TensorDataset(images[900:]), 64), return_predictions=False)
