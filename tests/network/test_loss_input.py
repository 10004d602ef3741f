"""A step's own loss tells which output has the scores of classes, and what the labels are; or why it does not."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torchmetrics
from functional import Net
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss
from trainers import hook_count, images, watch_count

from lightning_anomaly.images.batches import label_columns
from lightning_anomaly.memorization.comparison import ExpectedErrors
from lightning_anomaly.network.forward import isolated_calls
from lightning_anomaly.network.layers import find_logits_call, modules_by_name
from lightning_anomaly.network.loss_input import LossInput, find_loss_input
from lightning_anomaly.network.step_labels import StepLabels, TargetColumns
from lightning_anomaly.network.step_watch import StepWatch, form_of

RNG = torch.Generator().manual_seed(0)
CLASSES = torch.arange(60) % 3


def scored(width: int = 3, change: Callable[[Tensor], Any] = lambda scores: scores) -> Net:
    """Make a network whose output is a function of `width` scores."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = nn.Linear(64, width)
    return Net(lambda net, x: change(net.head(x.flatten(1))), head=head)


class Told(NamedTuple):
    input: LossInput
    labels: StepLabels


def watched(net: Net, loss: Callable[..., Any], *batch: Any) -> StepWatch:
    """Watch a step, of which nothing may stay on."""
    watch, before = StepWatch(net, list(batch)), {**vars(net)}
    watch.attach()
    try:
        result = loss(net, *batch)
        if net.training and result.requires_grad:
            result.sum().backward()
        assert hook_count(net) == 0
    finally:
        watch.remove()
    assert (vars(net), watch_count()) == (before, 0)
    calls = len(watch.losses)
    loss(net, *batch)
    assert len(watch.losses) == calls
    return watch


def tell(net: Net, loss: Callable[..., Any], *batch: Any, logits_from: str | None = None) -> Told:
    """Tell the loss of a validation step, after a training step with the same batch."""
    training = find_loss_input(watched(net.train(), loss, *batch), None, None, logits_from)
    watch = watched(net.eval(), loss, *batch)

    def replay(call: Any, images: Tensor) -> Any:
        named = None if logits_from is None else find_logits_call(net, logits_from)
        with isolated_calls(net, named or modules_by_name(net)[call.name]) as run:
            return call.again(run, images)

    found = find_loss_input(watch, replay, training, logits_from)
    labels = TargetColumns().add(watch, found.matches) if found.scores is not None else StepLabels()
    return Told(found, labels)


def labels_of(told: Told, *batch: Any) -> list[Any]:
    columns = label_columns(list(batch), len(batch[0]), batch[0])
    numbers = {name: dict(enumerate(values.tolist())) for name, values in columns.items()}
    return told.labels.at(numbers, range(len(batch[0])))


def softmax(net: Net, x: Tensor) -> Tensor:
    return net(x).softmax(1)


def both(net: Net, x: Tensor) -> Tensor:
    return torch.cat([1 - net(x), net(x)], 1)


def both_of_logit(net: Net, x: Tensor) -> Tensor:
    return torch.cat([1 - net(x).sigmoid(), net(x).sigmoid()], 1)


def same(y: Tensor) -> Tensor:
    return y


def last(y: Tensor) -> Tensor:
    return (y > 1).long()


class Case(NamedTuple):
    """A network, its loss of images and labels, the probabilities by which it judges, and the labels, if one each."""

    net: Net
    loss: Callable[[Any, Tensor, Tensor], Any]
    truth: Callable[[Any, Tensor], Tensor] = softmax
    labels: Callable[[Tensor], Tensor] | None = same


def with_metric(net: Net, x: Tensor, y: Tensor) -> Tensor:
    scores = net(x)
    net.accuracy(scores.softmax(1), y)
    return F.cross_entropy(scores, y)


def distilled(net: Net, x: Tensor, y: Tensor) -> Tensor:
    student, teacher = net.student(x), net.teacher(x)
    distance = F.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="batchmean")
    return F.cross_entropy(student, y) + distance


def by_ctc(net: Net, x: Tensor, y: Tensor) -> Tensor:
    lengths = torch.full((len(x),), 4), torch.full((len(x),), 2)
    return F.ctc_loss(net(x).log_softmax(2).permute(1, 0, 2), y[:, None].repeat(1, 2).clamp(1, 2), *lengths)


def own_loss(net: Net, x: Tensor, y: Tensor) -> Tensor:
    return -(net(x).log_softmax(1) * F.one_hot(y, 3)).sum(1).mean()


def bce(scores: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy(scores[:, 0], last(y).float())


def by_places(net: Net, x: Tensor) -> Tensor:
    return net(x).softmax(2).movedim(2, 1)


METRIC, PAIR, CAPTCHA = scored(), scored(), scored(12, lambda scores: scores.view(-1, 4, 3))
METRIC.accuracy = torchmetrics.Accuracy("multiclass", num_classes=3)
PAIR.student, PAIR.teacher, PAIR.function = scored(), scored(3, lambda scores: 2 * scores), None
SQUASHED, LOGIT = scored(1, lambda scores: scores.sigmoid().clamp(0.01, 0.99)), scored(1)
COLUMN = scored(2, lambda scores: scores.softmax(1)[..., 1:])
TWO_SIZES = scored(12, lambda scores: (scores.view(-1, 3, 4), scores[:, :6].view(-1, 3, 2)))
NESTED = scored(3, lambda scores: {"features": scores * 2, "scores": [scores]})
CASES = {
    "smoothed": Case(scored(), lambda n, x, y: nn.CrossEntropyLoss(label_smoothing=0.1)(n(x), y)),
    "mapped": Case(scored(2), lambda n, x, y: F.cross_entropy(input=n(x), target=last(y)), softmax, last),
    "one logit": Case(
        LOGIT, lambda n, x, y: F.binary_cross_entropy_with_logits(n(x)[:, 0], last(y).float()), both_of_logit, last
    ),
    "focal": Case(LOGIT, lambda n, x, y: sigmoid_focal_loss(n(x)[:, 0], last(y).float()), both_of_logit, last),
    "probability": Case(SQUASHED, lambda n, x, y: bce(n(x), y), both, last),
    "sigmoid in the step": Case(LOGIT, lambda n, x, y: bce(n(x).sigmoid(), y), both_of_logit, last),
    "column of a softmax": Case(COLUMN, lambda n, x, y: bce(n(x), y), both, last),
    "log-probabilities": Case(
        scored(3, lambda scores: scores.log_softmax(1)), lambda n, x, y: F.nll_loss(n(x), y), lambda n, x: n(x).exp()
    ),
    "log in the step": Case(
        scored(3, lambda scores: scores.softmax(1)), lambda n, x, y: F.nll_loss(n(x).log(), y), lambda n, x: n(x)
    ),
    "metric": Case(METRIC, with_metric),
    "student": Case(PAIR, distilled, lambda n, x: n.student(x).softmax(1)),
    "nested": Case(
        NESTED, lambda n, x, y: F.cross_entropy(n(x)["scores"][0], y), lambda n, x: n(x)["scores"][0].softmax(1)
    ),
    "outputs of two sizes": Case(
        TWO_SIZES,
        lambda n, x, y: (
            F.cross_entropy(n(x)[0], y[:, None].repeat(1, 4)) + F.cross_entropy(n(x)[1], y[:, None].repeat(1, 2))
        ),
        lambda n, x: n(x)[0].softmax(1),
        None,
    ),
    "forward itself": Case(scored(), lambda n, x, y: F.cross_entropy(n.forward(x), y)),
    "captcha": Case(
        CAPTCHA, lambda n, x, y: F.cross_entropy(n(x).permute(0, 2, 1), y[:, None].repeat(1, 4)), by_places, None
    ),
    "captcha by places": Case(
        CAPTCHA, lambda n, x, y: sum(F.cross_entropy(n(x)[:, place], y) for place in range(4)), by_places, None
    ),
    "captcha in rows": Case(
        CAPTCHA, lambda n, x, y: F.cross_entropy(n(x).reshape(-1, 3), y.repeat_interleave(4)), by_places, None
    ),
    "sequence": Case(CAPTCHA, by_ctc, by_places, None),
    "mask": Case(
        scored(64, lambda scores: scores.view(-1, 1, 8, 8)),
        lambda n, x, y: F.binary_cross_entropy_with_logits(n(x), (x > 0.5).float()),
        both_of_logit,
        None,
    ),
    "segmentation": Case(
        scored(192, lambda scores: scores.view(-1, 3, 8, 8)),
        lambda n, x, y: F.cross_entropy(n(x).permute(0, 2, 3, 1).reshape(-1, 3), (x > 0.5).long().flatten()),
        labels=None,
    ),
    "own loss": Case(scored(), own_loss, labels=None),
}


@pytest.mark.parametrize("name", CASES)
def test_the_loss_tells_the_scores_and_the_labels(name: str) -> None:
    net, loss, truth, labels = CASES[name]
    x, unseen = images(60), images(40, seed=1)
    told = tell(net, loss, x, CLASSES)
    scores = told.input.scores
    assert scores is not None, told.input.problem
    output, errors = net.get_submodule(scores.module)(unseen), ExpectedErrors(scores)
    errors.add(output)
    assert told.input.n_classes == scores.of(output).shape[1]
    torch.testing.assert_close(errors.result(40), 1 - truth(net, unseen).amax(1).reshape(40, -1).mean(1))
    if labels is None:
        assert told.labels.problem
        assert labels_of(told, x, CLASSES) == [None] * 60
    else:
        assert labels_of(told, x, CLASSES) == labels(CLASSES).tolist()


PARTS, TASKS = scored(6), scored(6, lambda scores: scores.chunk(2, 1))
PARTS.last = nn.Linear(6, 3)
TWO_TASKS = scored(3, lambda scores: {"one": scores, "two": scores[:, :2]})


def two_losses(net: Net, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net(x)["one"], y) + F.cross_entropy(net(x)["two"], y // 2)


@pytest.mark.parametrize(
    ("net", "loss", "reason"),
    [
        (LOGIT, lambda n, x, y: F.mse_loss(n(x)[:, 0], y.float()), "mse_loss, compares numbers"),
        (scored(), lambda n, x, y: F.triplet_margin_loss(n(x), n(x.flip(2)), n(x.flip(0))), "compares embeddings"),
        (
            PARTS,
            lambda n, x, y: F.cross_entropy(n.last(n(x)), y),
            r"cross_entropy, is given a tensor \(60, 3\).*Net returns a tensor \(60, 6\).*`logits_from`",
        ),
        (scored(), lambda n, x, y: F.cross_entropy(-n(x), y), "no module returns that"),
        (scored(), lambda n, x, y: F.cross_entropy(x[:, 0, 0, :3], y), "no module that is called with the images"),
        (TWO_TASKS, two_losses, r"several losses of classes.*\(60, 3\), a tensor \(60, 2\).*`logits_from`"),
        (
            TASKS,
            lambda n, x, y: F.cross_entropy(n(x)[0], y) + F.cross_entropy(n(x)[1], 2 - y),
            "several losses of classes",
        ),
        (
            scored(3, lambda scores: (2 * scores, scores)),
            lambda n, x, y: sum(F.cross_entropy(scores, y) for scores in n(x)),
            "several losses of classes",
        ),
        (
            scored(),
            lambda n, x, y: F.binary_cross_entropy_with_logits(n(x), F.one_hot(y, 3).float()),
            "several scores for each image",
        ),
        (scored(), lambda n, x, y: (n(x) - y[:, None]).square().mean(), "no loss of classes was seen.*`logits_from`"),
    ],
)
def test_where_no_loss_tells_the_reason_is_said(net: Net, loss: Callable[..., Any], reason: str) -> None:
    told = tell(net, loss, images(60), CLASSES)
    assert told.input.scores is None
    assert re.search(reason, told.input.problem)


@pytest.mark.parametrize(
    ("name", "loss", "labels"),
    [
        ("two", lambda n, x, y: F.cross_entropy(n(x), y) + F.cross_entropy(n.two(x), y // 2), CLASSES // 2),
        ("forward", lambda n, x, y: (n(x) - y[:, None]).square().mean(), None),
        ("method", lambda n, x, y: F.cross_entropy(2 * n(x), y), CLASSES),
    ],
)
def test_a_user_names_what_returns_logits(name: str, loss: Callable[..., Any], labels: Tensor | None) -> None:
    """Of several tasks the labels are those of the named one; what a step does not call is called."""
    net, x = scored(), images(60)
    net.two, net.method = scored(2), lambda images: 2 * net(images)
    told = tell(net, loss, x, CLASSES, logits_from=name)
    assert told.input.scores.reading == "logits"
    assert labels_of(told, x, CLASSES) == ([None] * 60 if labels is None else labels.tolist())


@pytest.mark.parametrize(
    "target",
    [
        F.one_hot(CLASSES, 3).float(),
        F.one_hot(CLASSES, 3),
        torch.where(torch.arange(60) < 9, -100, CLASSES),
        CLASSES[:, None],
        torch.stack([torch.rand(60, generator=RNG), CLASSES], 1),
    ],
    ids=["one-hot", "integer one-hot", "unknown", "column", "table"],
)
def test_labels_have_any_form_beside_another_integer(target: Tensor) -> None:
    table = target.view(60, -1)
    wanted = {1: table[:, 0], 2: table[:, -1].long(), 3: table.float()}[table.shape[1]]
    batch = images(60), torch.arange(60) // 30, target
    found = labels_of(tell(scored(), lambda n, x, camera, y: F.cross_entropy(n(x), wanted), *batch), *batch)
    assert found == [None if wanted.ndim == 1 and wanted[place] < 0 else place % 3 for place in range(60)]


@pytest.mark.parametrize(
    ("targets", "columns", "problem"),
    [
        (lambda y: torch.randperm(60, generator=RNG) % 3, [CLASSES], "a function of no tensor"),
        (lambda y: y % 3, [torch.arange(60) % 6, torch.arange(60) % 6 + 1], "a function of several tensors"),
        (lambda y: y % 3, [torch.arange(60)], "a function of no tensor"),  # each number comes once
        (lambda y: torch.full_like(y, -100), [CLASSES], "no target of the loss is a class"),
    ],
)
def test_labels_that_no_tensor_tells_are_unknown(
    targets: Callable[[Tensor], Tensor], columns: list[Tensor], problem: str
) -> None:
    batch = images(60), *columns
    told = tell(scored(), lambda n, x, y, *_: F.cross_entropy(n(x), targets(y)), *batch)
    assert told.input.scores is not None
    assert problem in told.labels.problem
    assert labels_of(told, *batch) == [None] * 60


def test_what_a_step_prepares_is_kept_and_a_conversion_is_no_preparation() -> None:
    def converted(x: Tensor) -> Tensor:
        return x.to(memory_format=torch.channels_last).unsqueeze(0).flatten(0, 1)

    x = images(60)
    for change, prepares in (
        (lambda x: 8 * (x - 0.5), True),
        (lambda x: x.clone().sub_(0.5), True),
        (lambda x: x.double().float(), False),
        (converted, False),
    ):
        found = tell(scored(), lambda n, x, y, change=change: F.cross_entropy(n(change(x)), y), x, CLASSES).input
        assert found.scores is not None
        assert (found.call.prepared is not None) == prepares
        if prepares:
            assert torch.equal(found.call.prepared, change(x)[: 2 * len(found.call.prepared) : 2])


def test_a_form_is_that_of_the_tensors_of_a_batch() -> None:
    batches = [[images(60), CLASSES], [images(40), CLASSES[:40]], [images(60), CLASSES.double()]]
    same, other, floats = map(form_of, batches)
    assert same == other != floats


@pytest.mark.parametrize("output", [{"logits": torch.ones(4, 3)}, [torch.ones(4, 3)], torch.ones(4, 3).long(), None])
def test_scores_of_another_output_are_an_error(output: Any) -> None:
    told = tell(*CASES["smoothed"][:2], images(60), CLASSES)
    with pytest.raises(ValueError, match="not logits"):
        told.input.scores.of(output)
