"""A run: its images, its training epoch by epoch, and further training of masked networks."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_anomaly.pruning import FilterMask
from recipes.common.damage import with_label_noise
from recipes.common.data import OTHER_DATA, ImageData, load_images, make_loaders, mean_and_std, normalize, split
from recipes.common.module import Classifier, evaluate_parts
from recipes.common.networks import build
from recipes.common.options import SILENT, quiet
from recipes.experiments.spec import CONDITIONS, Training

# Whether networks are trained in bfloat16; they are measured in float32. With AVX-512 the larger networks take half the
# time, without it fifteen times as long.
_MIXED = torch.backends.cpu.get_cpu_capability() == "AVX512"


@dataclass(frozen=True, eq=False)
class Images:
    """The images of a run, with wrong labels, and mean and standard deviation `(C,)` of those of training."""

    data: ImageData
    mean: Tensor
    std: Tensor
    features: dict[str, Tensor] = field(default_factory=dict)  # pretrained weights of the layers before the linear ones

    def part(self, name: str, count: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the first `count` images of "train", "val" or "test", normalized, and their labels; None takes all."""
        images = normalize(getattr(self.data, f"{name}_images")[:count], self.mean, self.std)
        labels: Tensor = getattr(self.data, f"{name}_labels")[:count]
        return images.contiguous(memory_format=torch.channels_last), labels  # pooling is twice as fast


def prepare(training: Training, root: str | None = None) -> Images:
    """Load, split and mislabel the images of a run.

    All conditions of a seed have the same validation and test images, and the plain run's training images are the first
    of a larger pool's. `root` is the folder of the data, see `load_images`; the digits need none.
    """
    condition = CONDITIONS[training.condition]
    data = load_images(training.data, root)
    data = split(data, training.train_size * condition.pool, training.val_size, training.seed)
    labels, _ = with_label_noise(data.train_labels, condition.label_noise, data.n_classes, training.seed)
    size = training.test_size
    data = replace(data, train_labels=labels, test_images=data.test_images[:size], test_labels=data.test_labels[:size])
    images = Images(data, *mean_and_std(data.train_images))
    return replace(images, features=_features(training, data.channels, root)) if condition.pretrained else images


def _features(training: Training, channels: int, root: str | None) -> dict[str, Tensor]:
    """Train the network on other data, and return the weights of the layers before the linear ones."""
    other = replace(training, data=OTHER_DATA[training.data], condition="plain", train_size=4000, epochs=3)
    network = trained(other, prepare(other, root))
    features = network[: _head(network)].state_dict()
    first = features["0.weight"]
    features["0.weight"] = (first.sum(1, keepdim=True) / channels).expand(-1, channels, -1, -1)
    return features


def _head(network: nn.Sequential) -> int:
    """Return the index at which the linear layers begin."""
    return next(place for place, layer in enumerate(network) if isinstance(layer, nn.Flatten))


def _build(training: Training, images: Images) -> nn.Sequential:
    """Build the untrained network of a run, with channels last."""
    condition = CONDITIONS[training.condition]
    network = build(training.network, images.data.channels, images.data.n_classes, condition.dropout)
    any_module: Any = network  # torch's overloads lack this call
    any_module.to(memory_format=torch.channels_last)
    network.load_state_dict(images.features, strict=False)
    network[: _head(network)].requires_grad_(not condition.frozen)
    return network


def _fit(training: Training, images: Images, callbacks: list[pl.Callback], validate: bool) -> nn.Module:
    """Train from the start; on one thread the network is reproducible.

    A validation draws from the global generator, so that `validate` changes the network.
    """
    quiet()
    pl.seed_everything(training.seed, verbose=False)
    condition = CONDITIONS[training.condition]
    decay = condition.decay / training.lr
    module = Classifier(_build(training, images), training.lr, decay, condition.label_smoothing, condition.cosine)
    # An epoch of more images than there are repeats some.
    epoch_size = max(training.train_size, len(images.data.train_labels))
    train, val = make_loaders(images.data, training.batch_size, condition.augment, epoch_size)
    trainer = pl.Trainer(
        max_epochs=training.epochs,
        limit_train_batches=-(-training.train_size // training.batch_size),
        limit_val_batches=None if validate else 0,
        num_sanity_val_steps=0,
        callbacks=callbacks,
        accelerator="cpu",
        precision="bf16-mixed" if _MIXED else None,
        **SILENT,
    )
    trainer.fit(module, train, val)
    return module.network


def trained(training: Training, images: Images, weights: str | None = None) -> nn.Sequential:
    """Return the network after the last epoch; its weights are cached in the folder `weights`."""
    network = _build(training, images)
    with TemporaryDirectory() as temporary:
        path = Path(weights or temporary) / f"{training.key}.pt"
        if not path.is_file():
            save_weights(_fit(training, images, [], validate=False), path)
        network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval()


def save_weights(network: nn.Module, path: Path) -> None:
    """Write the weights atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


class _KeepWeights(pl.Callback):
    """Writes the network's weights to a folder after every epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write `EPOCH.pt`."""
        assert isinstance(pl_module, Classifier)
        save_weights(pl_module.network, self.folder / f"{trainer.current_epoch}.pt")


def every_epoch(training: Training, images: Images, weights: str | None) -> Iterator[tuple[int, nn.Sequential]]:
    """Yield the number of trained epochs and the network, one object whose weights change from epoch to epoch.

    The weights of every epoch are cached in the folder `weights` for other experiments; None takes a temporary folder.
    """
    network = _build(training, images)
    with TemporaryDirectory() as temporary:
        folder = Path(weights or temporary) / training.key
        paths = [folder / f"{epoch}.pt" for epoch in range(training.epochs)]
        if not all(path.is_file() for path in paths):
            _fit(training, images, [_KeepWeights(folder)], validate=True)
        for epoch, path in enumerate(paths, 1):
            network.load_state_dict(torch.load(path, weights_only=True))
            yield epoch, network.eval()


def best_and_last(training: Training, images: Images, weights: str | None) -> dict[str, tuple[int, nn.Sequential]]:
    """Return the networks with the lowest validation loss (`best`) and after the `last` epoch, with their epochs."""
    val, lowest = images.part("val"), float("inf")
    for epoch, network in every_epoch(training, images, weights):
        loss = evaluate_parts(network, {"val": val})[0]["val_loss"]
        if loss < lowest:
            lowest, best = loss, (epoch, copy.deepcopy(network))
    return {"last": (epoch, network), "best": best}


def further_epochs(
    training: Training, images: Images, network: nn.Module, epochs: int, mask: FilterMask
) -> Iterator[int]:
    """Continue to train a masked network in place, with a new optimizer, a fixed order of images and no augmentation.

    Yields:
        The number of further epochs, after each of them.
    """
    decay = CONDITIONS[training.condition].decay / training.lr
    optimizer = Classifier(network, training.lr, decay).configure_optimizers()
    inputs, labels = images.part("train")
    order = torch.Generator().manual_seed(training.seed)
    for epoch in range(1, epochs + 1):
        network.train()
        for batch in torch.split(torch.randperm(len(labels), generator=order), training.batch_size):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=_MIXED):
                loss = functional.cross_entropy(network(inputs[batch]), labels[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            mask.keep_gradients()
            optimizer.step()
            mask.keep([optimizer])
        yield epoch


def watched_layers(network: nn.Sequential) -> dict[str, str]:
    """Map each analyzed layer (the BatchNorm behind a convolution, or else the convolution) to its convolution."""
    places = [place for place, layer in enumerate(network) if isinstance(layer, nn.Conv2d)]
    normed = [isinstance(network[place + 1], nn.BatchNorm2d) for place in places]
    return {str(place + norm): str(place) for place, norm in zip(places, normed, strict=True)}
