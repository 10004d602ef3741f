"""One training of a cell, watched: what the callback reports and what others could have told, epoch by epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_anomaly import AnalysisSettings, AnomalyFilterCallback
from lightning_anomaly.callbacks._probe import isolated_random_state, training_batches
from lightning_anomaly.capture.hooks import evaluating
from lightning_anomaly.pruning.mask import FilterMask
from recipes.experiments.cells import CONDITIONS, Cell, Images, prepare
from recipes.experiments.statistics import gradient_disparity, layer_statistics, weight_statistics
from recipes.module import Classifier
from recipes.networks import build
from recipes.options import SILENT, quiet

__all__ = [
    "READINGS",
    "evaluate",
    "every_epoch",
    "fit",
    "further_epochs",
    "logits_of",
    "watch",
    "watched_layers",
]

# What is read from every epoch: the default, its variants, and the literal reading of the paper.
READINGS: dict[str, dict[str, Any]] = {
    "val": {},
    "val_unrectified": {"rectify": False},
    "val_paper": AnalysisSettings.paper().to_dict(),
    "train": {"probe": "train"},
}
# What is kept of the statistics of the others than the default: all of them would be megabytes.
_KEPT = {"val_unrectified": ("count", "live"), "val_paper": ("count", "live"), "train": ("count", "live", "separation")}
_BATCHES = 5  # of the gradient disparity
_FIXED = 1024  # training images whose predictions are compared from epoch to epoch


def logits_of(network: nn.Module, images: Tensor) -> Tensor:
    """Logits `(N, C)` of images in evaluation mode, without gradients."""
    with evaluating(network), torch.no_grad():
        return torch.cat([network(batch) for batch in torch.split(images, 256)])


def evaluate(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy (nats) and accuracy."""
    logits = logits_of(network, images)
    accuracy = (logits.argmax(1) == labels).double().mean().item()
    return functional.cross_entropy(logits.double(), labels).item(), accuracy


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


class Measure(pl.Callback):
    """Writes down every epoch; stands behind the watchers whose reports it reads.

    Args:
        cell: The cell.
        images: Its images.
        watchers: The callbacks, by reading.
        convolutions: For each layer that they watch, the convolution that its maps come from.
    """

    def __init__(
        self, cell: Cell, images: Images, watchers: dict[str, AnomalyFilterCallback], convolutions: dict[str, str]
    ) -> None:
        self.watchers, self.convolutions = watchers, convolutions
        self.epochs: list[dict[str, Any]] = []
        self.test = images.normalised("test"), images.data.test_labels
        # An epoch of a larger pool does not see each image, so predictions are compared on a fixed part of them.
        self.fixed = images.normalised("train", _FIXED), images.data.train_labels[:_FIXED]
        self.labels = {"val": images.data.val_labels[: cell.probe_size]}
        self.batch_size, self.probe_size = cell.batch_size, cell.probe_size
        self.predictions: Tensor | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What the network predicts before the first step."""
        self.predictions = logits_of(pl_module, self.fixed[0]).argmax(1)
        seed = self.watchers["train"].settings.seed
        with isolated_random_state(seed):  # the collation of an augmented batch draws from it
            batches = list(training_batches(trainer.train_dataloader, self.probe_size, seed))
        self.labels["train"] = torch.cat([labels for _, labels in batches])

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the epoch that has just been validated."""
        logits = logits_of(pl_module, self.fixed[0])
        predictions = logits.argmax(1)
        assert self.predictions is not None
        changed = (predictions != self.predictions).double().mean().item()
        self.predictions = predictions
        test_loss, test_accuracy = evaluate(pl_module, *self.test)
        self.epochs.append(
            {
                **{name: trainer.callback_metrics[name].item() for name in ("val_loss", "val_acc")},
                "train_loss": functional.cross_entropy(logits, self.fixed[1]).item(),
                "train_acc": (predictions == self.fixed[1]).double().mean().item(),
                "test_loss": test_loss,
                "test_acc": test_accuracy,
                "changed": changed,
                "disparity": self._disparity(pl_module),
                "layers": {name: self._layers(name, pl_module) for name in self.watchers},
            }
        )

    def _layers(self, reading: str, pl_module: pl.LightningModule) -> dict[str, dict[str, float]]:
        watcher = self.watchers[reading]
        assert watcher.report is not None
        labels = self.labels[watcher.probe]
        found = {}
        for name, layer in watcher.report.layers.items():
            statistics = layer_statistics(layer, labels)
            if reading == "val":
                convolution = pl_module.get_submodule(self.convolutions[name])
                statistics |= weight_statistics(convolution.get_parameter("weight").detach())
            kept = _KEPT.get(reading, statistics)
            found[name.removeprefix("network.")] = {key: statistics[key] for key in kept}
        return found

    def _disparity(self, network: nn.Module) -> float:
        images, labels = self.fixed
        gradients = []
        with evaluating(network), torch.enable_grad():
            for i in range(_BATCHES):
                batch = slice(i * self.batch_size, (i + 1) * self.batch_size)
                loss = functional.cross_entropy(network(images[batch]), labels[batch])
                parts = torch.autograd.grad(loss, [p for p in network.parameters() if p.requires_grad])
                gradients.append(torch.cat([part.flatten() for part in parts]))
        return gradient_disparity(gradients)


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


def watch(cell: Cell, root: str | None = None, weights: str | None = None) -> dict[str, Any]:
    """Train a cell and measure every epoch.

    Args:
        cell: What to train.
        root: See `prepare`.
        weights: Folder to keep every epoch's weights in; None keeps none.

    Returns:
        The cell's settings, and `epochs`: a dict for each.
    """
    images = prepare(cell, root)
    layers = watched_layers(build(cell.network, images.data.channels, images.data.n_classes))
    watchers = {
        name: AnomalyFilterCallback(
            layers=list(layers),
            probe_size=cell.probe_size,
            log_key_prefix=name,
            log_figures=False,
            on_error="raise",
            settings=AnalysisSettings(**settings),
        )
        for name, settings in READINGS.items()
    }
    measure = Measure(cell, images, watchers, layers)
    keep = [KeepWeights(Path(weights) / cell.key)] if weights else []
    fit(cell, images, [*watchers.values(), measure, *keep])
    return {"cell": asdict(cell), "epochs": measure.epochs}
