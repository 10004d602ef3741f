"""Images are read from every form that they come in, and what is wrong with a file is said."""

import hashlib
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import datasets

from recipes.common.data import (
    load_images,
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
