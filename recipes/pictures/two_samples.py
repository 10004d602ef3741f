"""Whether and where an overfitting network tells its training images: `python -m recipes.pictures.two_samples`.

A training on few images with a TwoSampleCallback, and the figure that loggers get of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import lightning.pytorch as pl

from lightning_anomaly import TwoSampleCallback
from lightning_anomaly.plots import comparison_figure
from lightning_anomaly.two_sample.rank_test import layer_significance
from recipes.common.data import DATA_SETS, load_images, make_loaders, mean_and_std, normalise, split
from recipes.common.module import Classifier
from recipes.common.networks import NETWORKS, build
from recipes.common.options import SILENT, one_sentence_errors, quiet


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", choices=DATA_SETS, help="default: %(default)s")
    parser.add_argument("--data-root", help="folder that holds NAME.npz or torchvision's copy (./data)")
    parser.add_argument("--download", action="store_true", help="let torchvision download the data set")
    parser.add_argument("--network", default="lenet5", choices=NETWORKS, help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=30, help="default: %(default)s")
    parser.add_argument("--train-size", type=int, default=4000, help="training images, default: %(default)s")
    parser.add_argument("--val-size", type=int, default=1024, help="images of each kind, default: %(default)s")
    parser.add_argument("--picture", default="two_samples.png", help="default: %(default)s")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> TwoSampleCallback:
    """Train, print what was found at the end, write the picture, and return the callback."""
    quiet()
    pl.seed_everything(0, verbose=False)
    data = load_images(options.data, options.data_root, download=options.download)
    data = split(data, options.train_size, options.val_size, seed=0)
    scale = mean_and_std(data.train_images)
    compared = TwoSampleCallback(
        normalise(data.train_images[: options.val_size], *scale),  # the training images are in random order
        normalise(data.val_images, *scale),
    )
    trainer = pl.Trainer(max_epochs=options.epochs, num_sanity_val_steps=0, callbacks=[compared], **SILENT)
    trainer.fit(Classifier(build(options.network, data.channels, data.n_classes)), *make_loaders(data, 64))
    print(compared.report)
    layers = layer_significance(compared.significance, len(compared.history[-1]["share_p_values"]))
    figure = comparison_figure(compared.history, compared.significance, layers)
    assert figure is not None
    figure.savefig(options.picture)
    return compared


if __name__ == "__main__":
    one_sentence_errors(run, parse)
