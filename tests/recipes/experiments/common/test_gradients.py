"""Per-sample gradient norms against a plain loop over samples, what must be left alone, and batches that differ."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from recipes.experiments.common.gradients import gradient_disparity, gradient_norms_by_layer


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, stride=2, groups=2, bias=False),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(36, 5),
    ).double()
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    return model


def samples(count: int = 11) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 2, 8, 8, dtype=torch.float64, generator=generator)
    return inputs, torch.randint(0, 5, (count,), generator=generator)


def loop(model: nn.Module, loss, inputs: Tensor, targets: Tensor) -> Tensor:
    """One backward pass for each sample: norms by parameter `(N, P)`."""
    model = copy.deepcopy(model).eval()
    rows = []
    for i in range(len(inputs)):
        model.zero_grad()
        loss(model(inputs[i : i + 1]), targets[i : i + 1]).backward()
        rows.append(torch.stack([p.grad.norm() for p in model.parameters() if p.requires_grad]))
    return torch.stack(rows)


def overall_norms(*arguments: Any, **options: Any) -> Tensor:
    """The norm of each sample's whole gradient, put together from those of its layers."""
    return torch.stack(list(gradient_norms_by_layer(*arguments, **options).values())).norm(dim=0)


def test_the_norm_of_a_linear_output_is_that_of_the_input() -> None:
    linear = nn.Linear(2, 1, bias=False)
    inputs = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    norms = overall_norms(linear, lambda outputs, targets: outputs.sum(), inputs, torch.zeros(2))
    assert norms.tolist() == [5.0, 1.0]


def test_as_a_loop_over_samples() -> None:
    model, (inputs, targets) = network(), samples()
    expected = loop(model, functional.cross_entropy, inputs, targets)
    norms = overall_norms(model, functional.cross_entropy, inputs, targets)
    torch.testing.assert_close(norms, expected.norm(dim=1), rtol=1e-12, atol=0)


def test_layer_by_layer() -> None:
    model, (inputs, targets) = network(), samples()
    expected = loop(model, functional.cross_entropy, inputs, targets)
    found = gradient_norms_by_layer(model, functional.cross_entropy, inputs, targets)
    assert list(found) == ["0", "1", "3", "6"]
    for name, columns in {"0": [0, 1], "1": [2, 3], "3": [4], "6": [5, 6]}.items():
        torch.testing.assert_close(found[name], expected[:, columns].norm(dim=1), rtol=1e-12, atol=0)


def test_memory_decides_the_batches_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 1200), nn.Linear(1200, 5)).double()
    inputs, targets = samples()
    sizes = []
    model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    one = overall_norms(model, functional.cross_entropy, inputs, targets, max_memory_mb=1)
    calls = len(sizes)
    several = overall_norms(model, functional.cross_entropy, inputs, targets)
    assert calls == 11
    assert len(sizes) - calls == 1
    torch.testing.assert_close(one, several, rtol=1e-12, atol=0)


def test_frozen_parameters_do_not_count_and_shared_ones_count_once() -> None:
    inputs, targets = samples()
    frozen = network()
    frozen[0].requires_grad_(False)
    expected = loop(frozen, functional.cross_entropy, inputs, targets)
    norms = overall_norms(frozen, functional.cross_entropy, inputs, targets)
    torch.testing.assert_close(norms, expected.norm(dim=1), rtol=1e-12, atol=0)

    twice = nn.Linear(8, 8).double()
    shared = nn.Sequential(
        nn.Conv2d(2, 1, 1).double(), twice, nn.Tanh(), twice, nn.Flatten(), nn.Linear(64, 5).double()
    )
    expected = loop(shared, functional.cross_entropy, inputs, targets)
    norms = overall_norms(shared, functional.cross_entropy, inputs, targets)
    torch.testing.assert_close(norms, expected.norm(dim=1), rtol=1e-12, atol=0)


@pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated:DeprecationWarning")
def test_parametrized_and_compiled_layers_have_their_own_names() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(2, 3, 1)), nn.Flatten(), nn.Linear(192, 5)).double()
    inputs, targets = samples()
    found = gradient_norms_by_layer(model, functional.cross_entropy, inputs, targets)
    assert list(found) == ["0", "2"]
    compiled = gradient_norms_by_layer(torch.compile(model), functional.cross_entropy, inputs, targets)
    assert list(compiled) == ["0", "2"]
    torch.testing.assert_close(compiled["0"], found["0"], rtol=1e-12, atol=0)


class Counting(nn.Module):
    """Changes a buffer in each forward pass, whatever the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        self.last = self.last + 1
        return images


@pytest.mark.parametrize("fails", [False, True], ids=["", "exception"])
def test_the_model_and_the_random_state_are_untouched(fails: bool) -> None:
    model, (inputs, targets) = nn.Sequential(Counting(), network()).train(), samples()
    model[1][1].eval()
    functional.cross_entropy(model(inputs), targets).backward()
    model[1][0].weight.requires_grad_(False)
    state = copy.deepcopy(model.state_dict())
    gradients = [p.grad.clone() for p in model.parameters()]
    flags = [module.training for module in model.modules()]
    trained = [p.requires_grad for p in model.parameters()]
    random = torch.get_rng_state()
    if fails:
        with pytest.raises(ValueError, match="no loss today"):
            overall_norms(model, failing_loss, inputs, targets)
    else:
        overall_norms(model, functional.cross_entropy, inputs, targets)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert [module.training for module in model.modules()] == flags
    assert [p.requires_grad for p in model.parameters()] == trained
    assert torch.equal(torch.get_rng_state(), random)


def failing_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    raise ValueError("no loss today")


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_where_gradients_are_off(mode) -> None:
    model, (inputs, targets) = network(), samples()
    expected = overall_norms(model, functional.cross_entropy, inputs, targets)
    with mode():
        found = overall_norms(model, functional.cross_entropy, inputs * 1, targets * 1)
    assert torch.equal(found, expected)


def test_random_layers_that_stay_on_draw_for_each_sample() -> None:
    class Noisy(nn.Module):
        def forward(self, values: Tensor) -> Tensor:
            return functional.dropout(values, 0.5, training=True)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(50, 1), nn.Tanh(), Noisy())
    norms = overall_norms(model, lambda outputs, targets: outputs.sum(), torch.ones(40, 50), torch.zeros(40))
    assert len(norms.unique()) == 2  # dropped or not


def test_not_finite_stays_with_its_sample() -> None:
    model, (inputs, targets) = network(), samples()
    expected = overall_norms(model, functional.cross_entropy, inputs, targets)
    inputs[3] = torch.nan
    found = overall_norms(model, functional.cross_entropy, inputs, targets)
    assert found[3].isnan()
    others = torch.arange(11) != 3
    torch.testing.assert_close(found[others], expected[others], rtol=1e-12, atol=0)


def test_errors_say_what_was_expected() -> None:
    model, (inputs, targets) = network(), samples()
    loss = functional.cross_entropy
    with pytest.raises(ValueError, match=r"`inputs` should hold samples. Found shape \(0, 2, 8, 8\)"):
        overall_norms(model, loss, inputs[:0], targets[:0])
    with pytest.raises(ValueError, match=r"one target for each of 11 samples. Found shape \(10,\)"):
        overall_norms(model, loss, inputs, targets[:10])
    with pytest.raises(ValueError, match=r"`loss` should give one number for one sample. Found shape \(1,\)"):
        overall_norms(model, lambda o, t: functional.cross_entropy(o, t, reduction="none"), inputs, targets)
    with pytest.raises(
        ValueError, match=r"`max_memory_mb` should be an integer of at least 1. Found `max_memory_mb = 0`"
    ):
        overall_norms(model, loss, inputs, targets, max_memory_mb=0)
    bare = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).double()
    with pytest.raises(ValueError, match=r"running statistics in its BatchNorms.*Found \['1'\]"):
        overall_norms(bare, loss, inputs, targets)
    with pytest.raises(ValueError, match=r"parameters that require gradients. Found none"):
        overall_norms(model.requires_grad_(False), loss, inputs, targets)


def test_gradient_disparity_is_the_mean_distance_of_pairs() -> None:
    gradients = [torch.tensor([0.0, 0.0]), torch.tensor([3.0, 4.0]), torch.tensor([0.0, 8.0])]
    assert gradient_disparity(gradients) == pytest.approx((5 + 8 + 5) / 3)
