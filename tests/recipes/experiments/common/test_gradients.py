"""Per-sample gradient norms against a plain loop over samples, and batches that differ."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from recipes.experiments.common import gradients
from recipes.experiments.common.gradients import gradient_disparity, gradient_norms_by_layer


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, stride=2, groups=2, bias=False),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(36, 5),
    ).double()


def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(11, 2, 8, 8, dtype=torch.float64, generator=generator)
    return inputs, torch.randint(0, 5, (11,), generator=generator)


def loop(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """One backward pass for each sample: norms by parameter `(N, P)`."""
    model = copy.deepcopy(model).eval()
    rows = []
    for i in range(len(inputs)):
        model.zero_grad()
        functional.cross_entropy(model(inputs[i : i + 1]), targets[i : i + 1]).backward()
        rows.append(torch.stack([p.grad.norm() for p in model.parameters()]))
    return torch.stack(rows)


def test_layer_by_layer_as_a_loop_over_samples() -> None:
    model, (inputs, targets) = network(), samples()
    expected = loop(model, inputs, targets)
    found = gradient_norms_by_layer(model, inputs, targets)
    assert list(found) == ["0", "2", "5"]
    for name, columns in {"0": [0, 1], "2": [2], "5": [3, 4]}.items():
        torch.testing.assert_close(found[name], expected[:, columns].norm(dim=1), rtol=1e-12, atol=0)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_memory_decides_the_batches_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (inputs, targets) = network(), samples()
    sizes = []
    model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    several = gradient_norms_by_layer(model, inputs, targets)
    assert len(sizes) == 1
    monkeypatch.setattr(gradients, "_BYTES", 1)
    one = gradient_norms_by_layer(model, inputs, targets)
    assert len(sizes) == 1 + 11
    for name, norms in several.items():
        torch.testing.assert_close(one[name], norms, rtol=1e-12, atol=0)


def test_not_finite_stays_with_its_sample() -> None:
    model, (inputs, targets) = network(), samples()
    expected = gradient_norms_by_layer(model, inputs, targets)["0"]
    inputs[3] = torch.nan
    found = gradient_norms_by_layer(model, inputs, targets)["0"]
    assert found[3].isnan()
    others = torch.arange(11) != 3
    torch.testing.assert_close(found[others], expected[others], rtol=1e-12, atol=0)


def test_gradient_disparity_is_the_mean_distance_of_pairs() -> None:
    parts = [torch.tensor([0.0, 0.0]), torch.tensor([3.0, 4.0]), torch.tensor([0.0, 8.0])]
    assert gradient_disparity(parts) == pytest.approx((5 + 8 + 5) / 3)
