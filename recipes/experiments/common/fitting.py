"""How a cell is trained: from the start, epoch by epoch, and on from there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_anomaly.pruning.mask import FilterMask
from recipes.common.module import Classifier
from recipes.common.networks import build
from recipes.common.options import SILENT, quiet
from recipes.experiments.common.trainings import CONDITIONS, Cell, Images

__all__ = ["KeepWeights", "every_epoch", "fit", "further_epochs", "watched_layers"]


class MixedPrecision(Classifier):
    """Trained in bfloat16 mixed precision, which halves the time of the larger networks; all else stays float32."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The mean cross-entropy of a batch (nats)."""
        with torch.autocast("cpu", torch.bfloat16):
            return super().training_step(batch, batch_idx)


def _build(cell: Cell, images: Images) -> nn.Sequential:
    """A cell's network, untrained, with the channels last."""
    network = build(cell.network, images.data.channels, images.data.n_classes, CONDITIONS[cell.condition].dropout)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # pooling is twice as fast
    return network


def fit(cell: Cell, images: Images, callbacks: list[pl.Callback]) -> Classifier:
    """Train a cell from the start; the same cell gives the same network."""
    quiet()
    pl.seed_everything(cell.seed, verbose=False)
    module = MixedPrecision(_build(cell, images), cell.lr, CONDITIONS[cell.condition].decay / cell.lr)
    train, val = images.loaders(cell)
    trainer = pl.Trainer(
        max_epochs=cell.epochs,
        limit_train_batches=-(-cell.train_size // cell.batch_size),
        callbacks=callbacks,
        accelerator="cpu",  # where the number of threads is one, the same cell gives the same network
        num_sanity_val_steps=0,
        inference_mode=False,  # gradients are measured while it validates
        **SILENT,
    )
    trainer.fit(module, train, val)
    return module


class KeepWeights(pl.Callback):
    """Writes the network's state to a folder after every epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write `EPOCH.pt`, whole or not at all."""
        path = self.folder / f"{trainer.current_epoch}.pt"
        torch.save(pl_module.network.state_dict(), path.with_suffix(".part"))  # type: ignore[union-attr]
        path.with_suffix(".part").replace(path)


def every_epoch(cell: Cell, images: Images, weights: str | None) -> Iterator[tuple[int, nn.Sequential]]:
    """A cell's network after every epoch; one network, whose weights change from one to the next.

    Args:
        cell: The cell.
        images: Its images.
        weights: A folder in which `h1` kept the weights of every epoch; the cell is trained if they are not there.

    Yields:
        Epochs trained, and the network, with the channels last as in training.
    """
    network = _build(cell, images)
    names = [f"{epoch}.pt" for epoch in range(cell.epochs)]
    with TemporaryDirectory() as temporary:
        folder = Path(weights or temporary) / cell.key
        if not all((folder / name).is_file() for name in names):
            folder = Path(temporary) / cell.key
            fit(cell, images, [KeepWeights(folder)])
        for epoch, name in enumerate(names, 1):
            network.load_state_dict(torch.load(folder / name, weights_only=True))
            yield epoch, network


def further_epochs(
    cell: Cell, images: Images, network: nn.Module, epochs: int, mask: FilterMask | None = None
) -> Iterator[int]:
    """Train a cell's network on, in place: mixed precision and a new optimizer, the images in the same order always.

    Args:
        cell: The cell.
        images: Its images, which are taken as they are, also where the cell augments them.
        network: The network; its parameters that need no gradient stay as they are.
        epochs: Epochs.
        mask: Filters that stay masked.

    Yields:
        The number of further epochs, after each of them.
    """
    optimizer = Classifier(network, cell.lr, CONDITIONS[cell.condition].decay / cell.lr).configure_optimizers()
    inputs = images.normalised("train").contiguous(memory_format=torch.channels_last)
    labels = images.data.train_labels
    order = torch.Generator().manual_seed(cell.seed)
    for epoch in range(1, epochs + 1):
        network.train()
        for batch in torch.split(torch.randperm(len(labels), generator=order), cell.batch_size):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = functional.cross_entropy(network(inputs[batch]), labels[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            if mask is not None:
                mask.keep_gradients()
            optimizer.step()
            if mask is not None:
                mask.keep([optimizer])
        yield epoch


def watched_layers(network: nn.Sequential, prefix: str = "network.") -> dict[str, str]:
    """What is analysed, each with its convolution: the BatchNorm behind it if there is one, else itself."""
    places = [place for place, layer in enumerate(network) if isinstance(layer, nn.Conv2d)]
    normed = [isinstance(network[place + 1], nn.BatchNorm2d) for place in places]
    return {f"{prefix}{place + norm}": f"{prefix}{place}" for place, norm in zip(places, normed, strict=True)}
