"""A masked filter is its own rows and nobody else's, for every kind of convolution."""

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from lightning_anomaly.pruning.mask import mask_filters
from lightning_anomaly.pruning.norms import NormFlow

CONVOLUTIONS = {
    "1d": lambda bias: nn.Conv1d(4, 6, 3, bias=bias),
    "2d": lambda bias: nn.Conv2d(4, 6, 3, padding=1, bias=bias),
    "2d reflect": lambda bias: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect", bias=bias),
    "3d": lambda bias: nn.Conv3d(4, 6, 2, bias=bias),
    "grouped": lambda bias: nn.Conv2d(4, 6, 3, groups=2, bias=bias),
    "depthwise": lambda bias: nn.Conv2d(4, 8, 3, groups=4, bias=bias),
    "transposed 1d": lambda bias: nn.ConvTranspose1d(4, 6, 3, bias=bias),
    "transposed 2d": lambda bias: nn.ConvTranspose2d(4, 6, 3, stride=2, bias=bias),
    "transposed 3d": lambda bias: nn.ConvTranspose3d(4, 6, 2, bias=bias),
    "grouped transposed": lambda bias: nn.ConvTranspose2d(4, 6, 3, groups=2, bias=bias),
    "depthwise transposed": lambda bias: nn.ConvTranspose2d(4, 8, 3, groups=4, bias=bias),
    "weight_norm": lambda bias: parametrizations.weight_norm(nn.Conv2d(4, 6, 3, groups=2, bias=bias)),
}


def old_weight_norm(module: nn.Module, dim: int | None = 0) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, from which torch on is not our concern
        return torch.nn.utils.weight_norm(module, dim=dim)


def input_of(conv: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(3, 4, *[5] * len(conv.kernel_size), generator=torch.Generator().manual_seed(1)).to(dtype)


def assert_masks_only(conv: nn.Module, filters: list[int], dtype: torch.dtype = torch.float32) -> None:
    inputs = input_of(conv, dtype)
    before = conv(inputs)
    mask = mask_filters(conv, {"": filters})
    after = conv(inputs)
    others = [channel for channel in range(conv.out_channels) if channel not in filters]
    assert before.abs().flatten(2).sum(2).min() > 0
    assert after[:, filters].count_nonzero() == 0
    assert torch.equal(after[:, others], before[:, others])
    assert mask.verify()


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("filters", [[0], [1, 4], [5, 3, 2]], ids=str)
def test_masked_filters_give_0_and_the_others_the_same_bits(kind: str, bias: bool, filters: list[int]) -> None:
    assert_masks_only(CONVOLUTIONS[kind](bias), filters)


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_only_masked_filters_lose_their_gradient(kind: str) -> None:
    conv = CONVOLUTIONS[kind](True)
    conv(input_of(conv)).square().sum().backward()
    full = {name: parameter.grad.clone() for name, parameter in conv.named_parameters()}
    mask = mask_filters(conv, {"": [1, 4]})
    mask.keep_gradients()
    lost = sum(int(((parameter.grad == 0) & (full[name] != 0)).sum()) for name, parameter in conv.named_parameters())
    assert lost == mask.parameter_count
    assert all(torch.isfinite(parameter.grad).all() for parameter in conv.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["2d", "grouped transposed", "weight_norm"])
def test_masks_in_any_precision(kind: str, dtype: torch.dtype) -> None:
    conv = CONVOLUTIONS[kind](True).to(dtype)
    assert_masks_only(conv, [1, 4], dtype)
    assert all(parameter.dtype == dtype for parameter in conv.parameters())


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_masks_under_weight_norm_of_the_old_style(bias: bool) -> None:
    assert_masks_only(old_weight_norm(nn.Conv2d(4, 6, 3, bias=bias)), [1, 4])


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, old_weight_norm], ids=["new", "old"])
def test_weight_norm_stays_finite_under_strong_weight_decay(wrap) -> None:
    conv = wrap(nn.Conv2d(4, 6, 3))
    mask = mask_filters(conv, {"": [1, 4]})
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.5, weight_decay=1.9)
    for _ in range(200):  # decays a direction to 0.05 ** 200, which is 0 in float32
        optimizer.zero_grad()
        conv(input_of(conv)).square().sum().mul(1e-6).backward()
        assert all(torch.isfinite(parameter.grad[[1, 4]]).all() for parameter in conv.parameters())
        mask.keep_gradients()
        optimizer.step()
        mask.keep()
    assert conv(input_of(conv))[:, [1, 4]].count_nonzero() == 0


def test_restores_what_weight_norm_had() -> None:
    conv = parametrizations.weight_norm(nn.Conv2d(4, 6, 3))
    before = {name: tensor.clone() for name, tensor in conv.state_dict().items()}
    mask_filters(conv, {"": [1, 4]}).restore()
    assert all(torch.equal(tensor, before[name]) for name, tensor in conv.state_dict().items())


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def parametrized(*names: str) -> nn.Module:
    conv = nn.Conv2d(4, 6, 3)
    for name in names:
        parametrize.register_parametrization(conv, name, Doubled())
    return conv


REFUSED = {
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Conv2d(4, 6, 3)),
    "old spectral_norm": lambda: torch.nn.utils.spectral_norm(nn.Conv2d(4, 6, 3)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Conv2d(4, 6, 3)),
    "custom": lambda: parametrized("weight"),
    "custom bias": lambda: parametrized("bias"),
    "weight_norm and more": lambda: parametrize.register_parametrization(
        parametrizations.weight_norm(nn.Conv2d(4, 6, 3)), "weight", Doubled()
    ),
    "weight_norm of inputs": lambda: parametrizations.weight_norm(nn.Conv2d(6, 6, 3), dim=1),
    "weight_norm of all": lambda: parametrizations.weight_norm(nn.Conv2d(4, 6, 3), dim=None),
    "transposed weight_norm": lambda: parametrizations.weight_norm(nn.ConvTranspose2d(6, 6, 3)),
    "old weight_norm of inputs": lambda: old_weight_norm(nn.Conv2d(6, 6, 3), dim=1),
    "old weight_norm of all": lambda: old_weight_norm(nn.Conv2d(4, 6, 3), dim=None),
    "old transposed weight_norm": lambda: old_weight_norm(nn.ConvTranspose2d(6, 6, 3)),
    "torch.nn.utils.prune": lambda: prune.l1_unstructured(nn.Conv2d(4, 6, 3), "weight", 0.5),
    "pruned bias": lambda: prune.l1_unstructured(nn.Conv2d(4, 6, 3), "bias", 0.5),
}


@pytest.mark.parametrize("how", REFUSED)
def test_refuses_a_weight_made_from_others_and_touches_nothing(how: str) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), REFUSED[how]())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"should name layers with a plain weight, or with weight_norm.* Found '1' with"
    ):
        mask_filters(model, {"0": [1], "1": [1]})
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Normed(nn.Conv2d):
    """As layers of quantization-aware training have it."""

    def __init__(self) -> None:
        super().__init__(4, 6, 3)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(super().forward(x))


class NormedBefore(Normed):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.Conv2d.forward(self, x * self.norm(x.new_ones(2, 6, 1, 1)).mean())


class Scaled(nn.Conv2d):
    """Its weight has a norm of 1 for each filter, of a filter without any it is 0 / 0 unless there is an `eps`."""

    eps = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.rand(1)
        norms = self.weight.flatten(1).norm(dim=1)[:, None, None, None]
        return self._conv_forward(x, self.weight / (norms + self.eps), self.bias)


class ScaledSafely(Scaled):
    eps = 1e-6


@pytest.mark.parametrize("kind", [Normed, Scaled])
def test_refuses_a_layer_that_is_not_silent_without_weights(kind: type[nn.Module]) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), kind(4, 6, 3) if kind is Scaled else kind())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"whose output is 0 where their .* Found '1', a {kind.__name__}\."):
        mask_filters(model, {"0": [1], "1": [1]}, example_input=torch.randn(2, 4, 7, 7))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", [ScaledSafely, NormedBefore])
def test_masks_a_layer_of_somebody_s_own_that_is_silent_without_weights(kind: type[nn.Conv2d]) -> None:
    conv, state, calls = ScaledSafely(4, 6, 3) if kind is ScaledSafely else kind(), torch.get_rng_state(), []
    conv.register_forward_hook(lambda *_: calls.append(1))
    mask_filters(conv, {"": [1]}, flow=NormFlow({"": []}))
    assert not calls  # it was tried out on a copy, whose hooks are somebody's own
    assert torch.equal(torch.get_rng_state(), state)
    output = conv(torch.randn(2, 4, 5, 5))
    assert output.count_nonzero((0, 2, 3)).eq(0).tolist() == [False, True, False, False, False, False]


def test_what_is_pruned_meanwhile_stays_masked() -> None:
    conv = nn.Conv2d(4, 6, 3)
    mask = mask_filters(conv, {"": [1, 4]})
    prune.l1_unstructured(conv, "weight", 0.5)
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.1)
    for _ in range(2):
        conv(torch.randn(2, 4, 5, 5)).square().sum().backward()
        conv.weight_orig.grad[1] += 1
        mask.keep_gradients()
        assert conv.weight_orig.grad[[1, 4]].count_nonzero() == 0
        conv.weight_orig.grad[1] += 1
        optimizer.step()
        mask.keep()
        assert mask.verify()
        assert conv(torch.randn(2, 4, 5, 5))[:, [1, 4]].count_nonzero() == 0
    prune.remove(conv, "weight")
    assert mask.verify()


def test_refuses_a_parametrized_norm() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))
    parametrize.register_parametrization(model[1], "weight", Doubled())
    with pytest.raises(ValueError, match=r"followed by a norm with plain parameters\. Found '1' with \['bias', 'param"):
        mask_filters(model, {"0": [1]}, example_input=torch.randn(2, 4, 5, 5))


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_refuses_a_lazy_layer_until_it_was_run() -> None:
    conv = nn.LazyConv2d(6, 3)
    with pytest.raises(ValueError, match=r"initialised layers: run the model once before\. Found lazy ''"):
        mask_filters(conv, {"": [1]})
    conv(torch.randn(1, 4, 5, 5))
    assert_masks_only(conv, [1])
