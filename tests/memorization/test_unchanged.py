import pytest
import torch
from torch import Tensor, nn

from lightning_anomaly.images.image_source import ImageSource
from lightning_anomaly.memorization.comparison import compare_groups
from lightning_anomaly.memorization.unchanged import BeforeLastLayer


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        self.head = nn.Linear(32, 3)
        self.scale = 1.0  # is in no state dict
        self.seen = 0  # images

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return self.head(self.backbone(images).flatten(1) * self.scale)


@torch.no_grad()
def change(net: Net, what: str) -> None:
    if what == "head":
        net.head.weight.add_(torch.randn(3, 32, generator=torch.Generator().manual_seed(1)))
    elif what == "weight":
        net.backbone[0].weight[0, 0, 0, 0] += 1e-3
    elif what == "buffer":
        net.backbone[1].running_mean[3] += 0.1
    elif what == "attribute":
        net.scale = 1.5
    else:
        net.head = nn.Sequential(nn.ReLU(), nn.Linear(32, 3))


@pytest.mark.parametrize("what", ["head", "weight", "buffer", "attribute", "new head"])
def test_comparison_is_the_same_as_from_the_first_layer_on(what: str) -> None:
    net, kept = Net(), BeforeLastLayer()
    images = torch.randn(150, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    sources = ImageSource(images[:90] * 1.2, "train_inputs"), ImageSource(images[90:], "val_inputs")
    compare_groups(net, *sources, None, kept=kept)
    change(net, what)
    net.seen = 0
    again = compare_groups(net, *sources, None, kept=kept)
    seen, anew = net.seen, compare_groups(net, *sources, None)
    assert again.metrics() == anew.metrics()
    assert again.filters == anew.filters
    assert again.notes == anew.notes
    assert torch.equal(again.train_errors, anew.train_errors)
    assert torch.equal(again.val_errors, anew.val_errors)
    assert (seen == 2) == (what == "head"), f"{seen} of 150 images went through the network"
