"""Operations are seen as they are, and neither they nor what is compiled later notice."""

import contextlib
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.flop_counter import FlopCounterMode

from lightning_anomaly.pruning.operations import watching_operations

MODES = {"gradients": contextlib.nullcontext, "no_grad": torch.no_grad, "inference": torch.inference_mode}


class Names:
    """The names of the operations that it was shown."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def before(self, tensors: list[Tensor]) -> int:
        return len(tensors)

    def after(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], before: int, result: Any) -> None:
        assert before == len(tensors)
        self.seen.append(func.overloadpacket.__name__)


class Several(nn.Module):
    """Layers that torch computes in one of several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU6(inplace=True),
            nn.Dropout2d(0.5),
            nn.Upsample(scale_factor=2),
        )
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.1)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
        self.recurrent = nn.LSTM(8, 4)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.maps(x).flatten(2).permute(2, 0, 1)
        tokens = tokens + self.attention(tokens, tokens, tokens)[0]
        tokens = self.encoder(tokens.transpose(0, 1)).transpose(0, 1)  # not contiguous
        return torch.einsum(
            "sno,nso->no", self.head(self.recurrent(tokens)[0]), self.head(tokens[..., :4]).transpose(0, 1)
        )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("amp", [False, True], ids=["float32", "autocast"])
def test_nothing_that_is_computed_changes(mode: str, training: bool, amp: bool) -> None:
    torch.manual_seed(0)
    model, images = Several().train(training), torch.randn(2, 3, 6, 6)
    names = Names()

    def run() -> list[Tensor]:
        torch.manual_seed(1)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            output = model(images)
        if output.requires_grad:
            output.float().sum().backward()
        return [output.detach(), torch.rand(3), *(p.grad for p in model.parameters() if p.grad is not None)]

    with MODES[mode]():
        expected = run()
        with watching_operations(names):
            found = run()
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert len(found) > 2 or mode != "gradients"
    assert len(names.seen) > 20


def test_modules_functions_methods_and_scripts_are_seen() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        script = torch.jit.script(nn.Softplus())
    names = Names()
    with watching_operations(names):
        x = nn.ReLU()(torch.ones(3))
        script(nn.functional.silu(x).tanh())
    assert names.seen == ["ones", "relu", "silu", "tanh", "softplus"]
    torch.ones(3)
    assert len(names.seen) == 5


def test_watchers_that_overlap_end_in_any_order_and_leave_compiled_models_compiled() -> None:
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    names = [Names(), Names()]
    for first, last in ((0, 1), (1, 0)):
        watching = [watching_operations(name) for name in names]
        for watch in watching:
            watch.__enter__()
        torch.ones(1)
        watching[first].__exit__(None, None, None)
        torch.ones(1)
        watching[last].__exit__(None, None, None)
        assert _get_current_dispatch_mode() is None
    assert [len(name.seen) for name in names] == [3, 3]
    assert torch.compile(torch.sin, backend=backend)(torch.zeros(1)) == 0
    assert len(graphs) == 1


@pytest.mark.parametrize("mode", MODES)
def test_other_modes_see_what_they_see_without(mode: str) -> None:
    model, images = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)), torch.ones(1, 3, 6, 6)
    counts = []
    with MODES[mode]():
        for inside in (contextlib.nullcontext(), watching_operations(Names())):
            with FlopCounterMode(display=False) as counter, inside:
                model(images)
            counts.append(counter.get_flop_counts()["Global"])
    assert counts[0] == counts[1]
    assert len(counts[0]) == 2


def test_an_exception_comes_through_and_leaves_no_mode() -> None:
    with pytest.raises(RuntimeError, match="must match"), watching_operations(Names()):
        torch.ones(2) + torch.ones(3)
    assert _get_current_dispatch_mode() is None
