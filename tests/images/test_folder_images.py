"""Folders of images on disk."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_anomaly.images import FolderImages
from lightning_anomaly.images.image_source import ImageSource


def picture(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_images_are_resized_and_cropped_to_a_square_or_transformed(tmp_path):
    picture(tmp_path / "B.JPG", (51, 51, 51), (40, 20))
    picture(tmp_path / "a.png", (255, 0, 0))
    (first, _), (second, _) = FolderImages(tmp_path, 10)
    assert first.shape == second.shape == (3, 10, 10)
    assert torch.allclose(first, torch.tensor(0.2), atol=0.01)
    wide = Image.new("RGB", (30, 10))
    wide.paste((255, 255, 255), (10, 0, 20, 10))
    wide.save(tmp_path / "B.JPG", "png")
    middle, whole = FolderImages(tmp_path, 10)[0]
    assert middle[:, :, 1:-1].eq(1).all()
    assert whole.float().mean() == 85
    transformed, whole = FolderImages(tmp_path, 10, transform=lambda image: torch.tensor(image.size))[0]
    assert transformed.tolist() == [30, 10]
    assert whole.shape == (3, 10, 10)


T, V = ["train"], ["val"]


@pytest.mark.parametrize(
    ("names", "classes", "splits"),
    [
        (["train/cats/a", "train/dogs/b", "val/cats/c"], ["cats", "dogs", "cats"], ["train", "train", "val"]),
        (["cats/test/a", "cats/train/b", "dogs/train/c"], ["cats", "cats", "dogs"], ["test", "train", "train"]),
        (["break/images/a", "break/images/b", "crack/images/c", "d"], ["break", "break", "crack", ""], [""] * 4),
        (["bus/a", "car/b", "train/c"], ["bus", "car", "train"], [""] * 3),
        (["test_set/a", "training_set/b"], [], ["test_set", "training_set"]),
        (["all/a", "all/b"], [], ["", ""]),
        (["d/kiwi/a", "d/lime/b", "milk/a/c", "milk/b/d"], ["d/kiwi", "d/lime", "milk/a", "milk/b"], [""] * 4),
        (["pets/a/other/a", "pets/b/old/b", "pets/b/other/c"], ["a/other", "b/old", "b/other"], [""] * 3),
        (["train/wild/cat/a", "val/tame/cat/b", "val/wild/ox/c"], ["wild/cat", "tame/cat", "wild/ox"], T + V * 2),
    ],
)  # fmt: skip
def test_classes_are_the_level_at_which_folders_differ_and_splits_are_none(tmp_path, names, classes, splits):
    for name in names:
        picture(tmp_path / f"{name}.png", (80, 0, 0))
    found = FolderImages(tmp_path, 8)
    order = sorted(range(len(names)), key=lambda place: f"{names[place]}.png".split("/"))
    assert [found.classes[target] for target in found.targets] == [classes[place] for place in order if classes]
    assert found.splits == [splits[place] for place in order]


@pytest.mark.parametrize(("depth", "classes"), [(None, ["cat/b1", "cat/b2", "dog/b1", "dog/b2"]), (1, ["cat", "dog"])])
def test_folders_inside_a_class_are_classes_unless_the_depth_says_otherwise(tmp_path, depth, classes):
    for name in ("cat/b1/a", "cat/b2/b", "dog/b1/c", "dog/b2/d"):
        picture(tmp_path / f"{name}.png", (80, 0, 0))
    found = FolderImages(tmp_path, 8, class_depth=depth)
    assert found.classes == classes
    notes = ImageSource(found, "images").notes()
    assert [note for note in notes.values() if "`cat/b1`" in note and "`class_depth=1`" in note] == [*notes.values()]
    assert len(notes) == (depth is None)


@pytest.mark.parametrize("name", ["two words", "Ärger", "-dash", "a,b;c", "x'y"])
def test_a_class_has_any_name(tmp_path, name):
    for folder in (name, name.upper(), "plain"):
        picture(tmp_path / folder / "a.png", (80, 0, 0))
    assert FolderImages(tmp_path, 8).classes == sorted({name, name.upper(), "plain"})


def test_a_hidden_folder_is_skipped_with_a_reason(tmp_path):
    for folder in (".hidden", ".git", "cats"):
        picture(tmp_path / folder / "a.png", (80, 0, 0))
    assert FolderImages(tmp_path, 8).skipped == {".hidden": "hidden, as its name begins with a dot"}


def test_values_beyond_bytes_are_scaled_by_the_depth_of_the_folder_and_transparency_is_white(tmp_path):
    ramp = np.linspace(0, 1, 64).reshape(8, 8)
    clear = np.zeros((8, 8, 2), np.uint8)  # black ink of any strength on nothing
    clear[..., 1] = (255 * (1 - ramp)).astype(np.uint8)
    soft = Image.fromarray((255 * ramp).astype(np.uint8))
    soft.putalpha(128)
    for name, pixels in {
        "bytes.png": Image.fromarray((255 * ramp).astype(np.uint8)),
        "float.tif": Image.fromarray(ramp.astype(np.float32)),
        "wide.tif": Image.fromarray((3 * ramp).astype(np.float32)),
        "int32.tif": Image.fromarray((ramp * 2**17).astype(np.int32)),
        "dark.png": Image.fromarray((257 * ramp).astype(np.uint16)),
        "twelve_bits.png": Image.fromarray((4095 * ramp).astype(np.uint16)),
        "sixteen_bits.tif": Image.fromarray((65535 * ramp).astype(np.uint16)),
        "ink.png": Image.fromarray(clear),
        "soft.png": soft,
        "nan.tif": Image.fromarray(np.full((8, 8), np.nan, np.float32)),
        "negative.tif": Image.fromarray(np.full((8, 8), -1, np.int32)),
    }.items():
        pixels.save(tmp_path / name)
    found = FolderImages(tmp_path, 8)
    images = {Path(file).name: place for place, (file, _) in enumerate(found.samples)}
    for name, white in {
        "bytes.png": 1, "float.tif": 0.25, "wide.tif": 0.75, "int32.tif": 1, "dark.png": 0, "twelve_bits.png": 1 / 16,
        "sixteen_bits.tif": 1, "ink.png": 1,
    }.items():  # fmt: skip
        image, whole = found[images[name]]
        assert torch.allclose(image, torch.tensor(white * ramp).float(), atol=0.01), name
        assert torch.allclose(whole / 255, torch.tensor(white * ramp).float(), atol=0.01), name
    assert found[images["soft.png"]][0].amin() == pytest.approx(0.5, abs=0.01)
    (tmp_path / "sixteen_bits.tif").unlink()
    place = images["twelve_bits.png"] - 1
    assert FolderImages(tmp_path, 8)[place][0].amax() == pytest.approx(1, abs=0.01)
    for name in ("nan.tif", "negative.tif"):
        with pytest.raises(ValueError, match="finite"):
            found[images[name]]


def test_files_of_any_name_are_read_or_listed(tmp_path):
    names = ["a/x\ry.png", "a/x\ny.png", "b/x\r\ny.png", *map(os.fsdecode, (b"b/caf\xe9.png", b"\xe9/1.png"))]
    for name in names:
        picture(tmp_path / name, (80, 0, 0))
    (tmp_path / "a" / "note\r.txt").touch()
    found = FolderImages(tmp_path, 8)
    assert {path for path, _ in found.samples} == {str(tmp_path / name) for name in names}
    assert {*found.skipped} == {"a/note\r.txt"}
    source = ImageSource(found, "images")
    assert len([*source.readable_batches()]) == 1
    assert source.unreadable == {}
