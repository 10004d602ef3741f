"""Each place of a tensor is known by the filters that make it, through whatever operations it came."""

import contextlib
import gc

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_anomaly.pruning.operations import watching_operations
from lightning_anomaly.pruning.origins import OriginTracker, is_followed

MODES = {"gradients": contextlib.nullcontext, "no_grad": torch.no_grad, "inference": torch.inference_mode}
WEIGHT = nn.Parameter(torch.ones(4))


def follow(function, mode: str = "no_grad", shape: tuple[int, ...] = (2, 4, 6, 6)) -> list:
    """Of each channel the numbers of the filters in it; None for something else, "lost" for what is not known."""
    with MODES[mode]():
        y, x = torch.randn(shape, requires_grad=mode == "gradients") * 1, torch.randn(shape)
        tracker = OriginTracker()
        tracker.start(y, "conv", 1)
        with watching_operations(tracker):
            z = function(y, x)
    return channels(tracker, z)


def channels(tracker: OriginTracker, tensor: Tensor) -> list:
    found = tracker.channels(tensor, min(1, tensor.dim() - 1))
    return [
        None if origin is None else [channel for _, channel in sorted(origin)] if is_followed(origin) else "lost"
        for origin in found
    ]


SAME = [[0], [1], [2], [3]]

KEEPING = {
    "relu": lambda y, x: F.relu(y),
    "relu in place": lambda y, x: F.relu(y, inplace=True),
    "relu6": lambda y, x: F.relu6(y),
    "relu6 in place": lambda y, x: F.relu6(y, inplace=True),
    "leaky_relu in place": lambda y, x: F.leaky_relu(y, inplace=True),
    "leaky_relu": lambda y, x: F.leaky_relu(y),
    "elu in place": lambda y, x: F.elu(y, inplace=True),
    "elu": lambda y, x: F.elu(y),
    "celu": lambda y, x: F.celu(y),
    "selu": lambda y, x: F.selu(y),
    "gelu": lambda y, x: F.gelu(y),
    "silu in place": lambda y, x: F.silu(y, inplace=True),
    "silu": lambda y, x: F.silu(y),
    "mish": lambda y, x: F.mish(y),
    "hardswish in place": lambda y, x: F.hardswish(y, inplace=True),
    "hardswish": lambda y, x: F.hardswish(y),
    "hardtanh": lambda y, x: F.hardtanh(y),
    "tanh": lambda y, x: y.tanh(),
    "softsign": lambda y, x: F.softsign(y),
    "prelu": lambda y, x: F.prelu(y, WEIGHT),
    "rrelu": lambda y, x: F.rrelu(y, training=True),
    "clamp": lambda y, x: y.clamp(0, 6),
    "scalar": lambda y, x: -y / 6 * 2,
    "weight": lambda y, x: y * WEIGHT.view(1, -1, 1, 1),
    "square": lambda y, x: y**2,
    "swish by hand": lambda y, x: y * torch.sigmoid(y),
    "hardswish by hand": lambda y, x: y * F.relu6(y + 3) / 6,
    "gate": lambda y, x: x[:, :, :1, :1].sigmoid() * y,
    "squeeze and excitation": lambda y, x: y * y.mean((2, 3), keepdim=True).sigmoid(),
    "normalize": lambda y, x: F.normalize(y),
    "local_response_norm": lambda y, x: F.local_response_norm(y, 3),
    "dropout": lambda y, x: F.dropout(y, 0.5),
    "dropout in place": lambda y, x: F.dropout(y, 0.5, inplace=True),
    "dropout2d": lambda y, x: F.dropout2d(y, 0.5),
    "no alpha_dropout": lambda y, x: F.alpha_dropout(y, 0.5, training=False),
    "max_pool2d": lambda y, x: F.max_pool2d(y, 2),
    "max_pool1d": lambda y, x: F.max_pool1d(y.flatten(2), 2),
    "avg_pool2d": lambda y, x: F.avg_pool2d(y, 3, padding=1),
    "adaptive_avg_pool2d": lambda y, x: F.adaptive_avg_pool2d(y, 2),
    "adaptive_max_pool2d": lambda y, x: F.adaptive_max_pool2d(y, 1),
    "lp_pool2d": lambda y, x: F.lp_pool2d(y, 2, 2),
    "mean": lambda y, x: y.mean((2, 3)),
    "nearest": lambda y, x: F.interpolate(y, scale_factor=2),
    "bilinear": lambda y, x: F.interpolate(y, scale_factor=2, mode="bilinear"),
    "pad": lambda y, x: F.pad(y, (1, 1, 2, 0)),
    "reflect": lambda y, x: F.pad(y, (1, 1, 1, 1), mode="reflect"),
    "half": lambda y, x: y.half(),
    "channels_last": lambda y, x: y.contiguous(memory_format=torch.channels_last),
    "views": lambda y, x: y[1:, :, ::2].unsqueeze(2).squeeze(2).flatten(2).detach(),
    "there and back": lambda y, x: y.permute(0, 2, 3, 1).reshape(-1, 4),
    "sum with itself": lambda y, x: F.relu(y) + y,
    "sum with zeros": lambda y, x: y + torch.zeros_like(y),
    "maximum with itself": lambda y, x: torch.maximum(y, -y),
    "in place after a copy": lambda y, x: (y.clone().add_(x), y)[1],
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", KEEPING)
def test_what_keeps_zeros_and_channels_is_followed(name: str, mode: str) -> None:
    assert follow(KEEPING[name], mode) == SAME


MOVING = {
    "cat": (lambda y, x: torch.cat([x, y], 1), [None] * 4 + SAME),
    "cat of a slice": (lambda y, x: torch.cat([y[:, 2:], y[:, :, :1, :1].expand(-1, -1, 6, 6)], 1), [[2], [3], *SAME]),
    "cat of samples": (lambda y, x: torch.cat([y, y]), SAME),
    "cat of samples with others": (lambda y, x: torch.cat([y, x]), [None] * 4),
    "chunk": (lambda y, x: y.chunk(2, 1)[1], SAME[2:]),
    "split": (lambda y, x: y.split([1, 3], 1)[1], SAME[1:]),
    "index": (lambda y, x: y[:, [3, 1]], [[3], [1]]),
    "index_select": (lambda y, x: y.index_select(1, torch.tensor([2, 2])), [[2], [2]]),
    "flip": (lambda y, x: y.flip(1), SAME[::-1]),
    "roll": (lambda y, x: y.roll(1, 1), [[3], [0], [1], [2]]),
    "repeat": (lambda y, x: y.repeat(1, 2, 1, 1), SAME * 2),
    "channel_shuffle": (lambda y, x: nn.ChannelShuffle(2)(y), [[0], [2], [1], [3]]),
    "shuffle": (
        lambda y, x: y.view(2, 2, 2, 6, 6).transpose(1, 2).contiguous().view(2, 4, 6, 6),
        [[0], [2], [1], [3]],
    ),
    "pixel_shuffle": (lambda y, x: F.pixel_shuffle(y, 2), [[0, 1, 2, 3]]),
    "pixel_unshuffle": (lambda y, x: F.pixel_unshuffle(y, 2)[:, 2:6], [[0], [0], [1], [1]]),
    "flatten": (lambda y, x: y[:, :, :1, :2].flatten(1), [[0], [0], [1], [1], [2], [2], [3], [3]]),
    "flatten of all": (lambda y, x: y.flatten(1)[:, 35:38], [[0], [1], [1]]),
    "zeros around channels": (lambda y, x: F.pad(y, (0, 0, 0, 0, 1, 1)), [[], *SAME, []]),
    "sum": (lambda y, x: y + y.flip(1), [[0, 3], [1, 2], [1, 2], [0, 3]]),
    "sum over channels": (lambda y, x: y.sum(1, keepdim=True), [[0, 1, 2, 3]]),
    "sum with something else": (lambda y, x: y + x, [None] * 4),
    "sum in place": (lambda y, x: y.add_(x[:, :1]), [None] * 4),
    "product": (lambda y, x: y * (y + y.flip(1)), SAME),
    "convolution": (lambda y, x: F.conv2d(y, torch.ones(5, 4, 1, 1)), [None] * 5),
    "linear": (lambda y, x: F.linear(y.flatten(1), torch.ones(5, 144)), [None] * 5),
    "matmul": (lambda y, x: y.flatten(2) @ torch.ones(36, 5), [None] * 4),
    "attention": (lambda y, x: F.scaled_dot_product_attention(y, x, x), [None] * 4),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MOVING)
def test_channels_are_found_where_they_go(name: str, mode: str) -> None:
    function, expected = MOVING[name]
    assert follow(function, mode) == expected


LOSING = {
    "sigmoid": lambda y, x: torch.sigmoid(y),
    "softplus": lambda y, x: F.softplus(y),
    "scalar": lambda y, x: y + 1,
    "bias": lambda y, x: y + WEIGHT.view(1, -1, 1, 1),
    "clamp": lambda y, x: y.clamp(min=0.5),
    "cos": lambda y, x: y.cos(),
    "pad": lambda y, x: F.pad(y, (1, 1, 1, 1), value=1.0),
    "softmax": lambda y, x: y.softmax(1),
    "batch_norm": lambda y, x: F.batch_norm(y, None, None, training=True),
    "cumsum": lambda y, x: y.cumsum(1),
    "two gates": lambda y, x: y * y.flip(1),
    "relu of it": lambda y, x: F.relu(y.exp()),
    "a view written to": lambda y, x: (y[:, :2].copy_(x[:, :2]), y)[1],
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", LOSING)
def test_what_makes_something_else_of_zeros_is_told_from_what_mixes_them_with_others(name: str, mode: str) -> None:
    assert follow(LOSING[name], mode) == ["lost"] * 4


def test_an_operation_of_another_library_is_not_followed() -> None:
    with torch.library._scoped_library("lightning_anomaly_test", "DEF") as library:
        library.define("relu(Tensor x) -> Tensor")
        library.impl("relu", lambda x: x.clamp(min=0.5), "CompositeExplicitAutograd")
        assert follow(lambda y, x: torch.ops.lightning_anomaly_test.relu(y)) == ["lost"] * 4


def test_origins_are_those_of_the_values_at_the_time() -> None:
    def function(y: Tensor, x: Tensor) -> Tensor:
        relu = y.relu()
        y.add_(x)
        return torch.cat([y, relu], 1)

    assert follow(function) == [None] * 4 + SAME


def test_keeps_no_tensor_alive() -> None:
    tracker = OriginTracker()
    y = torch.ones(2, 4, 6, 6)
    tracker.start(y, "conv", 1)
    with watching_operations(tracker):
        z = F.relu(y).flatten(2)
        assert channels(tracker, z) == SAME
        del y, z
    gc.collect()
    assert len(tracker) == 0


def test_an_operation_that_fails_fails_as_ever() -> None:
    with pytest.raises(RuntimeError, match="must match"):
        follow(lambda y, x: y + torch.ones(5))
    with pytest.raises(RuntimeError, match="on purpose"):
        follow(lambda y, x: (_ for _ in ()).throw(RuntimeError("on purpose")))
    assert follow(lambda y, x: y.relu()) == SAME
