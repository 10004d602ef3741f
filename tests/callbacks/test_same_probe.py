"""Images that change from one validation to the next are noticed, whoever changes them; those that stay say nothing."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from trainers import QUIET, SmallNet, images, loader, quiet_trainer, said, watcher

from lightning_anomaly.callbacks._samples import same_pixels, sample_pixels

pytestmark = QUIET
MESSAGE = "validation images of the probe changed"


class Augmented(TensorDataset):
    """Its images are changed anew each time that they are loaded."""

    def __init__(self, change: Callable[[Tensor, torch.Generator], Tensor], seed: int = 0) -> None:
        super().__init__(images(seed=seed), torch.arange(60) % 3)
        self.change, self.generator = change, torch.Generator().manual_seed(0)

    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        return self.change(image, self.generator), label


def erase(image: Tensor, generator: torch.Generator) -> Tensor:
    image = image.clone()
    row, column = torch.randint(6, (2,), generator=generator).tolist()
    image[:, row : row + 3, column : column + 3] = 0
    return image


def rounding(image: Tensor, generator: torch.Generator) -> Tensor:
    return image * (1 + 1e-5 * torch.randn(image.shape, generator=generator))


class Reloads(SmallNet):
    """Loads its validation set anew for every epoch, by a function of how often it did."""

    def __init__(self, load: Callable[[int], Any]) -> None:
        super().__init__()
        self.load, self.times = load, 0

    def val_dataloader(self) -> Any:
        self.times += 1
        return self.load(self.times)


def fit(folder: Path, ours: Any, module: Any = SmallNet, train: Any = None, val: Any = None, **options: Any) -> None:
    torch.manual_seed(0)
    module = module()
    reloads = {"reload_dataloaders_every_n_epochs": 1} if isinstance(module, Reloads) else {}
    trainer = quiet_trainer(folder, ours, **{"max_epochs": 4, **reloads, **options})
    trainer.fit(module, train or loader(80), None if reloads else val or loader(seed=1))


# what changes


@pytest.mark.parametrize(
    ("options", "ours", "kind"),
    [
        ({"val": DataLoader(Augmented(erase), 20)}, {}, "validation"),
        ({"module": lambda: Reloads(lambda times: loader(seed=times))}, {}, "validation"),
        ({"train": DataLoader(Augmented(erase), 20)}, {"probe": "train"}, "training"),
    ],
    ids=["augmented", "reloaded", "augmented training"],
)
def test_images_that_change_are_said_once(tmp_path: Path, options: Any, ours: dict[str, Any], kind: str) -> None:
    with pytest.warns(UserWarning, match=f"{kind} images of the probe changed .*`probe = ") as caught:
        fit(tmp_path, watcher(**ours), **options)
    assert len(said(caught)) == 1


# what stays


class AugmentsTraining(SmallNet):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        x, y = batch
        return [x + torch.rand(()) if self.trainer.training or self.trainer.sanity_checking else x, y]


class ChangesItsInput(SmallNet):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        batch[0].mul_(self.current_epoch)


@pytest.mark.parametrize(
    ("options", "ours"),
    [
        ({"module": AugmentsTraining}, {"probe": "train"}),
        ({"module": ChangesItsInput, "val_check_interval": 0.5}, {"every_n_validations": 2}),
        ({"val": DataLoader(Augmented(rounding), 20)}, {"probe_size": 50}),
    ],
    ids=["training", "its input", "rounding"],
)
def test_images_that_stay_are_not_a_word(tmp_path: Path, options: Any, ours: dict[str, Any]) -> None:
    callback = watcher(**ours)
    fit(tmp_path, callback, **options)
    assert len(callback.history) == (8 if "val_check_interval" in options else 4)


def test_another_fit_starts_anew(tmp_path: Path) -> None:
    ours = watcher()
    trainer = quiet_trainer(tmp_path, ours, max_epochs=2)
    trainer.fit(SmallNet(), loader(80), loader(seed=1))
    trainer.validate(SmallNet(), loader(seed=2), verbose=False)
    fit(tmp_path, ours, val=loader(seed=3), max_epochs=2)


def test_a_few_pixels_of_each_image_are_kept_whatever_a_batch_is() -> None:
    batches = [None, {"x": torch.arange(5)}, torch.tensor(1.0), torch.rand(3, 0)]
    batches += [torch.rand(2, 1, 3, 4, 5), torch.full((2, 3), torch.nan), torch.full((2, 3), torch.inf)]
    for batch in batches:
        assert same_pixels(sample_pixels(batch, 100), sample_pixels(batch, 100))
    large = torch.rand(16, 3, 224, 224)
    before = sample_pixels(large, 10)
    assert before.numel() == 10 * 3 * 4 * 4
    large.zero_()
    assert before.max() > 0
    assert not same_pixels(before, sample_pixels(large, 10))


# classes


class Unscored(SmallNet):
    """With seven classes; what it is to say of images does not matter in a validation."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 7)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.arange(140) // 20, "first 60 .* have 3 of 7 classes"),
        (torch.arange(100) // 20 % 4, "first 60 .* have 3 of 4 classes"),
        (torch.arange(200) * 5 % 7, None),
        (torch.arange(120), None),  # more than there are outputs: positions, say
        (torch.rand(120).round(decimals=1), None),
    ],
    ids=["few", "most", "in turns", "positions", "numbers"],
)
def test_a_probe_that_is_sorted_by_class_is_said_once(tmp_path: Path, targets: Tensor, message: str | None) -> None:
    val = DataLoader(TensorDataset(images(len(targets)), targets), 20)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, watcher(), Unscored, val=val, max_epochs=2)
    assert [re.search(message or "", text) is not None for text in said(caught)] == ([True] if message else [])
