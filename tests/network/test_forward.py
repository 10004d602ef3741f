"""Running a probe does not change the model, whatever its wrapper, and batches do not affect each other."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from functional import Net
from lightning.fabric import Fabric
from torch import Tensor, nn

from lightning_anomaly import analyze, two_sample_test
from lightning_anomaly.images.image_source import ImageSource
from lightning_anomaly.network.forward import run_model
from lightning_anomaly.network.layer_maps import MapCapture
from lightning_anomaly.network.layers import select_layers

IMAGES = torch.randn(150, 1, 9, 9, generator=torch.Generator().manual_seed(0))


class Remembers(nn.Module):
    """Adds its previous input, which it stores in a buffer, in place or as a new tensor."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.norm, self.how = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), how
        self.register_buffer("state", torch.zeros(0), persistent=False)
        self.gradients: list[bool] = []
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.gradients.append(torch.is_grad_enabled())
        self.sizes.append(len(x))
        total = x + self.state if self.state.numel() else x
        if self.how == "in place":
            self.state.resize_(x.shape).copy_(total)
        else:
            self.state = total
        return self.norm(self.conv(total)).amax((2, 3))


def maps_of(model: nn.Module, inputs: Any) -> dict[str, Tensor]:
    capture = MapCapture(select_layers(model), rectify=False, max_map_side=9)
    run_model(model, ImageSource(inputs, "inputs"), capture)
    return {name: layer.maps for name, layer in capture.maps.items()}


@pytest.mark.parametrize("how", ["in place", "anew"])
def test_buffers_are_restored_after_each_batch(how: str) -> None:
    model = Remembers(how)
    buffer = model.state
    maps = maps_of(model, IMAGES[:70])["conv"]
    assert not any(model.gradients)
    torch.testing.assert_close(maps, model.conv(IMAGES[:70]).detach())
    assert model.state is buffer
    assert buffer.numel() == 0
    model(IMAGES[:5])
    buffer, values = model.state, model.state.clone()
    with pytest.raises(RuntimeError, match="must match"):
        run_model(model, ImageSource(IMAGES, "inputs"), MapCapture({}))
    assert model.state is buffer
    assert torch.equal(buffer, values)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "Fabric": lambda model: Fabric(accelerator="cpu").setup(model),
    "data parallel": nn.DataParallel,
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_wrapped_models_give_the_same_maps(kind: str) -> None:
    inner = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    (maps,) = maps_of(WRAPPERS[kind](inner), IMAGES[:70]).values()
    torch.testing.assert_close(maps, inner[0](IMAGES[:70]).detach())
    assert inner[1].training
    assert not inner[1].running_mean.any()
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("batch_size", "expected"), [(64, [50, 50, 50]), (1000, [150]), (149, [75, 75]), (1, [1] * 150)]
)
def test_batches_have_nearly_equal_sizes_up_to_the_largest(batch_size: int, expected: list[int]) -> None:
    sizes: list[int] = []
    inputs = ImageSource(IMAGES, "inputs", batch_size)
    run_model(nn.Flatten(), inputs, MapCapture({}), take_output=lambda out: sizes.append(len(out)))
    assert sizes == expected


def test_the_batch_size_is_an_argument() -> None:
    model = Remembers("in place")
    analyze(model, IMAGES, batch_size=30)
    assert set(model.sizes) == {30}
    two_sample_test(model, IMAGES[:75], IMAGES[75:], batch_size=30)
    assert set(model.sizes[5:]) == {25}
    for call in (analyze, partial(two_sample_test, val_inputs=IMAGES)):
        with pytest.raises(ValueError, match="Found `batch_size = 0`"):
            call(model, IMAGES, batch_size=0)


def test_inputs_are_unchanged() -> None:
    model = Net(lambda net, images: net.conv(images.add_(1)), conv=nn.Conv2d(1, 2, 3))
    before = IMAGES.clone()
    torch.testing.assert_close(maps_of(model, IMAGES)["conv"], model(before + 0).detach())
    assert torch.equal(IMAGES, before)
