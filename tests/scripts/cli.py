"""A LightningCLI over the small module: `python cli.py fit --config FILE`; what the callback was given is printed."""

import json
import sys
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningCLI
from small import Small, loader

from lightning_anomaly import AnomalyFilterCallback


class Data(LightningDataModule):
    def train_dataloader(self) -> Any:
        return loader()

    def val_dataloader(self) -> Any:
        return loader()


if __name__ == "__main__":
    torch.set_num_threads(1)
    cli = LightningCLI(Small, Data, save_config_callback=None, args=sys.argv[1:])
    for callback in cli.trainer.callbacks:
        if isinstance(callback, AnomalyFilterCallback):
            given = {
                k: v for k, v in vars(callback).items() if not k.startswith("_") and k not in ("settings", "report")
            }
            print("given", json.dumps({**callback.settings.to_dict(), **given, "history": len(callback.history)}))
