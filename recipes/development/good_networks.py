"""Well-trained networks, as users have them: all training images, augmentation, and a learning rate schedule.

`python -m recipes.development.good_networks --data-root DIR --weights DIR` trains the networks that are missing in the
folder of the weights, and writes a line with the accuracy of each; about four hours on one core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from joblib import Parallel, delayed, parallel_config
from torch import nn

from recipes.common.data import ImageData, download, load_images, make_loaders, mean_and_std, normalize
from recipes.common.module import Classifier, evaluate
from recipes.common.networks import build
from recipes.common.options import SILENT, add_data_options, one_sentence_errors, quiet
from recipes.experiments.fitting import save_weights
from recipes.experiments.store import RESULTS, append, rounded

_BATCH = 128
_MIXED = torch.backends.cpu.get_cpu_capability() == "AVX512"  # without it, bfloat16 is slow


@dataclass(frozen=True)
class GoodNetwork:
    """A network, its data set, the classes that are left out of training, and its epochs."""

    network: str
    data: str
    left_out: tuple[int, ...]
    epochs: int

    @property
    def key(self) -> str:
        """A name such as `vgg_bn/fashion_mnist/without_0_1`."""
        without = "_".join(map(str, self.left_out))
        return f"{self.network}/{self.data}/{f'without_{without}' if without else 'all'}"

    def known(self, labels: torch.Tensor) -> torch.Tensor:
        """Return which labels int64 `(N,)` are of classes that the network was trained on, bool `(N,)`."""
        return ~torch.isin(labels, torch.tensor(self.left_out, dtype=labels.dtype))


# Two classes are left out at a time, which needs half as many networks.
NETWORKS = (
    GoodNetwork("resnet20", "fashion_mnist", (), 12),
    GoodNetwork("resnet20", "cifar10", (), 24),
    GoodNetwork("vgg_bn", "fashion_mnist", (8, 9), 8),
    GoodNetwork("vgg_bn", "fashion_mnist", (0, 1), 8),
    GoodNetwork("resnet20", "cifar10", (0, 3), 14),
    GoodNetwork("vgg_bn", "fashion_mnist", (2, 3), 8),
    GoodNetwork("vgg_bn", "fashion_mnist", (4, 5), 8),
    GoodNetwork("vgg_bn", "fashion_mnist", (6, 7), 8),
    GoodNetwork("vgg_bn", "cifar10", (), 20),
    GoodNetwork("resnet20", "cifar10", (4, 9), 14),
    GoodNetwork("vgg_bn", "fashion_mnist", (), 12),
)


class _Scheduled(Classifier):
    """Trained with stochastic gradient descent and one cycle of the learning rate."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, steps, pct_start=0.2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def known_images(good: GoodNetwork, root: str | None) -> ImageData:
    """Load training and test images of the classes that the network is trained on."""
    data = load_images(good.data, root)
    train, test = good.known(data.train_labels), good.known(data.test_labels)
    images: Any = {"train_images": data.train_images[train], "test_images": data.test_images[test]}
    return replace(data, **images, train_labels=data.train_labels[train], test_labels=data.test_labels[test])


class Normalized(nn.Module):
    """A network that normalizes its images first, so that it takes uint8 `(n, C, H, W)`."""

    def __init__(self, network: nn.Module, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def scaled(self, images: torch.Tensor) -> torch.Tensor:
        """Normalize images."""
        scaled = normalize(images, self.get_buffer("mean"), self.get_buffer("std"))
        return scaled.contiguous(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor) -> Any:
        """Compute logits `(n, classes)`."""
        return self.network(self.scaled(images))


def _train(good: GoodNetwork, root: str | None, weights: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    quiet()
    pl.seed_everything(0, verbose=False)
    data = known_images(good, root)
    network: Any = build(good.network, data.channels, data.n_classes)
    network.to(memory_format=torch.channels_last)
    module = _Scheduled(network, lr=0.2)
    loader, _ = make_loaders(data, _BATCH, augment=True)
    start = time.perf_counter()
    precision: Any = "bf16-mixed" if _MIXED else None
    options = {"num_sanity_val_steps": 0, "accelerator": "cpu", "precision": precision, **SILENT}
    trainer = pl.Trainer(max_epochs=good.epochs, **options)
    trainer.fit(module, loader)
    minutes = (time.perf_counter() - start) / 60
    scale = mean_and_std(data.train_images)
    loss, accuracy = evaluate(network, normalize(data.test_images, *scale), data.test_labels)
    save_weights(Normalized(network, *scale), weights / f"{good.key}.pt")
    return {"key": good.key, "epochs": good.epochs, "test_loss": loss, "test_acc": accuracy, "minutes": minutes}


def load_good(good: GoodNetwork, weights: Path, channels: int, classes: int = 10) -> Normalized:
    """Load a trained network in evaluation mode; it takes images uint8.

    Raises:
        FileNotFoundError: If it has not been trained.
    """
    network = Normalized(build(good.network, channels, classes), torch.zeros(channels), torch.ones(channels))
    network.load_state_dict(torch.load(weights / f"{good.key}.pt", weights_only=True))
    return network.eval()


def parser_of(module: str, description: str | None) -> argparse.ArgumentParser:
    """Make the parser of a command on these networks."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(f"python -m {module}", description=description, formatter_class=as_written)
    add_data_options(parser)
    parser.add_argument("--weights", type=Path, required=True, help="folder of the weights, outside the repository")
    parser.add_argument("--workers", type=int, help="networks at a time, default: one for each core")
    return parser


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options."""
    return parser_of("recipes.development.good_networks", __doc__).parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Train the networks that are missing in the folder of the weights."""
    missing = [good for good in NETWORKS if not (options.weights / f"{good.key}.pt").is_file()]
    if options.download:
        download({good.data for good in missing}, options.data_root)
    with parallel_config("loky", inner_max_num_threads=1):
        pool = Parallel(n_jobs=options.workers or -1, return_as="generator_unordered")
        for line in pool(delayed(_train)(good, options.data_root, options.weights) for good in missing):
            print(line, flush=True)
            append(RESULTS / "good_networks.jsonl", rounded(line))


if __name__ == "__main__":
    one_sentence_errors(run, parse)
