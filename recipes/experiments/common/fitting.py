"""How a training goes: from the start, epoch by epoch, and on from there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_anomaly.pruning.mask import FilterMask
from recipes.common.module import Classifier
from recipes.common.networks import build
from recipes.common.options import SILENT, quiet
from recipes.experiments.common.trainings import CONDITIONS, Images, Training

__all__ = ["KeepWeights", "every_epoch", "fit", "further_epochs", "trained", "watched_layers"]


def _mixed_precision() -> torch.autocast:
    """bfloat16 for the steps of a training, where the processor is fast at it; all else stays float32.

    With AVX-512 the larger networks take half the time, without it fifteen times as long.
    """
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.backends.cpu.get_cpu_capability() == "AVX512")


class MixedPrecision(Classifier):
    """Trained in mixed precision where that is fast."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The mean cross-entropy of a batch (nats)."""
        with _mixed_precision():
            return super().training_step(batch, batch_idx)


def _build(training: Training, images: Images) -> nn.Sequential:
    """A training's network, untrained, with the channels last."""
    network = build(
        training.network, images.data.channels, images.data.n_classes, CONDITIONS[training.condition].dropout
    )
    any_module: Any = network  # torch's overloads leave this call out
    any_module.to(memory_format=torch.channels_last)  # pooling is twice as fast
    return network


def fit(training: Training, images: Images, callbacks: list[pl.Callback], *, validate: bool = True) -> Classifier:
    """Train from the start, validating after every epoch or never; the same training gives the same network."""
    quiet()
    pl.seed_everything(training.seed, verbose=False)
    module = MixedPrecision(_build(training, images), training.lr, CONDITIONS[training.condition].decay / training.lr)
    train, val = images.loaders(training)
    trainer = pl.Trainer(
        max_epochs=training.epochs,
        limit_train_batches=-(-training.train_size // training.batch_size),
        limit_val_batches=None if validate else 0,
        callbacks=callbacks,
        accelerator="cpu",  # where the number of threads is one, the same training gives the same network
        num_sanity_val_steps=0,
        inference_mode=False,  # gradients are measured while it validates
        **SILENT,
    )
    trainer.fit(module, train, val)
    return module


def trained(training: Training, images: Images, weights: str | None = None) -> nn.Sequential:
    """The network after the last epoch, in evaluation mode, with the channels last as in training.

    Args:
        training: The training.
        images: Its images.
        weights: A folder that keeps its weights, `KEY.pt`. It is trained if they are not there, and they are kept.
    """
    path = None if weights is None else Path(weights) / f"{training.key}.pt"
    if path is None or not path.is_file():
        network = fit(training, images, [], validate=False).network
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(network.state_dict(), path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
    else:
        network = _build(training, images)
        network.load_state_dict(torch.load(path, weights_only=True))
    assert isinstance(network, nn.Sequential)
    return network.eval()


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


def every_epoch(training: Training, images: Images, weights: str | None) -> Iterator[tuple[int, nn.Sequential]]:
    """The network after every epoch of a training; one network, whose weights change from one to the next.

    Args:
        training: The training.
        images: Its images.
        weights: A folder in which `h1` kept the weights of every epoch; it is trained if they are not there.

    Yields:
        Epochs trained, and the network, with the channels last as in training.
    """
    network = _build(training, images)
    names = [f"{epoch}.pt" for epoch in range(training.epochs)]
    with TemporaryDirectory() as temporary:
        folder = Path(weights or temporary) / training.key
        if not all((folder / name).is_file() for name in names):
            folder = Path(temporary) / training.key
            fit(training, images, [KeepWeights(folder)])
        for epoch, name in enumerate(names, 1):
            network.load_state_dict(torch.load(folder / name, weights_only=True))
            yield epoch, network


def further_epochs(
    training: Training, images: Images, network: nn.Module, epochs: int, mask: FilterMask | None = None
) -> Iterator[int]:
    """Train a network on, in place: a new optimizer, the images in the same order always.

    Args:
        training: The training.
        images: Its images, which are taken as they are, also where the training augments them.
        network: The network; its parameters that need no gradient stay as they are.
        epochs: Epochs.
        mask: Filters that stay masked.

    Yields:
        The number of further epochs, after each of them.
    """
    optimizer = Classifier(
        network, training.lr, CONDITIONS[training.condition].decay / training.lr
    ).configure_optimizers()
    inputs = images.normalised("train").contiguous(memory_format=torch.channels_last)
    labels = images.data.train_labels
    order = torch.Generator().manual_seed(training.seed)
    for epoch in range(1, epochs + 1):
        network.train()
        for batch in torch.split(torch.randperm(len(labels), generator=order), training.batch_size):
            optimizer.zero_grad()
            with _mixed_precision():
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
