"""The measures of H3 are what they say."""

from dataclasses import replace

import pytest
import torch

from recipes.common.evaluation import evaluate
from recipes.common.networks import build
from recipes.experiments.common.trainings import prepare, quick_matrix
from recipes.experiments.h3.measures import MEASURES, Judge, calibration_error

TRAINING = quick_matrix(("noise30",))[0]


def test_a_row_measures_what_it_says() -> None:
    images = prepare(TRAINING)
    judge = Judge.of(TRAINING, images)
    network = build("lenet5", 1, 10)
    row = dict(zip(MEASURES, judge.row(network), strict=True))
    loss, accuracy = evaluate(network, images.normalised("test"), images.data.test_labels)
    assert (row["test_loss"], row["test_acc"]) == pytest.approx((loss, accuracy), rel=1e-3)
    wrong = images.wrong
    with torch.no_grad():
        predicted = network(images.normalised("train")[wrong]).argmax(1)
    true = prepare(replace(TRAINING, condition="overfitting")).data.train_labels[wrong]
    assert (images.data.train_labels[wrong] != true).all()
    assert row["wrong_kept"] == pytest.approx(
        (predicted == images.data.train_labels[wrong]).double().mean().item(), abs=1e-4
    )
    assert row["wrong_undone"] == pytest.approx((predicted == true).double().mean().item(), abs=1e-4)
    assert row["train_acc"] == pytest.approx(judge.train_accuracy(network), abs=1e-4)
    clean = replace(TRAINING, condition="overfitting")
    assert Judge.of(clean, prepare(clean)).row(network)[-2:] == [None, None]


def test_calibration_error_by_hand() -> None:
    sure = torch.tensor([[0.9, 0.1]] * 4 + [[0.4, 0.6]] * 2)
    labels = torch.tensor([0, 0, 0, 1, 1, 0])
    assert calibration_error(sure, labels) == pytest.approx(4 / 6 * abs(0.75 - 0.9) + 2 / 6 * abs(0.5 - 0.6))
    assert calibration_error(torch.eye(2), torch.tensor([0, 1])) == 0
