"""Folders of images on disk."""

from pathlib import Path

import torch
from PIL import Image

from lightning_anomaly.images.files import FolderImages, probe_positions


def picture(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_images_are_normalised_by_channel(tmp_path):
    picture(tmp_path / "a.png", (51, 102, 255))
    found = FolderImages(tmp_path, 8)
    found.normalize([0.5, 0.0, 0.5], [0.25])
    torch.testing.assert_close(found[0][0][:, 4, 4], torch.tensor([-1.2, 1.6, 2.0]))


def test_images_are_resized_and_cropped_to_a_square(tmp_path):
    picture(tmp_path / "B.JPG", (51, 51, 51), (40, 20))
    picture(tmp_path / "a.png", (255, 0, 0))
    for channels in (3, 1):
        (first, _), (second, _) = FolderImages(tmp_path, 10, gray=channels == 1)
        assert first.shape == second.shape == (channels, 10, 10)
        assert torch.allclose(first, torch.tensor(0.2), atol=0.01)
    wide = Image.new("RGB", (30, 10))
    wide.paste((255, 255, 255), (10, 0, 20, 10))
    wide.save(tmp_path / "B.JPG", "png")
    middle, whole = FolderImages(tmp_path, 10, gray=False)[0]
    assert middle[:, :, 1:-1].eq(1).all()
    assert whole.float().mean() == 85


def test_a_probe_has_images_of_all_classes(tmp_path):
    for index in range(9):
        picture(tmp_path / f"{index // 3}" / f"{index}.png", (80 * (index // 3), 0, 0))
    found = FolderImages(tmp_path, 8, gray=False)
    assert found.labels == [*"000111222"]
    assert [*probe_positions(found, 4)] == [0, 3, 6]
