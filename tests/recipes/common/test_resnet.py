"""ResNet-18 for small images is torchvision's behind another stem."""

import torch
from torchvision.models import resnet18

from recipes.common.networks import build


def test_the_blocks_are_torchvisions() -> None:
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
    assert sum(part.out_channels for part in own.modules() if isinstance(part, torch.nn.Conv2d)) == 4800
