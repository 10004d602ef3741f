"""Labels and images are changed as they are said to be."""

import pytest
import torch
from torch import Tensor

from recipes.common.damage import DAMAGES, over_expose, plant_damage, with_label_noise
from recipes.common.data import load_images, make_loaders, mean_and_std, split


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.333, 1.0])
@pytest.mark.parametrize("n_classes", [2, 10])
def test_label_noise_changes_exactly_its_share_and_always_to_another_class(fraction: float, n_classes: int) -> None:
    labels = torch.arange(203) % n_classes
    before = labels.clone()
    noisy, changed = with_label_noise(labels, fraction, n_classes, seed=5)
    assert torch.equal(labels, before)
    assert int(changed.sum()) == round(fraction * 203)
    assert torch.equal(noisy != labels, changed)
    assert noisy.min() >= 0
    assert noisy.max() < n_classes


def test_label_noise_gives_every_other_class_alike() -> None:
    noisy, _ = with_label_noise(torch.full((9000,), 4), 1.0, 10, seed=0)
    counts = torch.bincount(noisy, minlength=10)
    assert counts[4] == 0
    assert all(850 < count < 1150 for cls, count in enumerate(counts.tolist()) if cls != 4)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_label_noise_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(ValueError, match=rf"`fraction` should be between 0 and 1. Found `fraction = {fraction}`"):
        with_label_noise(torch.arange(3), fraction, 3, seed=0)


def test_label_noise_needs_another_class() -> None:
    with pytest.raises(ValueError, match=r"`n_classes` should be 2 or more. Found `n_classes = 1`"):
        with_label_noise(torch.zeros(3, dtype=torch.int64), 0.5, 1, seed=0)


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_pure_and_keeps_shape_and_type(images: Tensor, kind: str) -> None:
    before, generator = images.clone(), torch.Generator().manual_seed(0)
    damaged = DAMAGES[kind](images, generator)
    assert torch.equal(images, before)
    assert (damaged.shape, damaged.dtype) == (images.shape, torch.uint8)
    assert (damaged != images).flatten(1).any(1).all()


def test_each_damage_does_what_its_name_says(images: Tensor) -> None:
    images[0, 0, 0, :3] = torch.tensor([0, 128, 255], dtype=torch.uint8)
    damaged = {kind: damage(images, torch.Generator().manual_seed(0)) for kind, damage in DAMAGES.items()}
    assert damaged["noise"].float().mean() == pytest.approx(127.5, abs=2)
    assert damaged["noise"].unique().numel() == 256
    changed = (damaged["salt_and_pepper"] != images).any(1)
    assert changed.float().mean() == pytest.approx(0.25, abs=0.02)
    extremes = damaged["salt_and_pepper"].permute(0, 2, 3, 1)[changed]
    assert ((extremes == 0).all(1) | (extremes == 255).all(1)).all()
    assert damaged["black"].max() == 0
    assert torch.equal(damaged["over_exposed"].float(), (images.float() * 4).clamp(max=255))
    assert damaged["saturated"].unique().tolist() == [0, 255]
    assert damaged["saturated"][0, 0, 0, :3].tolist() == [0, 255, 255]
    assert damaged["white"].min() == 255
    assert damaged["blurred"][1:].float().std() < 0.3 * images[1:].float().std()
    assert damaged["blurred"][1:].float().mean() == pytest.approx(images[1:].float().mean().item(), abs=2)
    assert torch.equal(damaged["inverted"].int() + images, torch.full_like(images, 255).int())


def test_damage_changes_exactly_the_planned_images_in_turn(images: Tensor) -> None:
    before, kinds = images.clone(), [*DAMAGES, "foreign"]
    damaged, planted = plant_damage(images, 19, kinds, 7, torch.full((9, 3, 16, 16), 200, dtype=torch.uint8))
    assert torch.equal(images, before)
    assert [len(planted[kind]) for kind in kinds] == [3, 2, 2, 2, 2, 2, 2, 2, 2]
    assert all(places == sorted(places) for places in planted.values())
    planned = [place for places in planted.values() for place in places]
    changed = (damaged != images).flatten(1).any(1).nonzero()[:, 0].tolist()
    assert changed == sorted(planned)
    assert len(changed) == 19
    assert (damaged[planted["black"]] == 0).all()
    assert torch.equal(damaged[planted["inverted"]], 255 - images[planted["inverted"]])
    assert (damaged[planted["foreign"]] == 200).all()


def test_no_damage_leaves_all_images(images: Tensor) -> None:
    damaged, planted = plant_damage(images, 0, ["black", "foreign"], seed=0)
    assert torch.equal(damaged, images)
    assert damaged.data_ptr() != images.data_ptr()
    assert planted == {"black": [], "foreign": []}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("foreign_channels", [1, 3])
def test_foreign_images_are_fitted_in_size_and_channels_and_differ(channels: int, foreign_channels: int) -> None:
    images = torch.zeros(6, channels, 16, 16, dtype=torch.uint8)
    levels = torch.tensor([10, 60, 110, 160, 210, 250], dtype=torch.uint8)
    foreign = levels[:, None, None, None].repeat(1, foreign_channels, 28, 28)
    damaged, planted = plant_damage(images, 6, ["foreign"], 0, foreign)
    assert planted == {"foreign": list(range(6))}
    assert damaged.shape == images.shape
    assert sorted(damaged[:, 0, 0, 0].tolist()) == levels.tolist()
    assert torch.equal(damaged, damaged[:, :1, :1, :1].expand_as(damaged))


def test_damage_count_out_of_range(images: Tensor) -> None:
    for count in (-1, 31):
        with pytest.raises(ValueError, match=rf"`count` should be between 0 and 30. Found `count = {count}`"):
            plant_damage(images, count, ["black"], seed=0)


@pytest.mark.parametrize("kinds", [[], ["black", "rust"], ["black", "black"]])
def test_damage_kinds_unknown_or_repeated(images: Tensor, kinds: list[str]) -> None:
    with pytest.raises(ValueError, match=r"`kinds` should be some of noise, .*, foreign, each once. Found `kinds = \["):
        plant_damage(images, 2, kinds, seed=0)


def test_too_few_foreign_images(images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"`foreign` should hold at least 2 images. Found 0"):
        plant_damage(images, 4, ["black", "foreign"], seed=0)
    with pytest.raises(ValueError, match=r"`foreign` should hold at least 2 images. Found 1"):
        plant_damage(images, 4, ["black", "foreign"], 0, images[:1])


def test_over_exposed_images_of_a_loader_are_four_times_as_bright_and_the_others_stay() -> None:
    data = split(load_images("digits"), 20, 10, seed=0)
    _, loader = make_loaders(data, 5)
    before = torch.cat([batch for batch, _ in loader])
    over_expose(loader, data, [2, 7])
    after = torch.cat([batch for batch, _ in loader])
    mean, std = mean_and_std(data.train_images)
    torch.testing.assert_close(after[[2, 7]] * std + mean, 4 * (before[[2, 7]] * std + mean))
    others = [0, 1, 3, 4, 5, 6, 8, 9]
    assert torch.equal(after[others], before[others])
