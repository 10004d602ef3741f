"""The base class of the callbacks: one for both of Lightning's package trees."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from lightning.pytorch.callbacks import Callback, EarlyStopping

__all__ = ["AnyCallback", "AnyEarlyStopping"]

# `lightning.pytorch` and `pytorch_lightning` are two class trees; a Trainer of either only accepts its own classes.
if TYPE_CHECKING or find_spec("pytorch_lightning") is None:

    class AnyCallback(Callback):
        """A callback for `lightning.pytorch`."""

    class AnyEarlyStopping(EarlyStopping):
        """An `EarlyStopping` for `lightning.pytorch`."""

else:
    import pytorch_lightning.callbacks as other

    class AnyCallback(Callback, other.Callback):
        """A callback for `lightning.pytorch` and `pytorch_lightning`."""

    class _Other(other.EarlyStopping):
        """Ends the chain of `super().__init__()`: this tree's class would set the same attributes again."""

        def __init__(self) -> None:
            pass

    class AnyEarlyStopping(EarlyStopping, _Other):
        """An `EarlyStopping` for `lightning.pytorch` and `pytorch_lightning`."""
