"""The base class of the callbacks: one for both of Lightning's package trees."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

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

    class AnyEarlyStopping(EarlyStopping, other.EarlyStopping):
        """An `EarlyStopping` for `lightning.pytorch` and `pytorch_lightning`."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            EarlyStopping.__init__(self, *args, **kwargs)
