"""What the own loss of a run tells (see tests/network/test_step_loss.py) reaches the report, or a line says why not."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate
from trainers import SmallNet, fit, hook_count, images, loader, said, watcher

from lightning_anomaly import MemorizationCallback

CLASSES = torch.arange(60) % 3
FEW = "ignore:.*expects fewer than 10 errors"


class Program(SmallNet):
    """A module with `width` outputs; `truth` are the probabilities by which its own loss judges it."""

    width = 3

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.head = nn.Linear(6, self.width)

    def truth(self, x: Tensor) -> Tensor:
        return self(x).softmax(1)


class Mapped(Program):
    width = 2

    def loss(self, batch: Any) -> Tensor:
        return functional.cross_entropy(input=self(batch[0]), target=(batch[1] > 1).long())


class OneLogit(Program):
    width = 1

    def loss(self, batch: Any) -> Tensor:
        return functional.binary_cross_entropy_with_logits(self(batch[0])[:, 0], (batch[1] > 1).float())

    def truth(self, x: Tensor) -> Tensor:
        one = self(x).sigmoid()
        return torch.cat([1 - one, one], 1)


class Captcha(Program):
    width = 12

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).view(-1, 4, 3)

    def loss(self, batch: Any) -> Tensor:
        return functional.cross_entropy(self(batch[0]).permute(0, 2, 1), batch[1][:, None].repeat(1, 4))

    def truth(self, x: Tensor) -> Tensor:
        return self(x).softmax(2).movedim(2, 1)


class Probabilities(Program):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1)

    def loss(self, batch: Any) -> Tensor:
        return functional.nll_loss(self(batch[0]).log(), batch[1])

    def truth(self, x: Tensor) -> Tensor:
        return self(x)


class Compiled(Program):
    def __init__(self) -> None:
        super().__init__()
        self.conv1.compile(backend="eager")


class Student(Program):
    def __init__(self) -> None:
        super().__init__()
        self.networks = nn.ModuleDict({"teacher": SmallNet(), "student": SmallNet()})
        del self.conv1, self.norm, self.conv2, self.head

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("is not called")

    def loss(self, batch: Any) -> Tensor:
        student, teacher = (self.networks[name](batch[0]) for name in ("student", "teacher"))
        distilled = functional.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="batchmean")
        return functional.cross_entropy(student, batch[1]) + distilled

    def truth(self, x: Tensor) -> Tensor:
        return self.networks["student"](x).softmax(1)


class Nested(Program):
    def forward(self, x: Tensor) -> Any:
        scores = super().forward(x)
        return {"features": scores * 2, "scores": [scores]}

    def loss(self, batch: Any) -> Tensor:
        return functional.cross_entropy(self(batch[0])["scores"][0], batch[1])

    def truth(self, x: Tensor) -> Tensor:
        return self(x)["scores"][0].softmax(1)


class OnlyInTraining(Program):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())


@pytest.mark.filterwarnings(FEW)
@pytest.mark.parametrize(
    "program", [Mapped, OneLogit, Probabilities, Compiled, Student, Nested, OnlyInTraining, Captcha]
)
def test_errors_and_labels_are_those_of_the_loss(tmp_path: Path, program: type[Program], recwarn: Any) -> None:
    compared = MemorizationCallback()
    model: Any = fit(tmp_path, compared, module=program(), max_epochs=1).lightning_module
    assert hook_count(model) == 0
    with torch.no_grad():
        wrong = 1 - model.eval().truth(images(60, seed=1)).amax(1)
    report = compared.report
    torch.testing.assert_close(report.val_errors, wrong.reshape(60, -1).mean(1))
    unjudged = ["The training labels are not judged: " in text for text in said(recwarn)]
    assert unjudged.count(True) == (program is Captcha)
    assert len(report.label_doubts) == 80 * (program is not Captcha)
    binary = program in (Mapped, OneLogit)
    for position, label in report.samples["class"].items():
        assert label == str(int(position % 3 > 1) if binary else position % 3)


@pytest.mark.filterwarnings(FEW)
def test_two_callbacks_that_watch_one_step_leave_the_module_as_it_was(tmp_path: Path) -> None:
    both = watcher(), MemorizationCallback()
    model: Any = fit(tmp_path, *both, module=Program(), max_epochs=1).lightning_module
    assert hook_count(model) == 0
    assert both[1].report.compares_output
    zeroed = copy.deepcopy(model).eval()
    for parameter in zeroed.parameters():
        nn.init.zeros_(parameter)
    assert not zeroed(images(2)).any()  # by its own weights, and not by those of the model that it was copied from


@pytest.mark.parametrize(
    "options",
    [{"precision": "bf16-mixed"}, {"accumulate_grad_batches": 3, "num_sanity_val_steps": 0}, {"inference_mode": False}],
)
def test_the_loss_tells_in_every_kind_of_run(tmp_path: Path, options: Any) -> None:
    compared = MemorizationCallback()
    fit(tmp_path, compared, module=Captcha3(), max_epochs=1, **options)
    assert compared.report.compares_output
    assert len(compared.report.label_doubts) == 80


class Captcha3(Program):
    """Its classes are on the last of three axes, one of which has one place."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, None]

    def loss(self, batch: Any) -> Tensor:
        return functional.cross_entropy(self(batch[0])[:, 0], batch[1])


class Age(Program):
    width = 1

    def loss(self, batch: Any) -> Tensor:
        return functional.mse_loss(self(batch["image"])[:, 0], batch["age"])


class SeveralTasks(Program):
    def forward(self, x: Tensor) -> Any:
        scores = super().forward(x)
        return {"one": scores, "two": scores[:, :2]}

    def loss(self, batch: Any) -> Tensor:
        found = self(batch[0])
        return functional.cross_entropy(found["one"], batch[1]) + functional.cross_entropy(found["two"], batch[1] // 2)

    def second(self, x: Tensor) -> Tensor:
        return self(x)["two"]


class OwnKernel(Program):
    def loss(self, batch: Any) -> Tensor:
        return (self(batch[0]) - batch[1][:, None]).square().mean()


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (Age, "mse_loss, compares numbers"),
        (SeveralTasks, r"several losses of classes.*\(20, 3\), a tensor \(20, 2\).*`logits_from`"),
        (OwnKernel, "no loss of classes was seen.*`logits_from`"),
    ],
)
def test_where_no_loss_tells_nothing_is_compared_and_one_line_says_why(
    tmp_path: Path, program: Any, reason: str
) -> None:
    data = [{"image": x, "age": torch.rand(()), "sex": y % 2} for x, y in loader().dataset]
    loaders = {"train": DataLoader(data, 20), "val": DataLoader(data, 20)} if program is Age else {}
    compared = MemorizationCallback()
    with pytest.warns(UserWarning, match=f"The output is not compared: .*{reason}") as caught:
        trainer = fit(tmp_path, compared, module=program(), **loaders)
    assert len(said(caught)) == 1
    assert not any(key.startswith("memorization") for key in trainer.callback_metrics)
    assert [entry["metrics"] for entry in compared.history] == [{}, {}]
    assert compared.report.label_doubts == {}


@pytest.mark.filterwarnings(FEW, "ignore:.*training labels are not judged")
@pytest.mark.parametrize(("name", "labels"), [("second", 2), ("forward", 0)])
def test_a_user_may_name_what_returns_logits(tmp_path: Path, name: str, labels: int) -> None:
    """Of several tasks the one that is named, with its labels; what no loss tells has none."""
    module = SeveralTasks() if labels else OwnKernel()
    compared = MemorizationCallback(logits_from=name)
    model: Any = fit(tmp_path, compared, module=module, max_epochs=1).lightning_module
    with torch.no_grad():
        scores = model.eval()(images(60, seed=1)) if not labels else model.eval().second(images(60, seed=1))
    torch.testing.assert_close(compared.report.val_errors, 1 - scores.softmax(1).amax(1))
    assert compared.report.samples["class"].nunique() == labels


@pytest.mark.filterwarnings(FEW)
def test_training_items_of_another_form_are_told_by_a_training_step(tmp_path: Path) -> None:
    class Net(Program):
        def loss(self, batch: Any) -> Tensor:
            return functional.cross_entropy(self(batch[0]), batch[-1])

    train = TensorDataset(images(60), CLASSES // 2, CLASSES)
    compared = MemorizationCallback()
    fit(tmp_path, compared, module=Net(), train=DataLoader(train, 20), max_epochs=1)
    assert all(label == str(position % 3) for position, label in compared.report.samples["class"].items())


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
    [(SmallNet, DataLoader(Stream(), 20)), (Padded, DataLoader(loader(60).dataset, 20, collate_fn=several_sizes))],
    ids=["iterable", "several sizes"],
)
def test_advice_is_what_can_help(tmp_path: Path, module: Any, train: Any) -> None:
    with pytest.warns(UserWarning, match="Could not compare.*`train_inputs`") as caught:
        fit(tmp_path, MemorizationCallback(), module=module(), train=train, max_epochs=1)
    (text,) = said(caught)
    assert "`logits_from`" not in text
