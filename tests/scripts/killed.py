"""Trains, and is killed in the middle of writing its third checkpoint: `python killed.py FOLDER`."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from network import images
from small import loader, module, quiet
from torch.utils.data import ConcatDataset, DataLoader

from lightning_anomaly import AnomalyFilterCallback


class DiesWriting(TorchCheckpointIO):
    """Leaves half a file at the third save."""

    saves = 0

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        super().save_checkpoint(checkpoint, path, storage_options)
        self.saves += 1
        if self.saves == 3:
            whole = Path(path).read_bytes()
            Path(path).write_bytes(whole[: len(whole) // 2])
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    keep = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    callbacks = [AnomalyFilterCallback(probe_size=90, log_figures=False), keep]
    train = DataLoader(ConcatDataset([images(16)] * 6), batch_size=16)
    trainer = quiet(max_epochs=5, callbacks=callbacks, enable_checkpointing=True, plugins=[DiesWriting()])
    trainer.fit(module(), train, loader())
