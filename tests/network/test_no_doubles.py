"""On devices without float64, such as Apple's GPUs, tensors are moved to the CPU before they become float64."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_anomaly.network.layer_maps import LayerMaps, summarize_maps


class Single(Tensor):
    """A tensor on a device without float64, until it is moved to the CPU."""

    device = property(lambda self: torch.device("mps"))  # type: ignore[assignment]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.cpu:
            return args[0].as_subclass(Tensor)
        result = super().__torch_function__(func, types, args, kwargs or {})
        if any(isinstance(leaf, cls) and leaf.dtype == torch.float64 for leaf in tree_leaves(result)):
            raise TypeError("Cannot convert an MPS Tensor to float64")
        return result


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def sparsity(values: Tensor) -> Tensor:
    return LayerMaps(zeros=(values > 0).sum((1, 2, 3)), count=9, size=(3,)).sparsity


def test_sparsity_is_the_same_on_a_device_without_float64() -> None:
    values = drawn(6, 4, 8, 8)
    with pytest.raises(TypeError, match="float64"):
        values.as_subclass(Single).double()
    torch.testing.assert_close(sparsity(values.as_subclass(Single)), sparsity(values), rtol=0, atol=0)


def test_maps_are_summarized_as_on_the_cpu() -> None:
    values = drawn(6, 4, 16, 12)
    found, expected = (summarize_maps(maps, 8, True) for maps in (values.as_subclass(Single), values))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.as_subclass(Tensor), other)
