"""Images that do not belong stand where they are said to."""

import pytest
import torch

from recipes.experiments.common.trainings import prepare, quick_matrix
from recipes.experiments.h2.planted import MISLABELLED, Planted, plant

(TRAINING,) = quick_matrix(["overfitting"])


@pytest.fixture(scope="module")
def planted() -> Planted:
    return plant(TRAINING, damage=True)


def test_planted_images_are_trained_on_and_known(planted: Planted) -> None:
    images, train, val = planted.images, planted.train, planted.val
    assert torch.equal(train.images, images.normalised("train")[: len(train.images)])
    assert torch.equal(train.labels, images.data.train_labels[: len(train.labels)])
    assert images.data.train_labels.shape == images.wrong.shape == (256,)
    plain = prepare(TRAINING).data
    assert torch.equal(images.data.train_labels != plain.train_labels, images.wrong)
    assert 0 < images.wrong.sum() <= round(MISLABELLED * 256)
    assert not train.wrong[128:].any()
    assert not val.wrong[128:].any()
    for probe in (train, val):
        assert sorted(place for places in probe.damaged.values() for place in places) == [*range(128, 128 + 36)]
    # The damaged validation images are in the probe alone; what is validated on has none.
    assert torch.equal(images.data.val_images, plain.val_images)
    assert torch.equal(val.images[:128], images.normalised("val")[:128])
    assert not torch.equal(val.images[128:], images.normalised("val")[128:164])
    (black,) = train.images[train.damaged["black"]].unique()
    torch.testing.assert_close(black, -images.mean[0] / images.std[0])


def test_training_images_without_damage(planted: Planted) -> None:
    plain = plant(TRAINING, damage=False)
    assert torch.equal(plain.images.data.train_images, prepare(TRAINING).data.train_images)
    assert plain.train.damaged == {}
    assert len(plain.train.images) == 128
    assert torch.equal(plain.images.wrong, planted.images.wrong)
    assert plain.val.damaged == planted.val.damaged
    assert not plain.val.wrong[128:].any()


def test_probes_with_damage_replace_the_last_images(planted: Planted) -> None:
    probe = planted.val
    assert probe.with_damage("noise", 0.05).tolist() == [*range(122), *probe.damaged["noise"]]
    assert probe.with_damage("noise", 0.01, draw=2).tolist() == [*range(127), probe.damaged["noise"][2]]
    mixed = probe.with_damage("mixed", 0.05).tolist()
    assert mixed[122:] == [places[0] for places in probe.damaged.values()]
