"""Every function takes images as a tensor, a Dataset or a DataLoader, with the same results and the same errors."""

import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from datasets import NEEDS_FORK, Broken, Items
from reports import facts
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from lightning_anomaly import analyze, find_outliers, two_sample_test
from lightning_anomaly.images.image_source import ImageSource, WithWholeImage, image_hashes

IMAGES = torch.rand(120, 1, 6, 6, generator=torch.Generator().manual_seed(0))
OTHERS = torch.rand(120, 1, 6, 6, generator=torch.Generator().manual_seed(1)) * 1.2
DATA = TensorDataset(IMAGES, torch.arange(120))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))


FUNCTIONS: dict[str, Callable[[nn.Module, Any], Any]] = {
    "analyze": lambda net, images: facts(analyze(net, images)),
    "two_sample_test": lambda net, images: two_sample_test(net, images, OTHERS),
    "find_outliers": lambda net, images: find_outliers(images, net),
}
VALUES: dict[str, Callable[[Any], Any]] = {
    "analyze": lambda found: found,
    "two_sample_test": lambda test: (test.filters, test.train_errors, test.layers["0"].p_value, test.filter_p_value),
    "find_outliers": lambda found: (found.scores, found.look_scores, *found.pictures.values()),
}


@pytest.mark.filterwarnings("ignore:The folders or labels")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_tensor_a_data_set_and_a_loader_give_the_same_results(net: nn.Module, name: str) -> None:
    loader = DataLoader(DATA, 64, shuffle=True)
    tensor, data_set, loaded = (VALUES[name](FUNCTIONS[name](net, images)) for images in (IMAGES, DATA, loader))
    assert facts(data_set) == facts(loaded) == facts(tensor)


class Stream(IterableDataset[Tensor]):
    """Has a length, and inherits an index that fails."""

    def __iter__(self) -> Any:
        return iter(IMAGES)

    def __len__(self) -> int:
        return 120


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("images", "found"),
    [
        (DataLoader(Stream(), 30), "Found Stream"),
        (Stream(), "Found Stream"),
        (DataLoader(DATA, batch_size=None), "Found `batch_size=None`: give"),
        (DataLoader(DATA, 30, sampler=range(100)), "Found a sampler that leaves some out"),
    ],
    ids=["loader of a stream", "stream", "no batches", "sampler"],
)
def test_other_images_are_the_same_short_error(net: nn.Module, name: str, images: Any, found: str) -> None:
    with pytest.raises(ValueError, match=rf"^Parameter `\w+` should .*{found}") as caught:
        FUNCTIONS[name](net, images)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["analyze", "two_sample_test"])
def test_unreadable_images_are_left_out_with_a_warning(net: nn.Module, name: str) -> None:
    message = r"2 of the 120 images in `\w+` cannot be read, .* position 0 \(OSError: image 0"
    with pytest.warns(UserWarning, match=message):
        found = FUNCTIONS[name](net, Broken(IMAGES, 0, 5))
    expected = FUNCTIONS[name](net, IMAGES[[index for index in range(120) if index not in (0, 5)]])
    if name == "analyze":
        assert {**found, "notes": {}} == {**expected, "notes": {}}
    else:
        assert torch.equal(found.train_errors, expected.train_errors)


class Noisy(Dataset[Tensor]):
    """Adds random noise as transforms do, opens its file at the first one, and cannot be copied for its lock."""

    def __init__(self) -> None:
        self.lock, self.openings = threading.Lock(), 0

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Tensor:
        self.openings += not hasattr(self, "file")
        self.file = "open"
        return IMAGES[index] + torch.rand(()) + np.random.rand() + random.random()


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=NEEDS_FORK)])
def test_reading_changes_no_random_state_is_reproducible_and_opens_a_file_once(workers: int) -> None:
    def states() -> list[Any]:
        return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]

    before, data = states(), Noisy()
    context = "fork" if workers else None  # before Python 3.14, the default on Linux
    source = ImageSource(DataLoader(data, 2, num_workers=workers, multiprocessing_context=context), "images")
    first = [images for _, images in source.batches(range(40))]
    assert states() == before
    torch.rand(3), random.random(), np.random.rand()
    again = [images for _, images in source.batches(range(40))]
    assert all(map(torch.equal, first, again))
    assert all(map(torch.equal, first, ImageSource(DataLoader(Noisy(), 2), "images").readable_batches()))
    noise = torch.stack([batch.flatten()[0] - IMAGES[2 * number, 0, 0, 0] for number, batch in enumerate(first)])
    assert len(noise.unique()) == 20  # each batch has other noise
    assert data.openings == (workers == 0)  # a worker opens its own


def test_a_sample_is_the_same_each_time_and_has_positions_of_the_loader() -> None:
    loader = DataLoader(DATA, 4, sampler=range(1, 12))
    state = torch.get_rng_state()
    sources = [ImageSource(loader, "images", max_images=5) for _ in range(2)]
    first, again = ([*source.positions] for source in sources)
    assert first == again
    assert len({*first}) == 5
    assert {*first} <= {*range(1, 12)}
    assert torch.equal(torch.cat([*sources[0].readable_batches()]), IMAGES[first])
    assert torch.equal(torch.get_rng_state(), state)
    assert sorted(ImageSource(loader, "images", max_images=50).positions) == [*range(1, 12)]


def test_hashes_are_the_same_in_every_process() -> None:
    """A detector finds duplicates of its reference also where it was unpickled."""
    assert image_hashes(torch.eye(3)) == [183086002367497032, -3984319658659637962, 1243225475463630026]


def test_whole_images_are_read_beside_the_images() -> None:
    def pictures(index: int) -> WithWholeImage:
        if index == 0:
            raise OSError("broken")
        whole = torch.full((1, 4, 4), 255 - index, dtype=torch.uint8)
        return WithWholeImage(torch.full((1, 2, 2), float(index)), whole)

    source = ImageSource(Subset(Items(9, pictures), [3, 0, 5]), "images", 2)
    read = [*source.with_whole([0, 1, 2])]
    assert torch.cat([images for _, images, _ in read]).mean((1, 2, 3)).tolist() == [3, 0, 5]
    whole = torch.cat([whole for _, _, whole in read])
    assert whole.shape == (3, 1, 4, 4)
    assert whole.dtype == torch.uint8
    assert whole.amax((1, 2, 3)).tolist() == [252, 0, 250]
    assert source.numel == 16  # of a whole image, the larger of both
    for _, images, same in ImageSource(IMAGES, "images").with_whole([0, 2]):
        assert same is images
