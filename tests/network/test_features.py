"""What is captured of samples beside maps: statistics of pixels, and features and logits of the right layer."""

from typing import Any

import pytest
import torch
import torchvision
from functional import Net
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from trainers import images

from lightning_anomaly.network.features import FeatureLayer, SampleCapture
from lightning_anomaly.network.layer_maps import MapCapture, hooked
from lightning_anomaly.scores.pixels import describe_pixels, pixel_statistics


def features(net: Net, x: Tensor) -> Tensor:
    return net.hidden(net.second(net.conv(x).relu()).mean((2, 3))).relu()


def classifier() -> Net:
    """Normalizes its images, and changes the features in place after its last layer."""
    torch.manual_seed(0)
    layers = {"conv": nn.Conv2d(3, 4, 3), "second": nn.Conv2d(4, 4, 1), "hidden": nn.Linear(4, 6)}
    layers |= {"unused": nn.Linear(6, 2), "last": nn.Linear(6, 5)}

    def forward(net: Net, x: Tensor) -> Tensor:
        found = features(net, 2 * x - 1)
        logits = net.last(found)
        found.zero_()
        return logits

    return Net(forward, **layers)


@pytest.mark.parametrize("taken", [10, 7])
def test_pixels_are_those_of_the_first_layer_and_logits_those_of_the_last(taken):
    model, x = classifier(), images(10, 3)
    capture = MapCapture({"conv": model.conv}, limit=taken, samples=SampleCapture(model, describe=describe_pixels))
    with torch.no_grad():
        for batch in x.split(4):
            with capture:
                model.eval()(batch)
        expected = features(model, 2 * x - 1)
        logits = model.last(expected)
    found = capture.samples.collected(taken)
    assert found.shape == (3, 8, 8)
    torch.testing.assert_close(found.pixels, pixel_statistics(2 * x - 1)[:taken])
    torch.testing.assert_close(found.features, expected[:taken])
    torch.testing.assert_close(found.logits, logits[:taken])
    assert found.feature_layer == FeatureLayer("last", True)
    assert capture.samples.collected(taken + 1).pixels is None
    assert not any(module._forward_hooks for module in model.modules())


class Gated(nn.Module):
    """A map times the output of two linear layers, as in a squeeze-and-excitation block."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.gate = nn.Linear(4, 2), nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.squeeze(x.mean((2, 3))).relu()).sigmoid()[:, :, None, None]


class Steps(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6))
        self.head = nn.Linear(6, 3)

    def validation_step(self, x: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.head(self.encoder(x).relu()), torch.zeros(len(x), dtype=torch.int64))


def network(forward: Any, *, gated: bool = False, **layers: nn.Module) -> Net:
    body = nn.Sequential(nn.Conv2d(1, 4, 3), Gated() if gated else nn.ReLU())
    return Net(lambda net, x: forward(net, net.body(x)), body=body, **layers)


def pooled(maps: Tensor) -> Tensor:
    return maps.mean((2, 3))


LINEAR = {"hidden": nn.Linear(4, 6), "head": nn.Linear(6, 3)}
LINEAR["hidden"].bias.data[:3] = -9  # so that a ReLU changes its output
HEAD, BODY = FeatureLayer("head", True), FeatureLayer("body.0", False)
HEADS: dict[str, tuple[Any, FeatureLayer]] = {
    "alone, rounded": (network(lambda n, x: n.head(n.hidden(pooled(x))).half(), **LINEAR), HEAD),
    "a gate alone": (network(lambda n, x: x, gated=True), BODY),
    "behind a gate": (network(lambda n, x: n.head(pooled(x)), gated=True, head=nn.Linear(4, 1)), HEAD),
    "one logit, squeezed": (
        network(lambda n, x: n.head(n.hidden(pooled(x))).squeeze(1), hidden=nn.Linear(4, 6), head=nn.Linear(6, 1)),
        HEAD,
    ),
    "a mapping with boxes": (
        network(
            lambda n, x: {"logits": n.head(pooled(x)), "boxes": n.boxes(pooled(x)).sigmoid() * 9},
            head=nn.Linear(4, 3),
            boxes=nn.Linear(4, 8),
        ),
        HEAD,
    ),
    "log-probabilities": (network(lambda n, x: (n.head(n.hidden(pooled(x))).log_softmax(1), x), **LINEAR), HEAD),
    "features only": (network(lambda n, x: n.hidden(pooled(x)).relu(), **LINEAR), BODY),
    "patches": (network(lambda n, x: n.head(x.flatten(2).transpose(1, 2)), head=nn.Linear(4, 2)), BODY),
    "parts of a LightningModule": (Steps(), HEAD),
    "SqueezeNet": (torchvision.models.squeezenet1_1(), FeatureLayer("classifier.1", True)),
    "MobileNet": (torchvision.models.mobilenet_v3_small(num_classes=7), FeatureLayer("classifier.3", True)),
}


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_the_head_is_the_layer_whose_output_the_model_returns(name):
    model, head = HEADS[name]
    large = name in ("SqueezeNet", "MobileNet")
    x = images(5, 3, 64) if large else images(5)
    capture = SampleCapture(model.eval())
    call = getattr(model, "validation_step", None) or model
    for batch in (x[:3], x[3:]):
        with hooked(capture.hooks):
            output = call(batch)
        capture.end_pass(len(batch))
    assert capture.problem is None
    found = capture.collected(5)
    assert (capture.feature_layer, found.feature_layer) == (head, head)
    assert found.features.shape[0] == 5
    assert (found.logits is not None) == head.logits
    if large:
        torch.testing.assert_close(found.logits[3:], output)
    assert not any(module._forward_hooks for module in model.modules())
