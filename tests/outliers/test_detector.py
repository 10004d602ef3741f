"""A loaded detector gives the same scores, p-values are exact, and broken files do not change other results."""

import copy
import math
import pickle
import re

import numpy as np
import pytest
import torch
from datasets import Items
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from torch import Tensor, nn
from torch.utils.data import Subset

from lightning_anomaly import OutlierDetector, OutlierReport, find_outliers
from lightning_anomaly.images import FolderImages
from lightning_anomaly.images.batches import WithWholeImage
from lightning_anomaly.network.features import SampleStatistics
from lightning_anomaly.network.pretrained import Pretrained
from lightning_anomaly.outliers.fitting import scores_with_larger
from lightning_anomaly.scores.distributions import conformal_p_values
from lightning_anomaly.scores.pixels import pixel_names
from lightning_anomaly.scores.views import fit_views, score_views

DIGITS = torch.from_numpy(load_digits().images).float()[:, None] / 16


def classifier(classes: int = 10) -> nn.Sequential:
    torch.manual_seed(0)
    convs = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3)
    return nn.Sequential(*convs, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes))


def assert_same_scores(scores: Tensor, expected: Tensor) -> None:
    """The features of an untrained network are nearly parallel, so that their rounding shows in the fourth digit."""
    torch.testing.assert_close(scores, expected, rtol=5e-4, atol=5e-4)


@pytest.fixture(scope="module")
def fitted() -> OutlierDetector:
    return OutlierDetector(classifier()).fit(DIGITS[:800])


def test_a_loaded_detector_gives_the_same_scores(fitted, tmp_path):
    fitted.save(tmp_path / "detector.pt")
    loaded = OutlierDetector.load(tmp_path / "detector.pt", classifier())
    # Drawn as dark beside the reference; the last one is a copy of one of its images.
    images = torch.cat([0.5 * DIGITS[800:900], torch.rand(5, 1, 8, 8), DIGITS[7:8]])
    scores = fitted.score(images)
    assert torch.equal(loaded.score(images), scores)
    assert torch.equal(loaded.p_values(scores), fitted.p_values(scores))
    report, expected = loaded.search(images), fitted.search(images)
    assert report.samples.equals(expected.samples)
    assert [part.entries for part in report.lists()] == [part.entries for part in expected.lists()]
    assert [(group.positions, group.reference) for group in report.duplicates if group.identical] == [([105], [7])]
    assert {*report.pictures} >= {*report.top(50)}
    assert all(torch.equal(picture, expected.pictures[place]) for place, picture in report.pictures.items())


@pytest.mark.filterwarnings("ignore:1 of the (92|61) images")
def test_parts_are_joined_to_the_report_of_a_search_with_copies_across_parts(fitted):
    images = torch.cat([DIGITS[800:850], torch.rand(40, 1, 8, 8), DIGITS[[810, 0]]])
    images[5] = torch.nan
    positions = torch.randperm(92, generator=torch.Generator().manual_seed(0)).split([30, 61, 1])
    parts = [fitted.search_part(images[places]) | {"position": places.numpy()} for places in positions]
    joined, expected = fitted.join_parts(parts), fitted.search(images)
    assert_same_scores(joined.scores, expected.scores)
    assert joined.significant == expected.significant != []
    assert joined.unusable == expected.unusable == [5]
    assert sorted(joined.notes.values()) == sorted(expected.notes.values()) != []
    assert [group[:3] for group in joined.duplicates] == [group[:3] for group in expected.duplicates]
    copies = [(group.positions, group.reference) for group in joined.duplicates]
    assert ([10, 90], []) in copies
    assert ([91], [0]) in copies
    with pytest.raises(ValueError, match="should hold results"):
        fitted.join_parts([])


def photographs(places):
    """Make a data set of files, of which some are broken."""

    def read(place):
        if (number := int(places[place])) % 20 < 8:
            raise OSError(f"{number} is broken")
        image = DIGITS[800 + number % 900]
        return WithWholeImage(image, image.mul(255).byte().expand(3, -1, -1))

    return Items(len(places), read, samples=[(f"{place}.png", -1) for place in places])


def test_a_folder_of_more_than_8_bits_is_read_as_the_reference_was(tmp_path):
    """One that was 16 times as dark looked like it, as each folder had a white of its own."""
    generator = np.random.default_rng(0)
    for name, white, count in (("reference", 65535, 120), ("dark", 4095, 20)):
        (tmp_path / name).mkdir()
        for place in range(count):
            pixels = white * generator.uniform(0.2, 1, (32, 32))
            Image.fromarray(pixels.astype(np.uint16)).save(tmp_path / name / f"{place:03}.png")
    model = nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(147, 3))
    OutlierDetector(model).fit(FolderImages(tmp_path / "reference")).save(tmp_path / "detector.pt")
    loaded, dark = OutlierDetector.load(tmp_path / "detector.pt", model), FolderImages(tmp_path / "dark")
    found = loaded.search(dark)
    assert len(found.significant) == 20
    assert found.whites == loaded.whites == {"I;16": 65536}
    assert dark.whites == {"I;16": 4096}


@pytest.fixture(scope="module")
def of_photographs() -> OutlierDetector:
    readable = Subset(photographs(range(900)), [name for name in range(900) if name % 20 >= 8])
    return OutlierDetector(classifier()).fit(readable)


def test_a_part_may_have_only_broken_images(of_photographs):
    with pytest.warns(UserWarning, match="4 of the 4 images"):
        parts = [of_photographs.search_part(photographs(places)) for places in torch.arange(60).split(4)]
    joined = of_photographs.join_parts(parts)
    with pytest.warns(UserWarning, match="24 of the 60 images"):
        expected = of_photographs.search(photographs(range(60)))
    assert_same_scores(joined.scores, expected.scores)
    assert [*joined.samples["error"]] == [*expected.samples["error"]]
    assert (joined.samples["error"] != "").sum() == 24
    assert sorted(joined.notes.values()) == sorted(expected.notes.values())
    assert [*joined.samples["name"]] == [*expected.samples["name"]]
    assert all(part.keys() == parts[0].keys() for part in parts)
    with pytest.raises(ValueError, match="0 is broken"):
        of_photographs.search(photographs(range(8)))


def test_images_behind_many_broken_ones_in_a_part_have_their_scores(of_photographs):
    broken, good = [20 * n for n in range(110)], range(8, 20)
    with pytest.warns(UserWarning, match="110 of the 122 images"):
        part = of_photographs.search_part(photographs([*broken, *good]))
    assert_same_scores(torch.from_numpy(part["score"][110:]), of_photographs.search(photographs(good)).scores)


def test_a_model_without_features_is_scored_by_the_look_alone():
    """Its output is that of no linear layer, and there is no convolution."""
    with pytest.warns(UserWarning, match="no content scores"):
        report = OutlierDetector(nn.Sequential(nn.Flatten(), nn.LayerNorm(64))).fit(DIGITS[:400]).search(DIGITS[400:])
    assert torch.equal(report.scores, report.look_scores)
    assert report.content_scores.isnan().all()
    with pytest.raises(ValueError, match="`by`"):
        report.top(3, by="content")


def test_a_detector_can_be_copied_pickled_and_used_by_a_compiled_model(fitted, tmp_path):
    images = DIGITS[800:850]
    expected = fitted.score(images)
    for copied in (copy.deepcopy(fitted), pickle.loads(pickle.dumps(fitted))):
        assert torch.equal(copied.score(images), expected)
    fitted.save(tmp_path / "detector.pt")
    compiled = OutlierDetector.load(tmp_path / "detector.pt", torch.compile(classifier(), backend="eager"))
    torch.testing.assert_close(compiled.score(images), expected)


def test_a_model_with_other_weights_or_layers_is_named_in_a_warning(fitted, tmp_path):
    fitted.save(tmp_path / "detector.pt")
    other = classifier()
    with torch.no_grad():
        other[0].bias += 1
    narrow = nn.Sequential(*classifier()[:4], nn.Conv2d(16, 8, 3), *classifier()[5:8], nn.Linear(8, 10))
    with pytest.warns(UserWarning, match="weights are not those"):
        OutlierDetector.load(tmp_path / "detector.pt", other)
    for model, found in ((narrow, "8 of them"), (nn.Conv2d(1, 1, 1), "none")):
        with pytest.warns(UserWarning, match="weights are not those"):
            loaded = OutlierDetector.load(tmp_path / "detector.pt", model)
        with pytest.raises(ValueError, match=f"same layer.*Found .*{found}"):
            loaded.score(DIGITS[:5])


def test_a_file_that_is_none_is_refused(fitted, tmp_path):
    fitted.save(tmp_path / "detector.pt")
    (tmp_path / "text.pt").write_text("not a detector")
    torch.save({"version": 1}, tmp_path / "old.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    content = (tmp_path / "detector.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.pt").touch()
    state = torch.load(tmp_path / "detector.pt", weights_only=False)
    torch.save({name: part for name, part in state.items() if name != "fit"}, tmp_path / "lacking.pt")
    for name in ("text", "old", "list", "cut", "empty", "lacking"):
        with pytest.raises(ValueError, match=rf"version 14. Found '{name}.pt'"):
            OutlierDetector.load(tmp_path / f"{name}.pt", classifier())
    with pytest.raises(FileNotFoundError):
        OutlierDetector.load(tmp_path / "nothing.pt", classifier())
    with pytest.raises(NotFittedError, match="should be fitted first"):
        OutlierDetector(classifier()).score(DIGITS[:5])
    with pytest.raises(ValueError, match=r"`images`.*\(1, 8, 8\)"):
        fitted.score(torch.rand(5, 1, 9, 9))


def test_score_takes_no_images_one_image_and_no_bytes(fitted):
    assert fitted.score(DIGITS[:0]).shape == (0,)
    with pytest.raises(ValueError, match="uint8"):
        fitted.score(DIGITS[:5].byte())

    class Squeezing(nn.Module):
        """Drops the axis of a single image, and changes its input in place."""

        def __init__(self) -> None:
            super().__init__()
            self.net = classifier()

        def forward(self, images: Tensor) -> Tensor:
            return self.net(images.mul_(2)).squeeze()

    detector, images = OutlierDetector(Squeezing()).fit(DIGITS[:200]), DIGITS[200:203].clone()
    alone = torch.cat([detector.score(image[None]) for image in images])
    torch.testing.assert_close(alone, detector.score(images), rtol=1e-5, atol=1e-5)
    assert torch.equal(images, DIGITS[200:203])


def seen(report: OutlierReport) -> set[str]:
    reasons = [report.outlier_reasons(position).get("content", "") for position in range(len(report.scores))]
    return {name for reason in reasons for name in re.findall(r"the network sees ([\w ]+)", reason)}


@pytest.mark.parametrize(
    ("classes", "names", "allowed"),
    [(10, [*"abcdefghij"], "[a-j]"), (1, ["no", "yes"], "no|yes"), (10, ["a"], r"class \d")],
)
def test_reasons_name_the_classes_that_the_network_is_sure_to_see(classes, names, allowed):
    detector = OutlierDetector(classifier(classes), names).fit(DIGITS[:200])
    assert not seen(detector.search(torch.rand(20, 1, 8, 8)))
    found = seen(detector.search(900 * torch.rand(20, 1, 8, 8)))
    assert found
    assert all(re.fullmatch(allowed, name) for name in found)


def test_without_a_model_the_pretrained_network_and_its_class_names_are_used(monkeypatch):
    network = Pretrained("Net", classifier(), tuple("abcdefghij"))
    monkeypatch.setattr("lightning_anomaly.outliers.detector.load_pretrained", lambda: network)
    for given, names in ((None, "abcdefghij"), ([*"klmnopqrst"], "klmnopqrst")):
        found = seen(find_outliers(900 * torch.rand(20, 1, 8, 8), reference=DIGITS[:200], class_names=given))
        assert found
        assert found <= {*names}


@pytest.mark.parametrize("count", [100, 200])
def test_p_values_of_both_scores_are_exact_for_small_references(count):
    """When the scale of scores was fitted to the calibration images, P(p <= 0.1) was 0.126."""
    fits, shares = 60, {}
    for seed in range(fits):
        generator = torch.Generator().manual_seed(seed)
        features, logits, pixels = (torch.randn(count + 200, width, generator=generator) for width in (40, 5, 55))
        samples = SampleStatistics(pixels, (1, 8, 8), features, 9 * logits)
        samples = samples._replace(pixels=pixels[:, : len(pixel_names(1))])
        parts = slice(3 * count // 8), slice(3 * count // 8, count // 2), slice(count // 2, count), slice(count, None)
        fit, scale, rest, new = (samples.select(part) for part in parts)
        views = fit_views(fit, scale)
        known, found = (scores_with_larger(score_views(views, part), torch.zeros(0)) for part in (rest, new))
        for name, scores in found.items():
            p_values = conformal_p_values(scores, known[name].sort().values)
            for level in (0.05, 0.1):
                shares.setdefault((name, level), []).append((p_values <= level).double().mean().item())
    assert len(shares) == 6
    for (_, level), measured in shares.items():
        share = torch.tensor(measured)
        exact = math.floor(level * (1 + count / 2)) / (1 + count / 2)
        assert share.mean().item() == pytest.approx(exact, abs=3.5 * share.std().item() / math.sqrt(fits))


def test_equal_images_in_any_batch_give_valid_p_values():
    """A tenth are blank: differences within rounding once gave P(p <= 0.01) = 0.10 with batches of one image."""
    reference, new = DIGITS[:600].clone(), DIGITS[600:1200].clone()
    reference[::10], new[::10] = 0, 0
    detector = OutlierDetector(classifier()).fit(reference)
    whole, alone = (detector.search(new, batch_size=size) for size in (64, 1))
    assert_same_scores(alone.scores, whole.scores)
    for level in (0.01, 0.05):
        assert (alone.p_values <= level).double().mean().item() <= level + 3.5 * math.sqrt(level / 300)


@pytest.mark.filterwarnings("ignore:.*(path of its folders|cannot be read|tell nothing)")
def test_parts_of_a_folder_give_the_lists_and_notes_of_one_search(tmp_path):
    """With nested classes, and files that cannot be read."""
    for place, image in enumerate(DIGITS[:330]):
        folder = tmp_path / ("round/zero", "round/six", "thin/one")[place % 3]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = image[0].mul(255).byte().numpy()
        Image.fromarray(pixels).resize((16, 16)).save(folder / f"{place:03}.png")
    for place in (40, 250):
        (tmp_path / "thin/one" / f"{place:03}x.png").write_bytes(b"\x89PNG")
    images = FolderImages(tmp_path, 16)
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 3))
    detector = OutlierDetector(model).fit(images)
    parts = [detector.search_part(Subset(images, places)) for places in torch.arange(332).split(100)]
    joined, expected = detector.join_parts(parts, str(tmp_path)), detector.search(images)
    assert sorted(joined.notes.values()) == sorted(expected.notes.values())
    assert "2 of the 332 images" in str(joined.notes)
    rows = [
        [(part.name, part.count, [row["name"] for _, row in part.rows]) for part in report.lists()]
        for report in (joined, expected)
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 20, 20)], ids=["channels", "size"])
def test_a_reference_of_another_shape_is_an_error_that_names_both(shape):
    images, reference = torch.rand(120, 3, 16, 16), torch.rand(120, *shape)
    with pytest.raises(ValueError, match=rf"reference, {re.escape(str(shape))}. Found \(3, 16, 16\)"):
        find_outliers(images, nn.Conv2d(3, 4, 3), reference)
