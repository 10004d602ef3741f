"""How well a network does on the images of a training, in one row of numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from recipes.common.evaluation import evaluate, logits_of
from recipes.experiments.common.store import rounded
from recipes.experiments.common.trainings import Images, Training, prepare

__all__ = ["MEASURES", "Judge", "Row", "calibration_error"]

MEASURES = (
    "val_loss",
    "val_acc",
    "val_ece",
    "test_loss",
    "test_acc",
    "train_acc",  # against the labels that were trained on
    "wrong_kept",  # of mislabelled training images, those predicted to be what the wrong label says
    "wrong_undone",  # and those predicted to be what they are
)
Row = list[float | None]  # one value for each of MEASURES
_TEST, _TRAIN, _WRONG = 1024, 512, 512  # at most as many images, as it is done thousands of times


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error of probabilities `(N, C)`, from bins of equal width of the largest probability.

    The mean over the samples of |accuracy - confidence| of their bin; Guo et al., "On Calibration of Modern Neural
    Networks" (2017).
    """
    confidence, prediction = probabilities.max(1)
    right = (prediction == labels).double()
    bin_of = (confidence * bins).long().clamp(max=bins - 1)
    surplus = torch.zeros(bins, dtype=torch.float64).index_add_(0, bin_of, right - confidence.double())
    return (surplus.abs().sum() / len(labels)).item()


@dataclass(frozen=True, eq=False)
class Judge:
    """Measures networks on the first images of each part of a training.

    Attributes:
        images: Validation, test, training and mislabelled training images, one after the other `(N, C, H, W)`.
        labels: Their labels, of the mislabelled ones the wrong ones.
        true: The true labels of the mislabelled ones.
        sizes: How many images each part has.
    """

    images: Tensor
    labels: Tensor
    true: Tensor
    sizes: list[int]

    @classmethod
    def of(cls, training: Training, images: Images, root: str | None = None) -> Judge:
        """The judge of a training with these images; `root` as in `prepare`."""
        plain = replace(training, condition="overfitting")  # has the same images and no wrong label
        true = prepare(plain, root).data.train_labels
        train, labels = images.normalised("train"), images.data.train_labels
        wrong = images.wrong.nonzero()[:_WRONG, 0]
        parts = [images.normalised("val"), images.normalised("test", _TEST), train[:_TRAIN], train[wrong]]
        known = [images.data.val_labels, images.data.test_labels[:_TEST], labels[:_TRAIN], labels[wrong]]
        # The networks' pooling is twice as fast with the channels last.
        everything = torch.cat(parts).contiguous(memory_format=torch.channels_last)
        return cls(everything, torch.cat(known), true[wrong], [len(part) for part in parts])

    def row(self, network: nn.Module) -> Row:
        """The values of MEASURES; None for what needs mislabelled images where there are none."""
        logits = logits_of(network, self.images).double()
        hits = (logits.argmax(1) == self.labels).double()
        val, test, _, wrong = torch.split(logits, self.sizes)
        val_labels, test_labels, _, _ = torch.split(self.labels, self.sizes)
        in_val, in_test, in_train, kept = torch.split(hits, self.sizes)
        undone = (wrong.argmax(1) == self.true).double()
        row: Row = [
            functional.cross_entropy(val, val_labels).item(),
            in_val.mean().item(),
            calibration_error(val.softmax(1), val_labels),
            functional.cross_entropy(test, test_labels).item(),
            *(part.mean().item() for part in (in_test, in_train, kept, undone)),
        ]
        return list(rounded(row, 4))

    def train_accuracy(self, network: nn.Module) -> float:
        """The measure `train_acc` alone."""
        part = slice(sum(self.sizes[:2]), sum(self.sizes[:3]))
        return evaluate(network, self.images[part], self.labels[part])[1]
