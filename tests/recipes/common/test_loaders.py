"""Images are split, normalised and put into loaders."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from recipes.common.damage import DAMAGES, plant_damage, with_label_noise
from recipes.common.data import (
    ImageData,
    crop_and_flip,
    load_images,
    make_loaders,
    mean_and_std,
    normalise,
    split,
    to_dataset,
)


def numbered(n: int = 40, own_val: int = 0) -> ImageData:
    """Every image and its label carry the image's number, so that a split can be followed."""

    def part(first: int, count: int) -> tuple[Tensor, Tensor]:
        numbers = torch.arange(first, first + count)
        return numbers.to(torch.uint8)[:, None, None, None].repeat(1, 1, 16, 16), numbers

    train, val, test = part(0, n), part(100, own_val), part(200, 5)
    return ImageData(*train, *val, *test, classes=tuple("c" * 256))


DRAWS: dict[str, Callable[[int], list[Tensor]]] = {
    "split": lambda seed: [split(numbered(), 20, 10, seed).train_labels, split(numbered(), 20, 10, seed).val_labels],
    "with_label_noise": lambda seed: list(with_label_noise(torch.arange(100) % 7, 0.3, 7, seed)),
    "plant_damage": lambda seed: [
        plant_damage(numbered().train_images, 16, [*DAMAGES, "foreign"], seed, numbered(9).train_images)[0]
    ],
}


@pytest.mark.parametrize("draw", DRAWS)
def test_same_seed_gives_the_same_draw_and_another_seed_another(draw: str) -> None:
    first, again, other = DRAWS[draw](3), DRAWS[draw](3), DRAWS[draw](4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("draw", [*DRAWS, "load_images"])
def test_global_random_numbers_are_untouched(draw: str) -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state(legacy=False)
    load_images("digits") if draw == "load_images" else DRAWS[draw](3)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_equal(np.random.get_state(legacy=False), numpy_state)


def test_split_parts_are_disjoint_and_images_stay_with_their_labels() -> None:
    data = split(numbered(40), 25, 10, seed=1)
    assert (len(data.train_labels), len(data.val_labels)) == (25, 10)
    assert len({*data.train_labels.tolist(), *data.val_labels.tolist()}) == 35
    for images, labels in ((data.train_images, data.train_labels), (data.val_images, data.val_labels)):
        assert images[:, 0, 0, 0].tolist() == labels.tolist()
    assert torch.equal(data.test_labels, numbered(40).test_labels)


def test_split_without_training_size_takes_all_that_remains() -> None:
    data = split(numbered(40), None, 10, seed=1)
    assert sorted(data.train_labels.tolist() + data.val_labels.tolist()) == list(range(40))


def test_split_validation_images_do_not_depend_on_the_training_size() -> None:
    assert torch.equal(split(numbered(), 5, 10, seed=1).val_images, split(numbered(), 30, 10, seed=1).val_images)


def test_split_keeps_a_validation_part_of_the_data_itself() -> None:
    whole = split(numbered(40, own_val=8), None, 100, seed=1)
    assert sorted(whole.val_labels.tolist()) == list(range(100, 108))
    assert sorted(whole.train_labels.tolist()) == list(range(40))
    thinned = split(numbered(40, own_val=8), 20, 6, seed=1)
    assert len(set(thinned.val_labels.tolist()) & set(range(100, 108))) == 6
    assert thinned.val_images[:, 0, 0, 0].tolist() == thinned.val_labels.tolist()


def test_split_sizes_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"`val_size` should be a positive integer. Found `val_size = 0`"):
        split(numbered(), 5, 0, seed=0)
    message = r"between 1 and 30, the images that `val_size = 10` leaves of 40. Found `train_size = 31`"
    with pytest.raises(ValueError, match=message):
        split(numbered(), 31, 10, seed=0)
    with pytest.raises(ValueError, match=r"between 1 and 30, .* Found `train_size = 0`"):
        split(numbered(), 0, 10, seed=0)
    with pytest.raises(ValueError, match=r"between 1 and 0, .* Found `train_size = None`"):
        split(numbered(), None, 40, seed=0)


def test_normalised_images_have_mean_0_and_deviation_1_per_channel(images: Tensor) -> None:
    images[:, 1] = images[:, 1] // 2
    before = images.clone()
    normalised = normalise(images, *mean_and_std(images))
    assert torch.equal(images, before)
    assert normalised.dtype == torch.float32
    torch.testing.assert_close(normalised.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalised.std((0, 2, 3), correction=0), torch.ones(3))


def test_constant_images_stay_finite() -> None:
    images = torch.full((4, 1, 16, 16), 90, dtype=torch.uint8)
    torch.testing.assert_close(normalise(images, *mean_and_std(images)), torch.zeros(4, 1, 16, 16), atol=1e-4, rtol=0)


def test_crop_and_flip_only_shifts_and_mirrors() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(200, 2, 5, 6, generator=generator)
    before = images.clone()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        augmented = crop_and_flip(images)
    assert torch.equal(images, before)
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4), mode="replicate")
    seen = set()
    for i in range(200):
        crops = {
            (top, left, mirrored): crop.flip(-1) if mirrored else crop
            for top in range(9)
            for left in range(9)
            for crop in [padded[i, :, top : top + 5, left : left + 6]]
            for mirrored in (False, True)
        }
        found = [how for how, crop in crops.items() if torch.equal(crop, augmented[i])]
        assert found
        seen |= set(found)
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(9))
    assert {mirrored for _, _, mirrored in seen} == {False, True}


def test_loaders_shuffle_training_and_keep_validation_in_order() -> None:
    data = split(numbered(), 30, 10, seed=0)
    mean, std = mean_and_std(data.train_images)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        train, val = make_loaders(data, batch_size=8)
        epochs = [torch.cat([labels for _, labels in train]) for _ in range(2)]
        images, labels = (torch.cat(parts) for parts in zip(*val, strict=True))
    assert not torch.equal(*epochs)
    assert all(torch.equal(epoch.sort().values, data.train_labels.sort().values) for epoch in epochs)
    assert torch.equal(labels, data.val_labels)
    assert torch.equal(images, normalise(data.val_images, mean, std))
    assert [len(labels) for _, labels in val] == [8, 2]


def test_an_epoch_of_more_images_than_there_are_takes_all_equally_often() -> None:
    data = split(numbered(), 10, 10, seed=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        train, _ = make_loaders(data, batch_size=8, epoch_size=25)
        places = torch.cat([images.flatten(1)[:, 0] for images, _ in train])
    counts = places.unique(return_counts=True)[1]
    assert sorted(counts.tolist()) == [2] * 5 + [3] * 5


def test_augmentation_leaves_the_dataset_and_validation_alone(images: Tensor) -> None:
    numbers = torch.arange(30)
    data = ImageData(images, numbers, images, numbers, images, numbers, classes=("a",) * 30)
    clean = normalise(images, *mean_and_std(images))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        train, val = make_loaders(data, 30, augment=True)
        (augmented, labels), (val_images, _) = next(iter(train)), next(iter(val))
        assert augmented.shape == clean.shape
        assert (augmented != clean[labels]).flatten(1).any(1).float().mean() > 0.9
        assert torch.equal(val_images, clean)
        assert torch.equal(train.dataset[4][0], clean[4])


def test_dataset_pairs_normalised_images_with_labels(images: Tensor) -> None:
    mean, std = mean_and_std(images)
    image, label = to_dataset(images, torch.arange(30), mean, std)[7]
    assert torch.equal(image, normalise(images, mean, std)[7])
    assert label == 7
