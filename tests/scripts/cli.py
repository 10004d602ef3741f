"""A LightningCLI over the small module: `python cli.py [fit] --config FILE` prints what the callback was given."""

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


def main() -> None:
    run = "fit" in sys.argv
    cli = LightningCLI(Small, Data, save_config_callback=None, run=run)
    config = cli.config["fit"] if run else cli.config
    for index, callback in enumerate(cli.trainer.callbacks):
        if isinstance(callback, AnomalyFilterCallback):
            given = config["trainer"]["callbacks"][index]["init_args"].as_dict()
            made = {name: getattr(callback, name) for name in given} | {"settings": callback.settings.to_dict()}
            assert all(made[name] == value for name, value in given.items() if name != "settings"), made
            print("given", json.dumps({**made, "history": len(callback.history)}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
