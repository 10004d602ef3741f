"""A folder of photographs as users have them: several formats, some broken, some odd."""

import multiprocessing
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import NEEDS_FORK, Items, photograph
from PIL import Image
from reports import table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from lightning_anomaly import OutlierDetector, OutlierReport, find_outliers
from lightning_anomaly.images import FolderImages
from lightning_anomaly.network.pretrained import Pretrained
from lightning_anomaly.outliers import detector

README = Path(__file__).parents[2] / "README.md"


def test_pictures_are_told_by_their_content_and_the_other_files_are_listed(tmp_path: Path, monkeypatch) -> None:
    for name, form in (("a.jfif", "JPEG"), ("b.JPE", "JPEG"), ("c.jp2", "JPEG2000"), ("d.tga", "TGA"), ("e", "PNG")):
        photograph(1).save(tmp_path / name, form)
    broken = {"cut": (tmp_path / "a.jfif").read_bytes()[:300], "text.jpg": b"no image", "film.mpg": b"\0\0\1\xb3"}
    pipes = ["pipe", "pipe.jpg"] if hasattr(os, "mkfifo") else []  # Windows has none
    for name in pipes:
        os.mkfifo(tmp_path / name)
    others = {
        "phone.HEIC": b"\0\0\0\x18ftypheic",
        "notes.txt": b"Python",
        "head.h": b"#define x_width _alloca\n#define x_height 3\n",
    }
    for name, content in {**broken, **others, ".DS_Store": b"", "Thumbs.db": b""}.items():
        (tmp_path / name).write_bytes(content)
    for name in ("class", "locked", ".hidden"):
        (tmp_path / name).mkdir()
        photograph(2).save(tmp_path / name / "f.png")
    (tmp_path / "class" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "nowhere").symlink_to("nothing")
    scan = os.scandir

    def refuse(path: str) -> object:  # root may read every folder
        if path.endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    images = FolderImages(tmp_path)
    names = [Path(file).relative_to(tmp_path).as_posix() for file, _ in images.samples]
    assert names == sorted(["a.jfif", "b.JPE", "c.jp2", "class/f.png", "d.tga", "e", *broken])
    assert [images.classes[target] for target in images.targets] == ["class" if "/" in name else "" for name in names]
    assert sorted(images.skipped) == sorted([*others, ".hidden", str(Path("class/loop")), "locked", "nowhere", *pipes])
    assert "pillow-heif" in images.skipped["phone.HEIC"]
    assert images.skipped["locked"] == "Permission denied"
    for name in broken:
        with pytest.raises(OSError, match=r"cannot identify|Truncated"):
            images[names.index(name)]


def test_a_side_and_a_transform_of_a_folder_are_checked(tmp_path: Path) -> None:
    for name, value in (("size", 0), ("transform", 3)):
        with pytest.raises((TypeError, ValueError), match=f"`{name}`.*{value}"):
            FolderImages(tmp_path, **{name: value})


def test_a_folder_without_images_says_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"film")
    for folder, found in (("nowhere", "nothing at"), ("film.mp4", "a file at"), (".", r"film.mp4 \(not an image")):
        with pytest.raises(ValueError, match=f"Found {found}"):
            FolderImages(tmp_path / folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    photos = tmp_path_factory.mktemp("album") / "photos"
    photos.mkdir()
    for number in range(110):
        photograph(number).save(photos / f"ordinary_{number:03}.jpg")
    plain = photograph(200)
    plain.save(photos / "plain.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    plain.transpose(Image.Transpose.ROTATE_90).save(photos / "turned.png", exif=exif)
    grey = np.asarray(plain.convert("L"))
    Image.fromarray(grey).save(photos / "eight_bits.png")
    Image.fromarray(grey.astype(np.uint16) * 256 + 99).save(photos / "sixteen_bits.png")
    plain.save(photos / "animated.gif", save_all=True, append_images=[photograph(201), photograph(202)])
    plain.convert("CMYK").save(photos / "cmyk.jpg", quality=95)
    Image.new("RGB", (64, 48), (128, 128, 128)).save(photos / "grey.png")
    photograph(203, 5000, 3000).save(photos / "huge.jpg")
    photograph(204, 20, 2000).save(photos / "tall.png")
    (photos / "broken.jpg").write_bytes(b"no image")
    (photos / "notes.txt").write_text("no image")
    return photos


def test_images_of_all_formats_are_read_as_a_person_sees_them(folder: Path) -> None:
    images = FolderImages(folder, size=48)
    positions = {Path(file).stem: position for position, (file, _) in enumerate(images.samples)}
    assert images.classes == images.targets == []
    assert "notes" not in positions
    for name, expected, tolerance in (
        ("turned", "plain", 0),
        ("sixteen_bits", "eight_bits", 0),
        ("animated", "plain", 0.1),
        ("cmyk", "plain", 0.1),
    ):
        assert (images[positions[name]][0] - images[positions[expected]][0]).abs().mean() <= tolerance, name
    for name in ("huge", "tall", "grey"):
        assert [tensor.shape for tensor in images[positions[name]]] == [(3, 48, 48)] * 2


def test_the_readme_s_search_of_a_folder_searches_a_flat_one(folder: Path, tmp_path: Path, monkeypatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (block,) = (code for code in blocks if 'FolderImages("photos")' in code)
    torch.manual_seed(0)
    small = nn.Sequential(nn.Conv2d(3, 8, 7, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10))
    monkeypatch.setattr(detector, "load_pretrained", lambda: Pretrained("Net", small, ("ape",)))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(folder)
    defined: dict[str, object] = {}
    with pytest.warns(UserWarning, match="cannot be read"):
        exec(block, defined)
    report = defined["outliers"]
    assert isinstance(report, OutlierReport)
    assert (tmp_path / "outliers.html").stat().st_size < 10_000_000
    names = [*report.samples["name"]]
    assert report.outlier_reasons(names.index("broken.jpg"))["file"].startswith("cannot be read: Unidentified")
    assert "grey.png" in [names[position] for position in report.top(6)]
    assert "the same everywhere" in "; ".join(report.outlier_reasons(names.index("grey.png")).values())
    assert "broken.jpg" in report.notes["unreadable images"]
    assert "<" not in report.notes["unreadable images"]
    same = [{names[position] for position in group.positions} for group in report.duplicates]
    assert {"plain.png", "turned.png"} in [group & {"plain.png", "turned.png"} for group in same]
    report.save_csv(tmp_path / "all.csv", 3)
    listed = {row["name"]: row["reason"] for row in table(tmp_path / "all.csv")}
    assert {"broken.jpg", "plain.png", "turned.png", "notes.txt"} <= set(listed)
    assert listed["notes.txt"] == "not an image that Pillow reads"
    assert "notes.txt (not an image that Pillow reads)" in str(report)


def test_a_frame_that_the_network_does_not_see_is_found(tmp_path: Path) -> None:
    for number in range(120):
        picture = photograph(number, 96, 48)
        if number == 7:
            picture.paste((0, 0, 0), (0, 0, 12, 48))
            picture.paste((0, 0, 0), (84, 0, 96, 48))
        picture.save(tmp_path / f"{number:03}.png")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 46 * 46, 3))
    report = find_outliers(FolderImages(tmp_path, 48), model)
    assert report.top(1, by="look") == [7]


@pytest.mark.filterwarnings("ignore:The folders or labels")
def test_the_labels_of_a_wrapped_folder_are_not_taken_for_pictures(tmp_path: Path) -> None:
    """Scores had no look, and all images of a class were identical."""
    (tmp_path / "photos").mkdir()
    for number in range(110):
        photograph(number, 16, 16).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "photos" / "notes.txt").touch()
    folder, net = FolderImages(tmp_path / "photos", 16), nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())

    wrapped = Items(len(folder), lambda index: (folder[index][0], index % 2), dataset=folder)

    class Extended(FolderImages):
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index)[0], torch.tensor(float(index % 2))

    plain = torch.stack([image for image, _ in folder])
    expected = find_outliers(plain, net)
    for images in (wrapped, Extended(tmp_path / "photos", 16)):
        report = find_outliers(images, net)
        torch.testing.assert_close(report.look_scores, expected.look_scores)
        assert report.duplicates == expected.duplicates
        report.save_csv(tmp_path / "all.csv")
        assert table(tmp_path / "all.csv")[-1]["name"] == "notes.txt"
    detector = OutlierDetector(net).fit(folder)
    items = [folder[place] for place in range(9)]
    images, pictures = torch.stack([image for image, _ in items]), torch.stack([picture for _, picture in items])
    found = detector.search(Subset(folder, range(9))).scores
    torch.testing.assert_close(detector.score(images, pictures), found)
    detector.save(tmp_path / "detector.pt")
    for fitted in (detector, OutlierDetector.load(tmp_path / "detector.pt", net)):
        with pytest.raises(ValueError, match=r"`images`.*whole images"):
            fitted.score(images)
    with pytest.raises(ValueError, match=r"`images`.*whole images"):
        OutlierDetector(net).fit(plain).score(images, pictures)


def test_values_above_the_white_of_a_folder_are_not_clipped(tmp_path: Path) -> None:
    ramp = np.arange(256).reshape(16, 16)
    for number in range(102):  # the second is not among the images that tell the depth
        Image.fromarray((ramp * (250 if number == 1 else 15)).astype(np.uint16)).save(tmp_path / f"{number:03}.png")
    folder = FolderImages(tmp_path, 16)
    assert folder.whites == {"I;16": 4096}
    with pytest.warns(UserWarning, match="above 4096, white in its folder"):
        brighter = folder[1].whole
    usual = folder[0].whole
    for found in (brighter, usual):
        assert len(found.unique()) > 200


@pytest.mark.filterwarnings("ignore::UserWarning")  # they are few
def test_identical_images_have_the_same_pixels_once_decoded(tmp_path: Path) -> None:
    """A search sees them squeezed."""
    large = photograph(1, 900, 600)
    large.save(tmp_path / "large.png")
    large.save(tmp_path / "saved_again.png", compress_level=1)
    large.putpixel((500, 300), (255, 0, 0))
    large.save(tmp_path / "red_pixel.png")
    for factor in (1, 257):
        ramp = (np.arange(4800).reshape(60, 80) * factor // 20).astype(np.uint16)
        Image.fromarray(ramp).save(tmp_path / f"times_{factor:03}.png")
    report = find_outliers(FolderImages(tmp_path, 16), nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()))
    assert [group.positions for group in report.duplicates if group.identical] == [[0, 2]]


def pooled() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 5))


@pytest.mark.parametrize(
    "context", [pytest.param("fork", marks=NEEDS_FORK), pytest.param("spawn", marks=pytest.mark.slow)]
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_processes_that_read_give_the_same_numbers_and_leave_nothing_behind(folder: Path, context: str) -> None:
    torch.manual_seed(0)
    model = pooled()
    loader = DataLoader(FolderImages(folder, 48), 8, num_workers=2, multiprocessing_context=context)
    sources: list[Any] = [FolderImages(folder, 48, num_workers=workers) for workers in (0, 2)]
    alone, *others = (find_outliers(source, model, batch_size=8) for source in (*sources, loader))
    for report in others:
        assert report.samples.equals(alone.samples)
        assert (alone.samples["error"] != "").any()
        assert [group.positions for group in report.duplicates] == [group.positions for group in alone.duplicates]
    assert multiprocessing.active_children() == []


class Fatal:
    """A transform that ends the process, if it is not this one."""

    def __init__(self) -> None:
        self.process, self.read = os.getpid(), 0

    def __call__(self, image: Image.Image) -> Tensor:
        self.read += 1
        if self.read > 20 and os.getpid() != self.process:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(3, 4, 4) + np.asarray(image, np.float32).mean()


@NEEDS_FORK
def test_a_process_that_dies_ends_the_search_in_one_sentence(folder: Path) -> None:
    images = FolderImages(folder, 48, Fatal(), num_workers=2)
    with pytest.raises(ChildProcessError, match="process that reads `images` died"):
        find_outliers(images, pooled(), batch_size=4)
    assert multiprocessing.active_children() == []
