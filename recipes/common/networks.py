"""The three networks of the source paper and some others, sized for images from 16x16 to 64x64.

The paper names AlexNet, LeNet-5 and a simple CNN; their sizes are unknown, so these are our choice. AlexNet has
torchvision's five convolutions (64, 192, 384, 256 and 256 filters, 1,152 in all) and two hidden linear layers of 1,024
units. Its first stride is smaller, because the original one reduces a 32x32 image to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn
from torchvision.models import vgg11_bn as torchvision_vgg11_bn
from torchvision.models.resnet import BasicBlock


def _convolutions(channels: int, *stages: tuple[int, int, bool], stride: int = 1) -> list[nn.Module]:
    """Build convolutions with ReLUs from stages of (filters, kernel, pooled); the first one may have a stride."""
    layers: list[nn.Module] = []
    for width, kernel, pooled in stages:
        layers += [nn.Conv2d(channels, width, kernel, stride, kernel // 2), nn.ReLU(), *[nn.MaxPool2d(2)] * pooled]
        channels, stride = width, 1
    return layers


def lenet5(channels: int, classes: int, dropout: float = 0.0) -> nn.Sequential:
    """LeNet-5 with rectified units and maximum pooling: 6 and 16 filters."""
    return nn.Sequential(
        *_convolutions(channels, (6, 5, True), (16, 5, True)),
        *(nn.AdaptiveAvgPool2d(6), nn.Flatten()),
        *(nn.Dropout(dropout), nn.Linear(16 * 36, 120), nn.ReLU()),
        *(nn.Dropout(dropout), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes)),
    )


def alexnet(channels: int, classes: int, dropout: float = 0.0) -> nn.Sequential:
    """AlexNet with torchvision's 1,152 filters and a stem of stride 2 that fits 32x32 images."""
    stages = (64, 5, True), (192, 5, True), (384, 3, False), (256, 3, False), (256, 3, True)
    return nn.Sequential(
        *_convolutions(channels, *stages, stride=2),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        *(nn.Dropout(dropout), nn.Linear(256 * 4, 1024), nn.ReLU()),
        *(nn.Dropout(dropout), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, classes)),
    )


def simple_cnn(channels: int, classes: int, dropout: float = 0.0) -> nn.Sequential:
    """Three 3x3 convolutions of 32, 64 and 64 filters, then one hidden layer of 64 units."""
    return nn.Sequential(
        *_convolutions(channels, (32, 3, True), (64, 3, True), (64, 3, False)),
        *(nn.AdaptiveAvgPool2d(4), nn.Flatten()),
        *(nn.Dropout(dropout), nn.Linear(64 * 16, 64), nn.ReLU(), nn.Linear(64, classes)),
    )


def simple_cnn_bn(channels: int, classes: int, dropout: float = 0.0) -> nn.Sequential:
    """The simple CNN with a BatchNorm behind each convolution."""
    plain = simple_cnn(channels, classes, dropout)
    norms = ([nn.BatchNorm2d(layer.out_channels)] if isinstance(layer, nn.Conv2d) else [] for layer in plain)
    return nn.Sequential(*(part for layer, norm in zip(plain, norms, strict=True) for part in (layer, *norm)))


def strided_cnn_bn(channels: int, classes: int, dropout: float = 0.0) -> nn.Sequential:
    """Three 3x3 convolutions of 16, 32 and 32 filters with BatchNorm, two of them strided, and a hidden layer."""
    layers: list[nn.Module] = []
    for before, width, stride in ((channels, 16, 2), (16, 32, 2), (32, 32, 1)):
        layers += [nn.Conv2d(before, width, 3, stride, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    head = (nn.Flatten(), nn.Dropout(dropout), nn.Linear(32 * 16, 64), nn.ReLU(), nn.Linear(64, classes))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), *head)


def vgg11_bn(channels: int, classes: int, dropout: float = 0.0) -> nn.Sequential:
    """Torchvision's VGG-11 with BatchNorm, 2,752 filters, and one linear layer behind the mean of its last maps."""
    features = torchvision_vgg11_bn().features
    features[0] = nn.Conv2d(channels, 64, 3, padding=1)
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(512, classes))


def resnet18(channels: int, classes: int, dropout: float = 0.0) -> nn.Sequential:
    """ResNet-18 for 32x32 images: a 3x3 stem without pooling, eight of torchvision's blocks, 4,800 filters in all."""
    return _resnet(channels, classes, dropout, (64, 64, 64, 128, 128, 256, 256, 512, 512))


def resnet8(channels: int, classes: int, dropout: float = 0.0) -> nn.Sequential:
    """A ResNet of three blocks with 16, 32 and 64 filters, as those for CIFAR-10 are built."""
    return _resnet(channels, classes, dropout, (16, 16, 32, 64))


def _resnet(channels: int, classes: int, dropout: float, widths: Sequence[int]) -> nn.Sequential:
    """Build a stem of the first width, and one of torchvision's blocks for each further one, strided if it grows."""
    stem = widths[0]
    layers = [nn.Conv2d(channels, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem), nn.ReLU()]
    for before, width in pairwise(widths):
        stride = 1 if before == width else 2
        shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        layers.append(BasicBlock(before, width, stride, shortcut if stride == 2 else None))
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(widths[-1], classes))
    return nn.Sequential(*layers, *head)


NETWORKS = {builder.__name__: builder for builder in (lenet5, alexnet, simple_cnn)}  # those of the paper
# Experiments choose on the networks above and test on these.
_HELD_OUT = (simple_cnn_bn, strided_cnn_bn, vgg11_bn, resnet18, resnet8)


def build(name: str, channels: int, classes: int, dropout: float = 0.0) -> nn.Sequential:
    """Build one of the networks by its name, for images with `channels` channels and `classes` classes."""
    builders = NETWORKS | {builder.__name__: builder for builder in _HELD_OUT}
    return builders[name](channels, classes, dropout)
