import hashlib
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import datasets

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

RNG = np.random.default_rng(0)


def grey_arrays(n: int = 12) -> dict[str, Any]:
    return {
        "train_images": RNG.integers(0, 256, (n, 16, 20), dtype=np.uint8),
        "train_labels": np.arange(n) % 3,
        "test_images": RNG.integers(0, 256, (5, 16, 20), dtype=np.uint8),
        "test_labels": np.arange(5) % 3,
    }


def save(path: Path, arrays: dict[str, Any]) -> Path:
    np.savez(path, **arrays)
    return path


def numbered(n: int = 40, own_val: int = 0) -> ImageData:
    """Every image and its label carry the image's number, so that a split can be followed."""

    def part(first: int, count: int) -> tuple[Tensor, Tensor]:
        numbers = torch.arange(first, first + count)
        return numbers.to(torch.uint8)[:, None, None, None].repeat(1, 1, 16, 16), numbers

    train, val, test = part(0, n), part(100, own_val), part(200, 5)
    return ImageData(*train, *val, *test, classes=tuple("c" * 256))


@pytest.fixture
def images() -> Tensor:
    """Mid-tones without flat areas, which every kind of damage changes."""
    return torch.randint(40, 120, (30, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# Reading


def test_digits_are_16x16_with_each_pixel_repeated_and_the_full_range() -> None:
    data = load_images("digits")
    assert data.train_images.shape == (1500, 1, 16, 16)
    assert data.test_images.shape == (297, 1, 16, 16)
    assert data.train_images.dtype == torch.uint8
    assert data.train_labels.dtype == torch.int64
    assert (int(data.train_images.min()), int(data.train_images.max())) == (0, 255)
    small = data.train_images[:, :, ::2, ::2]
    assert torch.equal(data.train_images, small.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert (data.channels, data.n_classes) == (1, 10)
    assert set(data.test_labels.tolist()) == set(range(10))
    assert len(data.val_images) == len(data.val_labels) == 0


def test_npz_round_trip_in_grey(tmp_path: Path) -> None:
    arrays = grey_arrays()
    data = load_images(save(tmp_path / "grey.npz", arrays))
    for part in ("train", "test"):
        np.testing.assert_array_equal(getattr(data, f"{part}_images")[:, 0].numpy(), arrays[f"{part}_images"])
        np.testing.assert_array_equal(getattr(data, f"{part}_labels").numpy(), arrays[f"{part}_labels"])
    assert data.classes == ("0", "1", "2")
    assert len(data.val_images) == 0


def test_npz_round_trip_in_colour_with_column_labels_validation_part_and_classes(tmp_path: Path) -> None:
    arrays = {
        f"{part}_images": RNG.integers(0, 256, (n, 16, 20, 3), dtype=np.uint8)
        for part, n in (("train", 9), ("val", 4), ("test", 3))
    }
    arrays |= {key.replace("images", "labels"): np.ones((len(a), 1), dtype=np.uint8) for key, a in arrays.items()}
    data = load_images(str(save(tmp_path / "colour.npz", arrays | {"classes": np.array(["cat", "dog", "eel"])})))
    for part in ("train", "val", "test"):
        np.testing.assert_array_equal(
            getattr(data, f"{part}_images").permute(0, 2, 3, 1).numpy(), arrays[f"{part}_images"]
        )
        labels = getattr(data, f"{part}_labels")
        assert labels.dtype == torch.int64
        assert labels.tolist() == [1] * len(arrays[f"{part}_images"])
    assert data.classes == ("cat", "dog", "eel")
    assert (data.channels, data.n_classes) == (3, 3)


def test_unknown_name_lists_the_names() -> None:
    message = r"`data` should be one of digits, fashion_mnist, cifar10, cifar100 or .* Found `data = cifar11`"
    with pytest.raises(ValueError, match=message):
        load_images("cifar11")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"path of an existing .npz file. Found `data = .*nowhere.npz`"):
        load_images(tmp_path / "nowhere.npz")


@pytest.mark.parametrize("content", [b"", b"not an archive"])
def test_file_that_is_no_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"`bad.npz` should be an .npz archive of plain arrays. .* not an archive"):
        load_images(tmp_path / "bad.npz")


def test_file_with_pickled_objects_is_refused(tmp_path: Path) -> None:
    arrays = grey_arrays() | {"classes": np.array(["a", None, 1], dtype=object)}
    with pytest.raises(ValueError, match=r"`x.npz` should be an .npz archive of plain arrays. .* allow_pickle=False"):
        load_images(save(tmp_path / "x.npz", arrays))


def test_file_with_damaged_content(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npz", grey_arrays())
    content = bytearray(path.read_bytes())
    content[1000:1010] = bytes(byte ^ 255 for byte in content[1000:1010])
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"`x.npz` should be an .npz archive of plain arrays. .* CRC"):
        load_images(path)


def test_missing_keys_are_named_beside_those_found(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npz", {"x": np.zeros(3), "train_images": np.zeros(3), "test_labels": np.zeros(3)})
    message = (
        r"`x.npz` should hold the keys test_images, train_labels too. Found the keys test_labels, train_images, x\."
    )
    with pytest.raises(ValueError, match=message):
        load_images(path)


@pytest.mark.parametrize(("given", "lacking"), [("val_images", "val_labels"), ("val_labels", "val_images")])
def test_half_a_validation_part_is_refused(tmp_path: Path, given: str, lacking: str) -> None:
    path = save(tmp_path / "x.npz", grey_arrays() | {given: np.zeros(3)})
    with pytest.raises(ValueError, match=rf"should hold the keys {lacking} too. Found the keys .*{given}"):
        load_images(path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train_images": np.zeros((12, 16, 20))}, r"`train_images` in `x.npz` should be uint8 .* Found float64 of"),
        (
            {"train_images": np.zeros((12, 16, 20, 4), np.uint8)},
            r"shape \(N, H, W\) or \(N, H, W, 3\) and not empty. Found uint8 of shape \(12, 16, 20, 4\)",
        ),
        ({"train_images": np.zeros((0, 16, 20), np.uint8)}, r"and not empty. Found uint8 of shape \(0, 16, 20\)"),
        ({"test_images": np.uint8(3)}, r"`test_images` in `x.npz` should be uint8 .* Found uint8 of shape \(\)"),
        (
            {"test_images": np.zeros((5, 28, 28), np.uint8)},
            r"`test_images` in `x.npz` should be \(1, 16, 20\) like the training images. Found \(1, 28, 28\)",
        ),
        (
            {"val_images": np.zeros((4, 16, 20, 3), np.uint8), "val_labels": np.zeros(4, int)},
            r"`val_images` in `x.npz` should be \(1, 16, 20\) like the training images. Found \(3, 16, 20\)",
        ),
        ({"train_labels": np.zeros(12)}, r"`train_labels` in `x.npz` should be integers of .* Found float64 of"),
        ({"train_labels": np.zeros(12, bool)}, r"should be integers of shape \(N,\) or \(N, 1\). Found bool of"),
        ({"train_labels": np.zeros((12, 14), int)}, r"should be integers .* Found int64 of shape \(12, 14\)"),
        ({"test_labels": np.int64(3)}, r"`test_labels` in `x.npz` should be integers .* Found int64 of shape \(\)"),
        ({"train_labels": np.arange(12) - 1}, r"`train_labels` in `x.npz` should be 0 or more. Found -1"),
        (
            {"train_labels": np.zeros(11, int)},
            r"`train_labels` in `x.npz` should hold one label per image. Found 11 labels and 12 images",
        ),
        ({"classes": np.array(["a", "b"])}, r"`classes` .* 3 names or more, as labels go up to 2. Found shape \(2,\)"),
        ({"classes": np.array("abc")}, r"`classes` in `x.npz` should be a list of .* Found shape \(\)"),
    ],
)
def test_wrong_content_is_described(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_images(save(tmp_path / "x.npz", grey_arrays() | wrong))


# Reading through torchvision


def dump(path: Path, content: dict[str, Any]) -> str:
    """Pickle `content` and return the file's MD5 sum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> dict[str, dict[str, Any]]:
    """Write a small CIFAR in its own format, and make its sums those that torchvision checks."""
    dataset = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    n_classes, key = (10, "labels") if name == "cifar10" else (100, "fine_labels")
    written = {}
    for files in ("train_list", "test_list"):
        entries = []
        for file, _ in getattr(dataset, files):
            content = {
                "data": RNG.integers(0, 256, (4, 3072), dtype=np.uint8),
                key: RNG.integers(0, n_classes, 4).tolist(),
            }
            if name == "cifar100":
                content["coarse_labels"] = [0] * 4
            entries.append([file, dump(root / dataset.base_folder / file, content)])
            written[file] = content
        monkeypatch.setattr(dataset, files, entries)
    names = {dataset.meta["key"]: [f"class {i}" for i in range(n_classes)], "coarse_label_names": ["one"]}
    md5 = dump(root / dataset.base_folder / dataset.meta["filename"], names)
    monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": md5})
    return written


@pytest.mark.parametrize(
    ("name", "n_classes", "train_files", "test_file", "key"),
    [
        ("cifar10", 10, [f"data_batch_{i}" for i in range(1, 6)], "test_batch", "labels"),
        ("cifar100", 100, ["train"], "test", "fine_labels"),
    ],
)
def test_cifar_is_read_from_its_own_format(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    n_classes: int,
    train_files: list[str],
    test_file: str,
    key: str,
) -> None:
    written = write_cifar(tmp_path, monkeypatch, name)
    data = load_images(name, data_root=tmp_path)
    pixels = np.concatenate([written[file]["data"] for file in train_files]).reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal(data.train_images.numpy(), pixels)
    assert data.train_labels.tolist() == [label for file in train_files for label in written[file][key]]
    np.testing.assert_array_equal(data.test_images.numpy(), written[test_file]["data"].reshape(-1, 3, 32, 32))
    assert data.test_labels.tolist() == written[test_file][key]
    assert data.classes == tuple(f"class {i}" for i in range(n_classes))
    assert (data.channels, data.n_classes) == (3, n_classes)


def write_idx(path: Path, array: np.ndarray) -> None:
    """The idx format: two zero bytes, the type (8 is uint8), the number of axes, their lengths, the values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes())


def test_fashion_mnist_is_read_from_its_own_format(tmp_path: Path) -> None:
    arrays = {}
    for part, prefix, n in (("train", "train", 11), ("test", "t10k", 5)):
        arrays[f"{part}_images"] = RNG.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        arrays[f"{part}_labels"] = RNG.integers(0, 10, n, dtype=np.uint8)
        write_idx(tmp_path / "FashionMNIST/raw" / f"{prefix}-images-idx3-ubyte", arrays[f"{part}_images"])
        write_idx(tmp_path / "FashionMNIST/raw" / f"{prefix}-labels-idx1-ubyte", arrays[f"{part}_labels"])
    data = load_images("fashion_mnist", data_root=tmp_path)
    for part in ("train", "test"):
        np.testing.assert_array_equal(getattr(data, f"{part}_images")[:, 0].numpy(), arrays[f"{part}_images"])
        assert getattr(data, f"{part}_labels").tolist() == arrays[f"{part}_labels"].tolist()
    assert data.classes[0] == "T-shirt/top"
    assert (data.channels, data.n_classes) == (1, 10)


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "cifar100"])
def test_missing_data_set_says_which_options_to_pass(tmp_path: Path, name: str) -> None:
    message = rf"The folder `.*` does not hold an intact copy of {name} .* pass `--download` .* or `--data-root`"
    with pytest.raises(FileNotFoundError, match=message):
        load_images(name, data_root=tmp_path)


def test_damaged_data_set_says_which_options_to_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, monkeypatch, "cifar100")
    dump(tmp_path / "cifar-100-python" / "train", {"data": None})
    with pytest.raises(FileNotFoundError, match=r"does not hold an intact copy of cifar100 .* pass `--download`"):
        load_images("cifar100", data_root=tmp_path)


def test_data_sets_are_looked_for_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"The folder `data` does not hold"):
        load_images("cifar10")
    write_cifar(tmp_path / "data", monkeypatch, "cifar10")
    assert len(load_images("cifar10").train_images) == 20


def test_failed_download_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(datasets.CIFAR10, "download", fail)
    with pytest.raises(ConnectionError, match=r"The download of cifar10 to the folder `.*` failed: no route to host"):
        load_images("cifar10", data_root=tmp_path, download=True)


# Drawing


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
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    load_images("digits") if draw == "load_images" else DRAWS[draw](3)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


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


# Damaging


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


# Loading


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
