"""A run's own loss tells which output has the scores of classes, and what the labels are; otherwise a line says why."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate
from torchvision.ops import sigmoid_focal_loss
from trainers import SmallNet, fit, hook_count, images, loader, said

from lightning_anomaly import MemorizationCallback

RNG = torch.Generator().manual_seed(0)
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


class Smoothed(Program):
    def loss(self, batch: Any) -> Tensor:
        return nn.CrossEntropyLoss(label_smoothing=0.1)(self(batch[0]), batch[1])


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


class Focal(OneLogit):
    def loss(self, batch: Any) -> Tensor:
        return sigmoid_focal_loss(self(batch[0])[:, 0], (batch[1] > 1).float(), reduction="mean")


class Probability(OneLogit):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sigmoid().clamp(0.01, 0.99)

    def loss(self, batch: Any) -> Tensor:
        return functional.binary_cross_entropy(self(batch[0])[:, 0], (batch[1] > 1).float())

    def truth(self, x: Tensor) -> Tensor:
        return torch.cat([1 - self(x), self(x)], 1)


class SigmoidInTheStep(OneLogit):
    def loss(self, batch: Any) -> Tensor:
        return functional.binary_cross_entropy(self(batch[0]).sigmoid()[:, 0], (batch[1] > 1).float())


class ColumnOfASoftmax(Probability):
    width = 2

    def forward(self, x: Tensor) -> Tensor:
        return SmallNet.forward(self, x).softmax(1)[..., 1:]


class Captcha(Program):
    width = 12

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).view(-1, 4, 3)

    def loss(self, batch: Any) -> Tensor:
        return functional.cross_entropy(self(batch[0]).permute(0, 2, 1), batch[1][:, None].repeat(1, 4))

    def truth(self, x: Tensor) -> Tensor:
        return self(x).softmax(2).movedim(2, 1)


class CaptchaByPlaces(Captcha):
    def loss(self, batch: Any) -> Tensor:
        scores = self(batch[0])
        return sum(functional.cross_entropy(scores[:, place], batch[1]) for place in range(4))


class CaptchaInRows(Captcha):
    def loss(self, batch: Any) -> Tensor:
        return functional.cross_entropy(self(batch[0]).float().reshape(-1, 3), batch[1].repeat_interleave(4))


class Sequence(Captcha):
    def loss(self, batch: Any) -> Tensor:
        n = len(batch[0])
        lengths = torch.full((n,), 4), torch.full((n,), 2)
        targets = batch[1][:, None].repeat(1, 2).clamp(1, 2)
        return functional.ctc_loss(
            self(batch[0]).log_softmax(2).permute(1, 0, 2), targets, *lengths, zero_infinity=True
        )


class OwnLoss(Program):
    def loss(self, batch: Any) -> Tensor:
        return -(self(batch[0]).log_softmax(1) * functional.one_hot(batch[1], 3)).sum(1).mean()


class LogProbabilities(Program):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).log_softmax(1)

    def loss(self, batch: Any) -> Tensor:
        return functional.nll_loss(self(batch[0]), batch[1])


class LogInTheStep(Program):
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


class WithMetric(Program):
    def __init__(self) -> None:
        super().__init__()
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=3)

    def loss(self, batch: Any) -> Tensor:
        scores = self(batch[0])
        self.accuracy(scores.softmax(1), batch[1])
        return functional.cross_entropy(scores, batch[1])


class Student(Program):
    def __init__(self) -> None:
        super().__init__()
        self.networks = nn.ModuleDict({"teacher": SmallNet(), "student": SmallNet()})
        del self.conv1, self.norm, self.conv2, self.head

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("is not called")

    def loss(self, batch: Any) -> Tensor:
        student, teacher = (self.networks[name](batch[0]) for name in ("student", "teacher"))
        return functional.cross_entropy(student, batch[1]) + distilled(student, teacher)

    def truth(self, x: Tensor) -> Tensor:
        return self.networks["student"](x).softmax(1)


def distilled(student: Tensor, teacher: Tensor) -> Tensor:
    return functional.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="batchmean")


class Nested(Program):
    def forward(self, x: Tensor) -> Any:
        scores = super().forward(x)
        return {"features": scores * 2, "scores": [scores]}

    def loss(self, batch: Any) -> Tensor:
        return functional.cross_entropy(self(batch[0])["scores"][0], batch[1])

    def truth(self, x: Tensor) -> Tensor:
        return self(x)["scores"][0].softmax(1)


class DeepSupervision(Program):
    def forward(self, x: Tensor) -> Any:
        scores = super().forward(x)
        return 2 * scores, scores

    def loss(self, batch: Any) -> Tensor:
        return sum(functional.cross_entropy(scores, batch[1]) for scores in self(batch[0]))

    def truth(self, x: Tensor) -> Tensor:
        return self(x)[1].softmax(1)


class Mask(OneLogit):
    width = 64

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).view(-1, 1, 8, 8)

    def loss(self, batch: Any) -> Tensor:
        return functional.binary_cross_entropy_with_logits(self(batch[0]), (batch[0] > 0.5).float())


class Segmentation(Program):
    width = 192

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).view(-1, 3, 8, 8)

    def loss(self, batch: Any) -> Tensor:
        rows = self(batch[0]).permute(0, 2, 3, 1).reshape(-1, 3)
        return functional.cross_entropy(rows, (batch[0] > 0.5).long().flatten())


class CallsForward(Program):
    def loss(self, batch: Any) -> Tensor:
        return functional.cross_entropy(self.forward(batch[0]), batch[1])


class OnlyInTraining(Program):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())


JUDGED = [Smoothed, Mapped, OneLogit, Focal, Probability, SigmoidInTheStep, ColumnOfASoftmax, LogProbabilities]
JUDGED += [LogInTheStep, Compiled, WithMetric, Student, Nested, DeepSupervision, CallsForward, OnlyInTraining]
NOT_JUDGED = [Captcha, CaptchaByPlaces, CaptchaInRows, Sequence, OwnLoss, Mask, Segmentation]


def check(program: type[Program], folder: Path, **options: Any) -> MemorizationCallback:
    compared, others = MemorizationCallback(), options.pop("callbacks", [])
    model: Any = fit(folder, compared, *others, module=program(), max_epochs=1, **options).lightning_module
    assert hook_count(model) == 0
    with torch.no_grad():
        wrong = 1 - model.eval().truth(images(60, seed=1)).amax(1)
    torch.testing.assert_close(compared.report.val_errors, wrong.flatten(1).mean(1) if wrong.ndim > 1 else wrong)
    return compared


@pytest.mark.filterwarnings(FEW)
@pytest.mark.parametrize("program", JUDGED)
def test_the_loss_tells_the_scores_and_the_labels(tmp_path: Path, program: type[Program]) -> None:
    report = check(program, tmp_path).report
    assert len(report.label_doubts) == 80
    binary = program.width == 1 or program in (Mapped, ColumnOfASoftmax)
    found = {doubt.position: doubt.label for doubt in report.doubts}
    assert all(found[place] == str(int(place % 3 > 1) if binary else place % 3) for place in found)


@pytest.mark.parametrize("program", NOT_JUDGED)
def test_the_loss_tells_the_scores_and_a_line_why_labels_are_not_judged(tmp_path: Path, program: Any) -> None:
    with pytest.warns(UserWarning, match="The training labels are not judged: ") as caught:
        assert check(program, tmp_path).report.label_doubts == {}
    assert len(said(caught)) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16-mixed"},
        {"accumulate_grad_batches": 3, "num_sanity_val_steps": 0},
        {"inference_mode": False},
    ],
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


class Autoencoder(Program):
    width = 64

    def loss(self, batch: Any) -> Tensor:
        return functional.mse_loss(self(batch[0]).view_as(batch[0]), batch[0])


class Triplets(Program):
    def loss(self, batch: Any) -> Tensor:
        return functional.triplet_margin_loss(self(batch[0]), self(batch[0].flip(2)), self(batch[0].flip(0)))


class HeadInTheStep(Program):
    width = 6

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(6, 3)

    def loss(self, batch: Any) -> Tensor:
        return functional.cross_entropy(self.last(self(batch[0])), batch[1])


class Distances(Program):
    def loss(self, batch: Any) -> Tensor:
        return functional.cross_entropy(-self(batch[0]), batch[1])


class SeveralTasks(Program):
    def forward(self, x: Tensor) -> Any:
        scores = super().forward(x)
        return {"one": scores, "two": scores[:, :2]}

    def loss(self, batch: Any) -> Tensor:
        found = self(batch[0])
        return functional.cross_entropy(found["one"], batch[1]) + functional.cross_entropy(found["two"], batch[1] // 2)

    def second(self, x: Tensor) -> Tensor:
        return self(x)["two"]


class TasksInOneTensor(Program):
    width = 6

    def forward(self, x: Tensor) -> Any:
        return super().forward(x).chunk(2, 1)

    def loss(self, batch: Any) -> Tensor:
        first, second = self(batch[0])
        return functional.cross_entropy(first, batch[1]) + functional.cross_entropy(second, 2 - batch[1])


class SeveralClasses(Program):
    def loss(self, batch: Any) -> Tensor:
        return functional.binary_cross_entropy_with_logits(self(batch[0]), functional.one_hot(batch[1], 3).float())


class OwnKernel(Program):
    def loss(self, batch: Any) -> Tensor:
        return (self(batch[0]) - batch[1][:, None]).square().mean()


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (Age, "mse_loss, compares numbers"),
        (Autoencoder, "mse_loss, compares numbers"),
        (Triplets, "triplet_margin_loss, compares embeddings"),
        (HeadInTheStep, r"given a tensor \(20, 3\).*HeadInTheStep returns a tensor \(20, 6\).*`logits_from`"),
        (Distances, "no module returns that"),
        (SeveralTasks, r"several losses of classes.*\(20, 3\), a tensor \(20, 2\).*`logits_from`"),
        (TasksInOneTensor, "several losses of classes"),
        (SeveralClasses, "several scores for each image"),
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
    assert len({doubt.label for doubt in compared.report.doubts}) == labels


@pytest.mark.filterwarnings(FEW)
@pytest.mark.parametrize(
    "target",
    [
        functional.one_hot(CLASSES, 3).float(),
        functional.one_hot(CLASSES, 3),
        torch.where(torch.arange(60) < 9, -100, CLASSES),
        CLASSES[:, None],
        torch.stack([torch.rand(60, generator=RNG), CLASSES], 1),
    ],
    ids=["one-hot", "integer one-hot", "unknown", "column", "table"],
)
def test_labels_have_any_form_beside_another_integer(tmp_path: Path, target: Tensor) -> None:
    class Net(Program):
        def loss(self, batch: Any) -> Tensor:
            width = batch[2][0].numel()
            table = batch[2].view(len(batch[2]), -1)
            wanted = {1: table[:, 0], 2: table[:, -1].long(), 3: table.float()}[width]
            return functional.cross_entropy(self(batch[0]), wanted)

    camera = torch.arange(60) // 30
    train, val = (DataLoader(TensorDataset(images(60, seed=s), camera, target), 20) for s in (0, 1))
    compared = MemorizationCallback()
    fit(tmp_path, compared, module=Net(), train=train, val=val, max_epochs=1)
    labels = {doubt.position: doubt.label for doubt in compared.report.doubts}
    known = range(9, 60) if (target == -100).any() else range(60)
    assert labels == {place: str(place % 3) for place in known}


@pytest.mark.filterwarnings(FEW)
def test_training_items_of_another_form_are_told_by_a_training_step(tmp_path: Path) -> None:
    class Net(Program):
        def loss(self, batch: Any) -> Tensor:
            return functional.cross_entropy(self(batch[0]), batch[-1])

    train = TensorDataset(images(60), CLASSES // 2, CLASSES)
    compared = MemorizationCallback()
    fit(tmp_path, compared, module=Net(), train=DataLoader(train, 20), max_epochs=1)
    assert all(doubt.label == str(doubt.position % 3) for doubt in compared.report.doubts)


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
