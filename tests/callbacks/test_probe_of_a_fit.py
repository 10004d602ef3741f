"""The samples of a probe, and the warnings if they change, are sorted by class or cannot be run."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from functional import same
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, SequentialSampler, TensorDataset
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


class Noisy(TensorDataset):
    """Images as bytes, loaded with random numbers of torch and NumPy."""

    def __init__(self, samples: int = 90) -> None:
        super().__init__((images(samples) * 200).byte(), torch.arange(samples) % 3)
        self.indices: list[int] = []

    def __getitem__(self, index: int) -> Any:
        self.indices.append(index)
        x, y = super().__getitem__(index)
        return x + torch.randint(20, ()).byte() + np.uint8(np.random.randint(20)), y


def test_a_training_probe_is_a_fixed_sample_and_draws_no_random_numbers(tmp_path: Path) -> None:
    class Hooks(SmallNet):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [batch[0].float() / 255, batch[1]]

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            assert batch[0].max() <= 1
            assert not (self.trainer.training and not torch.is_grad_enabled())
            return batch

    def train(*callbacks: Any) -> tuple[Noisy, dict[str, Tensor], list[Any]]:
        np.random.seed(3)
        dataset, module = Noisy(), Hooks()
        train_loader = DataLoader(dataset, batch_size=30, shuffle=True)
        fit(tmp_path, *callbacks, module=module, train=train_loader, max_epochs=3)
        return dataset, module.state_dict(), [torch.rand(2).tolist(), np.random.rand()]

    callback = watcher(probe="train")
    bare, bare_weights, bare_numbers = train()
    watched, weights, numbers = train(callback)
    assert numbers == bare_numbers
    assert same(weights, bare_weights)
    assert [bare.indices[i : i + 90] for i in range(0, 270, 90)] == [watched.indices[i : i + 90] for i in (0, 151, 301)]
    # One image is read before the first probe, for its size.
    probes = [watched.indices[i : i + 60] for i in (91, 241, 391)]
    assert probes[0] == probes[1] == probes[2] != sorted(probes[0])
    assert len(set(probes[0])) == 60
    assert callback.report.n_samples == 60


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
    with pytest.warns(UserWarning, match="Nothing is watched"):
        fit(tmp_path, ours, module=module, val=loader(200, seed=1), max_epochs=1, num_sanity_val_steps=0)
    assert 40 <= module.kept <= 60


def test_positions_of_a_training_probe_are_drawn_once_in_a_fit(tmp_path: Path) -> None:
    class Sampler(SequentialSampler):
        copies = 0

        def __deepcopy__(self, memo: Any) -> Any:
            Sampler.copies += 1
            return self

    data = loader(80).dataset
    fit(tmp_path, watcher(probe="train"), train=DataLoader(data, 20, sampler=Sampler(data)), max_epochs=3)
    assert Sampler.copies == 1


class NoForward(SmallNet):
    """Has no `forward`; its steps call its layers."""

    forward = pl.LightningModule.forward

    def loss(self, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(SmallNet.forward(self, batch[0]), batch[1])


def test_a_training_probe_that_cannot_be_run_gives_one_warning(tmp_path: Path) -> None:
    saves, ours, waits = ModelCheckpoint(tmp_path), watcher(probe="train"), EarlyStopping("anomaly_filters/rise")
    with pytest.warns(UserWarning, match="could not analyze the filters .*forward.* Nothing is watched") as caught:
        fit(tmp_path, ours, waits, module=NoForward())
    (text,) = said(caught)
    assert text.endswith("'anomaly_filters/rise' will only see a constant.")
    assert ours.report is None
    assert ours.history[1]["metrics"]["count"] == 0
    fit(tmp_path, first := watcher(probe="train"), saves, max_epochs=1)
    with pytest.warns(UserWarning, match="could not analyze .* last values"):  # those of the checkpoint
        fit(tmp_path, ours := watcher(probe="train"), module=NoForward(), ckpt_path=saves.best_model_path)
    assert ours.history[1]["metrics"] == first.history[0]["metrics"]


# images that change


@pytest.mark.parametrize(
    ("options", "ours", "kind"),
    [
        ({"val": DataLoader(Augmented(erase), 20)}, {}, "validation"),
        ({"train": DataLoader(Augmented(erase), 20)}, {"probe": "train"}, "training"),
    ],
    ids=["validation", "training"],
)
def test_images_that_change_give_one_warning(tmp_path: Path, options: Any, ours: dict[str, Any], kind: str) -> None:
    with pytest.warns(UserWarning, match=f"{kind} images of the probe changed .*`probe = ") as caught:
        fit(tmp_path, watcher(**ours), max_epochs=4, **options)
    assert len(said(caught)) == 1


# images that do not change


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
        ({"module": AugmentsTraining()}, {"probe": "train"}),
        ({"module": ChangesItsInput(), "val_check_interval": 0.5}, {"every_n_validations": 2}),
        ({"val": DataLoader(Augmented(rounding), 20)}, {"probe_size": 50}),
    ],
    ids=["training", "its input", "rounding"],
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


class Unscored(SmallNet):
    """Has seven classes and a validation without a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 7)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.arange(140) // 20, "first 60 .* have 3 of 7 classes"),
        (torch.arange(200) * 5 % 7, None),
        (torch.arange(120), None),  # more values than outputs, such as positions
    ],
    ids=["few", "in turns", "positions"],
)
def test_a_probe_sorted_by_class_gives_one_warning(tmp_path: Path, targets: Tensor, message: Any, recwarn: Any) -> None:
    val = DataLoader(TensorDataset(images(len(targets)), targets), 20)
    fit(tmp_path, watcher(), module=Unscored(), val=val)
    assert [re.search(message or "", text) is not None for text in said(recwarn)] == ([True] if message else [])
