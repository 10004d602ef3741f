"""A model that was run on a probe has the state that it had; what it has built at its first call it keeps."""

from collections import OrderedDict, deque
from typing import Any

import properties
import pytest
import torch
from torch import Tensor, nn

from lightning_anomaly import analyze

PROBE = torch.randn(70, 1, 8, 8, generator=torch.Generator().manual_seed(0))  # two batches of unlike size


class Remembers(nn.Module):
    """Adds what it was called with before, as spiking and recurrent layers do; `place` is where it is kept."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.conv, self.place = nn.Conv2d(1, 2, 3), place
        self.state: Tensor | None = None
        self.states: dict[str, Tensor] = {}
        self.history: list[Tensor] = []
        self.queue, self.ordered = deque[Tensor](maxlen=2), OrderedDict[str, Tensor]()
        self.plain = torch.zeros(0)
        self.register_buffer("late", None)
        self.register_buffer("potential", torch.zeros(0), persistent=False)

    def read(self) -> Tensor | None:
        found = {"attribute": self.state, "dict": self.states.get("x"), "late buffer": self.late}
        found |= {"list": self.history[-1] if self.history else None, "ordered dict": self.ordered.get("x")}
        found |= {"deque": self.queue[-1] if self.queue else None, "tensor": self.plain if self.plain.numel() else None}
        found |= {"buffer": self.potential if self.potential.numel() else None}
        return found[self.place]

    def write(self, x: Tensor) -> None:
        if self.place == "attribute":
            self.state = x
        elif self.place == "dict":
            self.states["x"] = x
        elif self.place == "list":
            self.history.append(x)
        elif self.place == "deque":
            self.queue.append(x)
        elif self.place == "ordered dict":
            self.ordered["x"] = x
        elif self.place == "tensor":
            self.plain.resize_(x.shape).copy_(x)
        elif self.place == "buffer":
            self.potential.resize_(x.shape).copy_(x)
        else:
            self.late = x

    def forward(self, x: Tensor) -> Tensor:
        before = self.read()
        self.write(x if before is None else before + x)
        self.extra = len(x)
        self.register_buffer("cache", torch.arange(len(x)), persistent=False)
        found: Tensor = self.conv(self.read())
        return found


@pytest.mark.parametrize(
    "place", ["attribute", "dict", "ordered dict", "list", "deque", "tensor", "late buffer", "buffer"]
)
def test_a_state_is_as_before_after_each_batch(place: str) -> None:
    model = Remembers(place)
    report = analyze(model, PROBE)
    properties.assert_same(report.layers["conv"], analyze(model.conv, PROBE).layers[""], ["labels", "outliers"])
    assert model.read() is None
    assert not hasattr(model, "extra")
    assert not hasattr(model, "cache")
    model(PROBE[:5])
    state = model.read()
    assert state is not None
    values = state.clone()
    with pytest.raises(RuntimeError, match="must match"):
        analyze(model, PROBE)
    assert model.read() is state
    assert torch.equal(state, values)
    assert model.extra == len(model.cache) == 5


class Builds(nn.Module):
    """Gets what it needs when it is first called."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.built, self.calls = kind, False, 0
        self.first, self.layers = nn.Conv2d(1, 1, 3), nn.ModuleList()
        self.register_parameter("scale", None)
        self.handle: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if not self.built:
            self.built = True
            if self.kind == "submodule":
                self.conv = nn.Conv2d(1, 2, 3)
            elif self.kind == "submodule of another":
                self.layers.append(nn.Conv2d(1, 2, 3))
            elif self.kind == "parameter":
                self.scale = nn.Parameter(torch.rand(1))
            else:
                self.handle = self.first.register_forward_hook(lambda *_: None)
        x = self.first(x)
        for layer in (*self.layers, *([self.conv] if hasattr(self, "conv") else [])):
            x = layer(x)
        return x if self.scale is None else x * self.scale


@pytest.mark.parametrize("kind", ["submodule", "submodule of another", "parameter", "hook"])
def test_what_a_model_builds_at_its_first_call_it_keeps(kind: str) -> None:
    model = Builds(kind)
    analyze(model, PROBE)
    assert model.built
    built = [*model.parameters()], len(model.first._forward_hooks)
    model(PROBE)
    again = [*model.parameters()], len(model.first._forward_hooks)
    assert len(built[0]) == len(again[0])
    assert all(a is b for a, b in zip(built[0], again[0], strict=True))
    assert built[1] == again[1] == (kind == "hook")
    calls = model.calls
    analyze(model, PROBE)
    assert model.calls == calls


def test_attributes_of_any_kind_are_no_obstacle() -> None:
    model = Remembers("attribute")
    model.use_hooks, model.n_hooks, model.own_hooks = False, 0, [torch.rand(2), torch.rand(2)]
    model.names, same = {"a", "b"}, {"a", "b"}
    assert analyze(model, PROBE).layers
    assert model.names == same


@pytest.mark.filterwarnings("ignore:.torch.jit.* is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is not supported:DeprecationWarning")
def test_buffers_that_a_scripted_part_sets_are_given_back() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls = self.calls + 1
            return x

    model = nn.Sequential(torch.jit.script(Counts()), nn.Conv2d(1, 2, 3))
    analyze(model, PROBE)
    assert model[0].calls == 0
