"""Which trainings there are, and the images that each of them gets."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from recipes.experiments.common.trainings import (
    CONDITIONS,
    DATA,
    MATRIX,
    OVERFITTING,
    full_matrix,
    held_out_matrix,
    long_matrix,
    prepare,
    quick_matrix,
)

NETWORKS = ("lenet5", "simple_cnn", "alexnet")


def test_the_full_matrix_has_every_combination_once_and_whole_seeds_first() -> None:
    trainings = full_matrix()
    assert len(trainings) == len({training.key for training in trainings}) == 3 * len(DATA) * len(MATRIX) * 3
    assert [training.seed for training in trainings] == sorted(training.seed for training in trainings)
    assert {training.network for training in trainings} == set(NETWORKS)
    assert set(OVERFITTING) | set(MATRIX) == set(CONDITIONS)


def test_what_is_held_out_is_in_no_other_matrix() -> None:
    seen = {(training.network, training.seed) for training in full_matrix()}
    assert seen.isdisjoint((training.network, training.seed) for training in held_out_matrix())
    assert {training.condition for training in held_out_matrix()} & set(OVERFITTING) == {"overfitting", "noise20"}
    assert len({training.key for training in [*full_matrix(), *held_out_matrix(), *long_matrix()]}) == 108 + 4 + 24


def test_conditions_share_their_validation_and_test_images_and_differ_as_they_say() -> None:
    small = replace(quick_matrix()[0], train_size=100)
    plain, noisy, more = (
        prepare(replace(small, condition=name)).data for name in ("overfitting", "noise30", "more_data")
    )
    for part in ("val_images", "test_images", "val_labels", "test_labels"):
        assert torch.equal(getattr(plain, part), getattr(noisy, part))
        assert torch.equal(getattr(plain, part), getattr(more, part))
    assert torch.equal(plain.train_images, noisy.train_images)
    assert (plain.train_labels != noisy.train_labels).sum() == 30
    assert torch.equal(prepare(replace(small, condition="noise30")).wrong, plain.train_labels != noisy.train_labels)
    assert torch.equal(more.train_images[:100], plain.train_images)
    assert len(more.train_images) == 1000
    assert not torch.equal(prepare(replace(small, seed=1)).data.val_images, plain.val_images)


def test_missing_data_are_an_error_that_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"does not hold an intact copy of cifar10 .* `--data-root`"):
        prepare(full_matrix()[0], str(tmp_path))
