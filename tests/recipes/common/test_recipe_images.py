"""Images are loaded, split, damaged and put into loaders as documented."""

import hashlib
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.datasets import CIFAR100

from recipes.common.damage import DAMAGES, GROUPS, damage_all, with_label_noise
from recipes.common.data import ImageData, download, load_images, make_loaders, mean_and_std, normalize, split


@pytest.fixture
def images() -> Tensor:
    """Images of mid-tones without flat areas, which every kind of damage changes."""
    return torch.randint(40, 120, (30, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def numbered(n: int = 40) -> ImageData:
    """Make images whose pixels and labels are the image's number, so that a split can be followed."""
    numbers = torch.arange(n + 5)
    every = numbers.to(torch.uint8)[:, None, None, None].repeat(1, 1, 16, 16)
    return ImageData(every[:n], numbers[:n], every[:0], numbers[:0], every[n:], numbers[n:], n + 5)


def test_files_are_read_in_medmnists_layout_and_a_missing_one_is_named(tmp_path: Path) -> None:
    arrays = {"train_images": np.full((4, 8, 8, 3), 7, np.uint8), "train_labels": np.arange(4)[:, None],
              "test_images": np.zeros((2, 8, 8, 3), np.uint8), "test_labels": np.arange(2)}  # fmt: skip
    arrays["train_images"][:, 0, :, 2] = 9
    np.savez(tmp_path / "fashion_mnist.npz", **arrays)
    data = load_images("fashion_mnist", str(tmp_path))
    assert (data.train_images.shape, data.channels, data.n_classes) == ((4, 3, 8, 8), 3, 4)
    assert data.train_images[0, :, 0, 0].tolist() == [7, 7, 9]
    assert (data.train_labels.tolist(), data.test_labels.tolist()) == ([0, 1, 2, 3], [0, 1])
    with pytest.raises(FileNotFoundError, match="--data-root"):
        load_images("cifar10", str(tmp_path))
    digits = load_images("digits")
    assert (digits.train_images.shape, len(digits.test_labels), digits.n_classes) == ((1500, 1, 16, 16), 297, 10)


@pytest.fixture
def cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write torchvision's layout of CIFAR-100 with five training and two test images, whose pixels are their class."""
    folder = tmp_path / "origin" / CIFAR100.base_folder
    folder.mkdir(parents=True)
    parts = {"train": [3, 99, 0, 7, 7], "test": [99, 5]}
    content = {part: {"data": np.repeat(np.array(labels, np.uint8), 3072).reshape(-1, 3072), "fine_labels": labels,
                      "coarse_labels": [0] * len(labels)} for part, labels in parts.items()}  # fmt: skip
    sums = {}
    for name, values in {**content, "meta": {"fine_label_names": [str(label) for label in range(100)]}}.items():
        (folder / name).write_bytes(pickle.dumps(values))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": sums["meta"]})
    return folder.parent


def check_cifar100(root: Path) -> None:
    data = load_images("cifar100", str(root))
    assert (data.train_images.shape, data.test_images.shape, data.n_classes) == ((5, 3, 32, 32), (2, 3, 32, 32), 100)
    assert data.train_labels.tolist() == data.train_images[:, 2, 31, 0].tolist() == [3, 99, 0, 7, 7]
    assert data.test_labels.tolist() == data.test_images[:, 0, 0, 31].tolist() == [99, 5]


def test_cifar100_is_read_in_both_layouts(cifar100: Path, tmp_path: Path) -> None:
    check_cifar100(cifar100)
    parts = {"train": CIFAR100(cifar100), "test": CIFAR100(cifar100, train=False)}
    arrays = {f"{part}_images": dataset.data for part, dataset in parts.items()}
    np.savez(
        tmp_path / "cifar100.npz", **arrays, **{f"{part}_labels": dataset.targets for part, dataset in parts.items()}
    )
    check_cifar100(tmp_path)


def test_torchvision_fetches_only_what_is_missing(
    cifar100: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = []

    def fetch(url: str, root: Path, **options: Any) -> None:
        fetched.append(url)
        shutil.copytree(cifar100, root, dirs_exist_ok=True)

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fetch)
    (tmp_path / "cifar10.npz").touch()
    for _ in range(2):
        download(["digits", "cifar10", "cifar100"], str(tmp_path))
    assert fetched == [CIFAR100.url]
    check_cifar100(tmp_path)


def test_random_functions_depend_only_on_their_seed() -> None:
    state = torch.get_rng_state()
    draws = [
        [
            split(numbered(), 20, 10, seed).train_labels,
            with_label_noise(torch.arange(100) % 7, 0.3, 7, seed)[0],
            damage_all(numbered().train_images, {}, seed)["noise"],
        ]
        for seed in (3, 3, 4)
    ]
    for first, again, other in zip(*draws, strict=True):
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_parts_of_a_split_are_disjoint_and_images_keep_their_labels() -> None:
    data, fewer = split(numbered(40), 99, 10, seed=1), split(numbered(40), 5, 10, seed=1)
    assert sorted(data.train_labels.tolist() + data.val_labels.tolist()) == list(range(40))
    assert torch.equal(fewer.val_labels, data.val_labels)
    assert torch.equal(fewer.train_labels, data.train_labels[:5])
    for images, labels in ((data.train_images, data.train_labels), (data.val_images, data.val_labels)):
        assert images[:, 0, 0, 0].tolist() == labels.tolist()


def test_loaders_shuffle_training_images_and_not_validation_images() -> None:
    data = split(numbered(), 10, 10, seed=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        train, val = make_loaders(data, batch_size=8, epoch_size=25)
        epochs = [torch.cat([labels for _, labels in train]) for _ in range(2)]
        augmented, labels = next(iter(make_loaders(data, 10, augment=True)[0]))
    assert not torch.equal(*epochs)
    assert sorted(torch.bincount(epochs[0])[data.train_labels].tolist()) == [2] * 5 + [3] * 5  # all equally often
    images, val_labels = (torch.cat(parts) for parts in zip(*val, strict=True))
    assert torch.equal(val_labels, data.val_labels)
    assert torch.equal(images, normalize(data.val_images, *mean_and_std(data.train_images)))
    assert augmented.shape == (10, 1, 16, 16)
    assert sorted(labels.tolist()) == sorted(data.train_labels.tolist())


def test_label_noise_changes_exactly_its_share_to_other_classes() -> None:
    labels = torch.arange(203) % 10
    noisy, changed = with_label_noise(labels, 0.333, 10, seed=5)
    assert int(changed.sum()) == round(0.333 * 203)
    assert torch.equal(noisy != labels, changed)
    counts = torch.bincount(with_label_noise(torch.full((9000,), 4), 1.0, 10, seed=0)[0], minlength=10)
    assert counts[4] == 0
    assert all(850 < count < 1150 for place, count in enumerate(counts.tolist()) if place != 4)


def test_each_damage_does_what_its_name_says(images: Tensor) -> None:
    damaged = {kind: damage(images, torch.Generator().manual_seed(0)) for kind, damage in DAMAGES.items()}
    assert damaged["noise"].float().mean() == pytest.approx(127.5, abs=2)
    assert damaged["noise"].unique().numel() == 256
    changed = (damaged["salt_and_pepper"] != images).any(1)
    assert changed.float().mean() == pytest.approx(0.25, abs=0.02)
    extremes = damaged["salt_and_pepper"].permute(0, 2, 3, 1)[changed]
    assert ((extremes == 0).all(1) | (extremes == 255).all(1)).all()
    assert damaged["black"].max() == 0
    assert torch.equal(damaged["over_exposed"].float(), (images.float() * 4).clamp(max=255))
    assert damaged["blurred"][1:].float().std() < 0.3 * images[1:].float().std()
    assert torch.equal(damaged["inverted"].int() + images, torch.full_like(images, 255).int())


def test_every_other_kind_does_what_its_name_says(images: Tensor) -> None:
    foreign = {"digits": torch.full((40, 1, 8, 8), 200, dtype=torch.uint8)}
    before = images.clone()
    damaged = damage_all(images, foreign, seed=0)
    assert torch.equal(images, before)
    others = {"digits", "photographs", "blended"}  # 16x16 is too small for corruptions
    assert {*damaged} == {*others, *GROUPS["geometry"], *GROUPS["plain"]}
    assert {(part.shape, part.dtype) for part in damaged.values()} == {(images.shape, torch.uint8)}
    assert all((part != images).flatten(1).any(1).all() for part in damaged.values())
    for kind in ("quarter_turn", "half_turn", "upside_down", "transposed", "shifted"):  # the same pixels elsewhere
        assert torch.equal(damaged[kind].flatten(2).sort().values, images.flatten(2).sort().values)
    torch.testing.assert_close(damaged["quarter_turn"].rot90(3, (2, 3)), images)
