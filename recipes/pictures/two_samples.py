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
from recipes.common.data import make_loaders, mean_and_std, normalise
from recipes.common.module import Classifier
from recipes.common.networks import build
from recipes.common.options import SILENT, add_training_options, one_sentence_errors, prepare_data, quiet


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_training_options(parser, epochs=30, train_size=4000)
    parser.set_defaults(data="cifar10", network="lenet5", val_size=1024, batch_size=64)
    parser.add_argument("--picture", default="two_samples.png", help="default: %(default)s")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> TwoSampleCallback:
    """Train, print what was found at the end, write the picture, and return the callback."""
    quiet()
    pl.seed_everything(options.seed, verbose=False)
    data = prepare_data(options)
    scale = mean_and_std(data.train_images)
    module = Classifier(build(options.network, data.channels, data.n_classes), options.lr)
    compared = TwoSampleCallback(
        normalise(data.train_images[: options.val_size], *scale),  # the training images are in random order
        normalise(data.val_images, *scale),
    )
    trainer = pl.Trainer(max_epochs=options.epochs, num_sanity_val_steps=0, callbacks=[compared], **SILENT)
    trainer.fit(module, *make_loaders(data, options.batch_size))
    print(compared.report)
    layers = layer_significance(compared.significance, len(compared.history[-1]["share_p_values"]))
    figure = comparison_figure(compared.history, compared.significance, layers)
    assert figure is not None
    figure.savefig(options.picture)
    return compared


if __name__ == "__main__":
    one_sentence_errors(run, parse)
