"""Programs with a truth: a comparison has the numbers by which the loss judges, or one line says why there are none."""

import copy
import io
import pickle
import random
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from trainers import hook_count, quiet_trainer, said, watch_count

from lightning_anomaly import (
    AnomalyFilterCallback,
    AnomalyPruneCallback,
    MemorizationCallback,
    MemorizationEarlyStopping,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*expects fewer than 10 errors", "ignore:.*are not judged")


def lit(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images whose class is the row that is lit."""
    labels = torch.arange(count) % 4
    pictures = 0.3 * torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    pictures[torch.arange(count), :, 2 * labels] += 1
    return pictures, labels


X, Y = lit(80, 0)
XV, YV = lit(80, 1)
SORTED = YV.argsort(stable=True)


def network(width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, width))


class Program(pl.LightningModule):
    """A module whose loss reads `truth` of the images, with `labels` of the training items."""

    width = 4

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = network(self.width)

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def loss(self, batch: Any) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[-1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), batch_size=20)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.05)

    def train_items(self) -> TensorDataset:
        return TensorDataset(X, Y)

    def val_items(self) -> TensorDataset:
        return TensorDataset(XV, YV)

    def truth(self, x: Tensor) -> Tensor:
        return self(x).softmax(1)

    labels: Any = Y.tolist()


def fit(folder: Path, module: Program, *callbacks: Any, **options: Any) -> Any:
    pl.seed_everything(0, verbose=False)
    trainer = quiet_trainer(folder, *callbacks, **options)
    train = DataLoader(module.train_items(), 20, shuffle=True)
    trainer.fit(module, train, DataLoader(module.val_items(), 20))
    assert hook_count(module) == watch_count() == 0
    return trainer


def extra(column: Tensor, items: TensorDataset) -> TensorDataset:
    return TensorDataset(items.tensors[0], column, items.tensors[1])


class Site(Program):
    """A second whole number, validation sorted by class."""

    def train_items(self) -> TensorDataset:
        return extra(torch.arange(80) // 20, super().train_items())

    def val_items(self) -> TensorDataset:
        return extra(torch.arange(80) // 20, TensorDataset(XV[SORTED], YV[SORTED]))


class Flag(Site):
    """A flag that is 0."""

    def train_items(self) -> TensorDataset:
        return extra(torch.zeros(80).long(), Program.train_items(self))

    def val_items(self) -> TensorDataset:
        return extra(torch.zeros(80).long(), TensorDataset(XV[SORTED], YV[SORTED]))


class LastAxis(Program):
    """Classes of positions along the last axis."""

    labels = None

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).permute(0, 2, 3, 1).contiguous()

    def loss(self, batch: Any) -> Tensor:
        target = (batch[0][:, 0].clamp(0, 0.99) * 3).long().unsqueeze(-1)
        return -self(batch[0]).log_softmax(-1).gather(-1, target).mean()

    def truth(self, x: Tensor) -> Tensor:
        return self(x).softmax(-1).movedim(-1, 1)


class Warm(Program):
    """Begins with another loss."""

    def loss(self, batch: Any) -> Tensor:
        scores = self(batch[0])
        return F.cross_entropy(scores, batch[1]) if self.current_epoch else scores.square().mean()


class Coarse(Program):
    """Coarse labels first."""

    def loss(self, batch: Any) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1] if self.current_epoch else batch[1] // 2)


class Shifting(Program):
    """A place in a tuple that shifts with an argument."""

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        scores = self.net(x)
        return (scores, -scores) if y is None else (F.cross_entropy(scores, y), -scores, scores)

    def loss(self, batch: Any) -> Tensor:
        return self(batch[0], batch[1])[0]

    def truth(self, x: Tensor) -> Tensor:
        return self(x)[0].softmax(1)


class TwoHeads(Program):
    """Of two heads of one width the second."""

    def __init__(self) -> None:
        super().__init__()
        self.other = network()

    def forward(self, x: Tensor) -> Any:
        return {"a": self.other(x), "b": self.net(x)}

    def loss(self, batch: Any) -> Tensor:
        return F.cross_entropy(self(batch[0])["b"], batch[1])

    def truth(self, x: Tensor) -> Tensor:
        return self(x)["b"].softmax(1)


class ByHand(Program):
    """A loss by hand, beside a cross entropy that is only logged."""

    labels = None

    def __init__(self) -> None:
        super().__init__()
        self.old = network().requires_grad_(False)

    def loss(self, batch: Any) -> Tensor:
        scores = self.net(batch[0])
        self.log("old", F.cross_entropy(self.old(batch[0]), batch[1]), batch_size=20)
        return (scores.logsumexp(1) - scores.gather(1, batch[1][:, None])[:, 0]).mean()


class ShiftsInPlace(Program):
    """Changes its labels in place."""

    labels = ((Y + 1) % 4).tolist()

    def loss(self, batch: Any) -> Tensor:
        batch[1].add_(1).remainder_(4)
        return super().loss(batch)


class SortsLabels(Program):
    """Is given images and labels in another order, all of which are in the batch."""

    def loss(self, batch: Any) -> Tensor:
        order = batch[1].argsort()
        return F.cross_entropy(self(batch[0])[order], batch[1][order])


class HardHalf(Program):
    """Judges the half with the largest losses."""

    def loss(self, batch: Any) -> Tensor:
        scores = self(batch[0])
        hard = F.cross_entropy(scores, batch[1], reduction="none").topk(10).indices
        return F.cross_entropy(scores[hard], batch[1][hard])


class Merged(Program):
    """Merges classes, of which a sorted validation shows one."""

    width = 3
    labels = Y.clamp(max=2).tolist()

    def loss(self, batch: Any) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1].clamp(max=2))

    def val_items(self) -> TensorDataset:
        return TensorDataset(XV[SORTED], YV[SORTED])


RIGHT = [Site, Flag, LastAxis, Warm, Coarse, Shifting, TwoHeads, ByHand, ShiftsInPlace, HardHalf, Merged]


@pytest.mark.filterwarnings("ignore:MemorizationCallback. The output is not compared")  # at first
@pytest.mark.parametrize("program", RIGHT)
def test_errors_and_labels_are_those_of_the_loss(tmp_path: Path, program: Any) -> None:
    compared, module = MemorizationCallback(), program()
    fit(tmp_path, module, compared, AnomalyFilterCallback(probe_size=80), max_epochs=3)
    report = compared.report
    with torch.no_grad():
        errors = [
            1 - module.eval().truth(items.tensors[0]).amax(1) for items in (module.train_items(), module.val_items())
        ]
    for found, expected in zip((report.train_errors, report.val_errors), errors, strict=True):
        torch.testing.assert_close(found, expected.reshape(80, -1).mean(1))
    labels = report.samples["class"].astype(int).to_dict()
    assert labels == ({} if program.labels is None else dict(enumerate(program.labels)))


def changed(change: Callable[[Tensor], Tensor]) -> type[Program]:
    class Changed(Program):
        def loss(self, batch: Any) -> Tensor:
            return F.cross_entropy(change(self(batch[0])), batch[1])

    return Changed


class Attention(Program):
    """A softmax inside a network, with a loss that knows no classes."""

    def forward(self, x: Tensor) -> Tensor:
        maps = self.net[0](x).flatten(2)
        return (maps * maps.softmax(-1)).sum(-1)

    def loss(self, batch: Any) -> Tensor:
        return F.mse_loss(self(batch[0]), batch[0].flatten(1)[:, :4])


class KeyPoints(Attention):
    def forward(self, x: Tensor) -> Tensor:
        return self.net[0](x).flatten(2)

    def loss(self, batch: Any) -> Tensor:
        points = (self(batch[0]).softmax(-1) * torch.arange(36) / 36).sum(-1)
        return F.mse_loss(points, batch[0].flatten(1)[:, :4])


class BatchStatistics(Program):
    def __init__(self) -> None:
        super().__init__()
        self.net[1] = nn.BatchNorm2d(4, track_running_stats=False)


class TwoViews(Program):
    def loss(self, batch: Any) -> Tensor:
        return F.cross_entropy((self(batch[0]) + self(batch[0].flip(2))) / 2, batch[1])


class Normalizes(Program):
    def loss(self, batch: Any) -> Tensor:
        return F.cross_entropy(self(3 * batch[0] - 1), batch[1])


class SecondImage(Program):
    def train_items(self) -> TensorDataset:
        return TensorDataset(X.flip(2), X, Y)

    def val_items(self) -> TensorDataset:
        return TensorDataset(XV.flip(2), XV, YV)

    def loss(self, batch: Any) -> Tensor:
        return F.cross_entropy(self(batch[1]), batch[2])


class Autoencoder(Program):
    width = 64

    def loss(self, batch: Any) -> Tensor:
        return F.binary_cross_entropy_with_logits(self(batch[0]), batch[0].flatten(1).clamp(0, 1))


class OneClass(Program):
    width = 1

    def loss(self, batch: Any) -> Tensor:
        return F.binary_cross_entropy_with_logits(self(batch[0])[:, 0], torch.ones(len(batch[0])))


class SeveralScores(Program):
    def loss(self, batch: Any) -> Tensor:
        return F.binary_cross_entropy_with_logits(self(batch[0]), F.one_hot(batch[1], 4).float())


class LoggedOnly(Program):
    """A loss that no function tells, beside a cross entropy that is only logged."""

    def loss(self, batch: Any) -> Tensor:
        powers = self(batch[0]).exp()
        with torch.no_grad():
            self.log("ce", F.cross_entropy(self.net(batch[0].flip(2)), batch[1]), batch_size=20)
        return -(powers / powers.sum(1, keepdim=True)).gather(1, batch[1][:, None]).log().mean()


class Rest(Program):
    def __init__(self) -> None:
        super().__init__()
        self.other = network()

    def loss(self, batch: Any) -> Tensor:
        return F.multi_margin_loss(self(batch[0]), batch[1]) + 0.1 * F.cross_entropy(self.other(batch[0]), batch[1])


LINES = {
    "in place: temperature": changed(lambda scores: scores.div_(0.05)),
    "in place: prior": changed(lambda scores: scores.add_(4.0 * (torch.arange(4) < 2))),
    "dropout in evaluation": changed(lambda scores: F.dropout(scores, 0.5)),
    **{kind.__name__: kind for kind in (Attention, KeyPoints, BatchStatistics, TwoViews, Normalizes, SecondImage)},
    **{kind.__name__: kind for kind in (Autoencoder, OneClass, SeveralScores, LoggedOnly, Rest)},
}


@pytest.mark.parametrize("name", LINES)
def test_what_cannot_be_known_is_said_in_one_line_and_not_compared(tmp_path: Path, name: str) -> None:
    compared = MemorizationCallback()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fit(tmp_path, LINES[name](), compared)
    (text,) = said(caught)
    assert text.startswith("MemorizationCallback: The output is not compared: ")
    assert not any(key.startswith("memorization") for key in trainer.callback_metrics)
    assert compared.report.label_doubts == {}


def test_a_softmax_before_cross_entropy_is_said_and_compared_as_the_loss_reads_it(tmp_path: Path) -> None:
    class Twice(Program):
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).softmax(1)

    compared, module = MemorizationCallback(), Twice()
    with pytest.warns(UserWarning, match="is given probabilities, and takes the softmax") as caught:
        fit(tmp_path, module, compared)
    assert len(said(caught)) == 1
    with torch.no_grad():
        expected = 1 - module.eval()(XV).softmax(1).amax(1)
    torch.testing.assert_close(compared.report.val_errors, expected)


def all_callbacks() -> list[Any]:
    filters = AnomalyFilterCallback(probe_size=80)
    return [filters, AnomalyPruneCallback(1, 1, 1), MemorizationCallback(), MemorizationEarlyStopping()]


ACTS: dict[str, Callable[[Program, Tensor], object]] = {
    "deepcopy": lambda module, x: copy.deepcopy(module),
    "pickle": lambda module, x: pickle.dumps(module.net),
    "save": lambda module, x: torch.save(module.net, io.BytesIO()),
    "script": lambda module, x: torch.jit.script(module.net),
    "trace": lambda module, x: torch.jit.trace(module.net, x),
    "export": lambda module, x: torch.export.export(copy.deepcopy(module.net).eval(), (x,)),
    "average": lambda module, x: torch.optim.swa_utils.AveragedModel(module.net),
}
HOOKS = [
    "train_batch_start",
    "train_batch_end",
    "validation_batch_start",
    "validation_batch_end",
    "validation_epoch_end",
]


class Acting(pl.Callback):
    """Acts on the module in each of its hooks, and looks at what hangs on it."""

    def __init__(self, act: Callable[[Program, Tensor], object]) -> None:
        self.acted = 0

        def hook(trainer: Any, module: Any, *_: Any) -> None:
            self.acted += 1
            assert hook_count(module) == 0
            assert not {"forward", "log"} & {*vars(module)}
            act(module, X[:20])

        for name in HOOKS:
            setattr(self, f"on_{name}", hook)


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore::torch.jit.TracerWarning", "ignore:.*few reports")
@pytest.mark.parametrize("name", ACTS)
def test_steps_and_callbacks_may_copy_and_export_a_module_at_any_time(tmp_path: Path, name: str) -> None:
    class Acts(Program):
        def loss(self, batch: Any) -> Tensor:
            assert hook_count(self) == 0
            ACTS[name](self, batch[0])
            return super().loss(batch)

    for ours in ([MemorizationCallback()], all_callbacks()):
        before, after, module = Acting(ACTS[name]), Acting(ACTS[name]), Acts()
        options = {"limit_train_batches": 2, "limit_val_batches": 2, "num_sanity_val_steps": 0}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, message="Anomaly|Memorization")
            fit(tmp_path, module, before, *ours, after, **options)
        assert before.acted == after.acted > 10


class Ends(Program):
    def __init__(self, place: str, error: BaseException) -> None:
        super().__init__()
        self.place, self.error = place, error

    def end(self, place: str) -> None:
        if place == self.place and (not self._trainer.sanity_checking):
            raise self.error

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self(batch[0])
        self.end("training step")
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])
        self.end("validation step")
        super().validation_step(batch, batch_idx)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        self.end("train batch start")
        return -1 if self.place == "skips" else None


class EndsHook(pl.Callback):
    def on_validation_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        module.end("callback")


@pytest.mark.parametrize("place", ["training step", "validation step", "train batch start", "callback", "skips"])
@pytest.mark.parametrize(
    "error", [ValueError("ends"), KeyboardInterrupt(), SystemExit(3)], ids=lambda error: type(error).__name__
)
def test_whatever_ends_a_run_leaves_it_as_without_us(tmp_path: Path, place: str, error: BaseException) -> None:
    def state(*callbacks: Any) -> Any:
        random.seed(0)
        module = Ends(place, error)
        raises = nullcontext() if place == "skips" else pytest.raises((type(error), SystemExit))
        with warnings.catch_warnings(), raises:
            warnings.simplefilter("ignore")
            fit(tmp_path, module, *callbacks, EndsHook())
        assert hook_count(module) == watch_count() == 0
        draws = float(torch.rand(())), np.random.rand(), random.random()
        flags = [part.training for part in module.modules()]
        return draws, flags, {*vars(module)} - {"_current_fx_name"}, [*module.state_dict().values()]

    bare, watched = state(), state(*all_callbacks())
    assert bare[:3] == watched[:3]
    assert all(map(torch.equal, bare[3], watched[3]))
