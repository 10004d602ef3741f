"""Search a dataset in several processes with `Trainer.predict`, under any strategy: `python predict.py`."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_anomaly import OutlierDetector


class Scorer(pl.LightningModule):
    """Load a detector in each process, and score batches of images and their positions."""

    def __init__(self, network: nn.Module, file: Path) -> None:
        super().__init__()
        self.network, self.file = network, file

    def setup(self, stage: str) -> None:
        self.detector = OutlierDetector.load(self.file, self.network)

    def predict_step(self, batch: Any) -> dict[str, Any]:
        return self.detector.search_part(batch[0], progress=False) | {"position": batch[1].numpy()}


class Writer(BasePredictionWriter):
    """Write `share_RANK.pt` beside the detector; the first process joins the shares."""

    def write_on_epoch_end(self, trainer: pl.Trainer, pl_module: Any, predictions: Any, batch_indices: Any) -> None:
        files = [pl_module.file.with_name(f"share_{rank}.pt") for rank in range(trainer.world_size)]
        torch.save(predictions, files[trainer.global_rank])
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            parts = [part for file in files for part in torch.load(file, weights_only=False)]
            pl_module.detector.join_parts(parts).save_html("outliers.html")


if __name__ == "__main__":
    file, images = Path("detector.pt"), torch.tensor(load_digits().images[:, None] / 16).float()
    torch.manual_seed(0)  # random weights, in place of your trained network
    network = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 10))
    if not file.exists():  # Lightning starts the other processes when the first one calls `predict`
        OutlierDetector(network).fit(images[:900]).save(file)
    data = TensorDataset(images[900:], torch.arange(len(images) - 900))
    trainer = pl.Trainer(accelerator="cpu", devices=2, callbacks=[Writer("epoch")], logger=False)
    trainer.predict(Scorer(network, file), DataLoader(data, 64), return_predictions=False)
