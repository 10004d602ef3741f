"""The output of a fit has a confidence if it can be scores of the classes in its batches; otherwise a line says why."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate
from trainers import SmallNet, fit, images, loader, said

from lightning_anomaly import MemorizationCallback, two_sample_test

RNG = torch.Generator().manual_seed(0)
CLASSES = torch.arange(60) % 5
ONE_HOT = torch.eye(5)[CLASSES]
SEVERAL = torch.rand(60, 5, generator=RNG) < 0.5


class Answers(SmallNet):
    def __init__(self, width: int, answer: Callable[[Tensor], Tensor] = lambda scores: scores) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.head = nn.Linear(6, width)
        self.answer = answer

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(super().forward(x))

    def loss(self, batch: Any) -> Tensor:
        return (self(batch[0])[..., :5] + 1).square().mean()


def reconstruct(scores: Tensor) -> Tensor:
    return scores.reshape(-1, 1, 8, 8)


def batches(*targets: Tensor, seed: int = 0) -> DataLoader[Any]:
    return DataLoader(TensorDataset(images(60, seed=seed), *targets), 20)


@pytest.mark.parametrize(
    ("model", "targets"),
    [
        (Answers(1), [torch.randn(60, generator=RNG)]),
        (Answers(1), [torch.rand(60, 1, generator=RNG)]),
        (Answers(1, lambda scores: scores[:, 0]), [torch.arange(60) // 2, torch.arange(60)]),
        (Answers(4), [torch.rand(60, 4, generator=RNG)]),
        (Answers(5), [SEVERAL.float()]),
        (Answers(5), [SEVERAL.long()]),
        (Answers(4), [CLASSES]),
        (Answers(32, lambda scores: scores.roll(16, 1)), [CLASSES]),
        (Answers(8, functional.normalize), [CLASSES]),
        (Answers(8), [images(60, seed=7), images(60, seed=8)]),
        (Answers(64, reconstruct), [CLASSES % 2]),
    ],
    ids=[
        *("regression", "regression (N, 1)", "ages", "corners", "labels", "integer labels"),
        *("few outputs", "embeddings", "normalized embeddings", "triplets", "reconstructions"),
    ],
)
def test_an_output_that_is_no_class_scores_has_no_confidence(
    tmp_path: Path, model: Answers, targets: list[Tensor]
) -> None:
    if model.head.out_features == 32:  # an embedding of which any number may be the largest
        model.head.bias.data[:16] = 9
    compared, loaders = MemorizationCallback(), [batches(*targets, seed=seed) for seed in (0, 1)]
    with pytest.warns(UserWarning, match="The output is not compared") as caught:
        fit(tmp_path, compared, module=model, train=loaders[0], val=loaders[1])
    assert len(said(caught)) == 1
    assert not any(name.startswith("confidence") for name in compared.history[-1]["metrics"])
    assert "fraction" in compared.history[-1]["metrics"]
    with pytest.warns(UserWarning, match="The output is not compared"):
        two_sample_test(model, *loaders)


@pytest.mark.parametrize(
    ("width", "targets"),
    [
        (1, CLASSES.float() % 2),
        (1, CLASSES.float()[:, None] % 2),
        (5, CLASSES.float()),
        (5, CLASSES[:, None]),
        (5, torch.where(torch.arange(60) < 9, -100, CLASSES)),
        (5, ONE_HOT),
        (5, ONE_HOT.long()),
        (5, 0.3 * ONE_HOT + 0.7 * ONE_HOT.flip(0)),
        (9, CLASSES),
    ],
    ids=[
        *("one logit", "one logit (N, 1)", "float", "column", "unknown", "one-hot", "integer one-hot", "mixup"),
        "more outputs",
    ],
)
def test_scores_of_classes_are_compared_whatever_the_type_of_the_labels(
    tmp_path: Path, width: int, targets: Tensor
) -> None:
    model, compared = Answers(width), MemorizationCallback()
    model.head.weight.data[5:], model.head.bias.data[5:] = 0, -9  # outputs without a class are learned first
    fit(tmp_path, compared, module=model, train=batches(targets), val=batches(targets, seed=1))  # warnings are errors
    assert "auc" in compared.history[-1]["metrics"]


def test_masks_and_a_target_beside_others_are_classes(tmp_path: Path) -> None:
    masks = (images(60) > 0.5).float()
    beside = torch.rand(60, 3, generator=RNG), CLASSES % 2
    for model, targets in ((Answers(64, reconstruct), [masks]), (Answers(1), beside)):
        compared = MemorizationCallback()
        fit(tmp_path, compared, module=model, train=batches(*targets), val=batches(*targets, seed=1))
        assert "auc" in compared.history[-1]["metrics"]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(loader(60).dataset)


def several_sizes(samples: list[Any]) -> Any:
    return [x[:, : 5 + place % 4] for place, (x, _) in enumerate(samples)], default_collate([y for _, y in samples])


class Padded(SmallNet):
    def loss(self, batch: Any) -> Tensor:
        padded = torch.stack([functional.pad(x, (0, 0, 0, 8 - x.shape[1])) for x in batch[0]])
        return super().loss([padded, batch[1]])

    def log(self, *args: Any, **options: Any) -> None:
        """Log as of 20 images, as Lightning cannot tell."""
        super().log(*args, **{**options, "batch_size": 20})


@pytest.mark.parametrize(
    ("module", "train"),
    [
        (SmallNet, DataLoader(Stream(), 20)),
        (Padded, DataLoader(loader(60).dataset, 20, collate_fn=several_sizes)),
    ],
    ids=["iterable", "several sizes"],
)
def test_advice_is_what_can_help(tmp_path: Path, module: Any, train: Any) -> None:
    with pytest.warns(UserWarning, match="Could not compare.*`train_inputs`") as caught:
        fit(tmp_path, MemorizationCallback(), module=module(), train=train, max_epochs=1)
    (text,) = said(caught)
    assert "`logits_from`" not in text
