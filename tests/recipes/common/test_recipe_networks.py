"""The networks of the laboratory."""

import pytest
import torch
from torchvision.models import resnet18

from recipes.common.networks import build


@pytest.mark.slow
def test_the_blocks_of_resnet18_are_torchvisions_behind_another_stem() -> None:
    own, theirs = build("resnet18", 3, 10).eval(), resnet18(num_classes=10).eval()
    blocks = [*theirs.layer1, *theirs.layer2, *theirs.layer3, *theirs.layer4]
    for mine, block in zip(own[3:11], blocks, strict=True):
        mine.load_state_dict(block.state_dict())
    own[-1].load_state_dict(theirs.fc.state_dict())
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        stem = own[:3](images)
        assert stem.shape == (4, 64, 32, 32)  # neither stride nor pooling
        maps = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(stem))))
        torch.testing.assert_close(own(images), theirs.fc(theirs.avgpool(maps).flatten(1)))


@pytest.mark.parametrize(
    ("name", "filters"),
    [*(("lenet5", 22), ("alexnet", 1152), ("simple_cnn", 160)), *(("small_vgg", 352), ("small_resnet_gn", 336))],
)
def test_networks_take_small_images(name: str, filters: int) -> None:
    network = build(name, 1, 7, 0.5)
    assert network(torch.rand(2, 1, 28, 28)).shape == (2, 7)
    assert sum(part.out_channels for part in network.modules() if isinstance(part, torch.nn.Conv2d)) == filters
    assert {part.p for part in network if isinstance(part, torch.nn.Dropout)} == {0.5}
