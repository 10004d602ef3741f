"""The samples of a probe, and the warnings if they change or are sorted by class."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from trainers import QUIET, SmallNet, fit, hook_count, images, loader, said, watcher

pytestmark = QUIET


class Augmented(TensorDataset):
    """Changes its images randomly each time that they are loaded."""

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


# samples


def test_a_probe_may_end_within_a_batch(tmp_path: Path) -> None:
    validation, ours = loader(seed=1), watcher(probe_size=50)
    validation.dataset.tensors[0][[7, 49, 50, 59]] *= 20
    fit(tmp_path, ours, val=validation)
    assert ours.report.n_samples == 50
    assert set(ours.report.by_outlier_score[:2]) == {7, 49}


@pytest.mark.parametrize("kind", ["no usable layer", "images of varying size"])
def test_a_probe_without_maps_ends_at_its_size(tmp_path: Path, kind: str) -> None:
    """Otherwise all validation images would be captured."""

    class Other(SmallNet):
        kept = 0

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            hooked = hook_count(self) > 0
            self.kept += len(batch[0]) * hooked
            x = batch[0][..., : 8 - batch_idx % 2]
            self(x) if kind == "images of varying size" else self.head(x[:, 0, 0, :6])

    ours, module = watcher(probe_size=40), Other()
    with pytest.warns(UserWarning, match="Nothing is measured"):
        fit(tmp_path, ours, module=module, val=loader(200, seed=1), max_epochs=1, num_sanity_val_steps=0)
    assert 40 <= module.kept <= 60


# images that change


def test_images_that_change_give_one_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="probe changed") as caught:
        fit(tmp_path, watcher(), max_epochs=4, val=DataLoader(Augmented(erase), 20))
    assert len(said(caught)) == 1


class ChangesItsInput(SmallNet):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        batch[0].mul_(self.current_epoch)


@pytest.mark.parametrize(
    ("options", "ours"),
    [
        ({"module": ChangesItsInput(), "val_check_interval": 0.5}, {"every_n_validations": 2}),
        ({"val": DataLoader(Augmented(rounding), 20)}, {"probe_size": 50}),
    ],
    ids=["its input", "rounding"],
)
def test_images_that_do_not_change_give_no_warning(tmp_path: Path, options: Any, ours: dict[str, Any]) -> None:
    callback = watcher(**ours)
    fit(tmp_path, callback, max_epochs=4, **options)
    assert len(callback.history) == (8 if "val_check_interval" in options else 4)


def test_another_fit_may_have_other_images(tmp_path: Path) -> None:
    ours = watcher()
    fit(tmp_path, ours).validate(SmallNet(), loader(seed=2), verbose=False)
    fit(tmp_path, ours, val=loader(seed=3))


# classes


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.arange(140) // 20, "first 60 .* have 3 of 7 classes"),
        (torch.arange(200) * 5 % 7, None),
        (torch.arange(120), None),  # more classes than samples in the probe
    ],
    ids=["few", "in turns", "many"],
)
def test_a_probe_sorted_by_class_gives_one_warning(tmp_path: Path, targets: Tensor, message: Any, recwarn: Any) -> None:
    val = DataLoader(TensorDataset(images(len(targets)), targets % 3), 20)
    val.dataset.targets = targets
    fit(tmp_path, watcher(), val=val)
    assert [re.search(message or "", text) is not None for text in said(recwarn)] == ([True] if message else [])
