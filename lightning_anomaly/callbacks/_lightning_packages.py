"""Callbacks for `lightning` and for `pytorch_lightning`, whose Trainers each take only their own classes."""

from __future__ import annotations

import sys
from typing import Any

from lightning_utilities.core import rank_zero

# Both packages log through this module, and the last one imported takes it over: undo that.
_before = {name: getattr(rank_zero, name) for name in ("log", "rank_zero_deprecation_category")}
from lightning.pytorch.callbacks import Callback, EarlyStopping  # noqa: E402

if "pytorch_lightning" in sys.modules:
    vars(rank_zero).update(_before)


class AnyCallback(Callback):
    """A callback of `lightning`, and of `pytorch_lightning` if that is imported before a callback is made."""

    log_key_prefix: str
    _fitting: bool | None = None  # see `begin_stage`

    def __init__(self, *arguments: Any, **options: Any) -> None:
        _add_other_bases()
        super().__init__(*arguments, **options)

    @property
    def state_key(self) -> str:
        """The key of this callback's state in a checkpoint."""
        key = f"{type(self).__name__}[{self.log_key_prefix}]"
        # Contains an identity until `setup`, whose error for two equal prefixes is clearer than the Trainer's.
        return f"{key} {id(self)}" if self._fitting is None else key


class AnyEarlyStopping(EarlyStopping):
    """An `EarlyStopping` of the same packages."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        _add_other_bases()
        super().__init__(*arguments, **options)


def _add_other_bases() -> None:
    """Add the bases of `pytorch_lightning`, if that is imported already: importing it here would take over the log."""
    other: Any = sys.modules.get("pytorch_lightning.callbacks")
    if other is not None and not issubclass(AnyCallback, other.Callback):
        # Ends the chain of `super().__init__()`: its class would set the same attributes again.
        last = type("EarlyStopping", (other.EarlyStopping,), {"__init__": lambda self: None})
        AnyCallback.__bases__ = (Callback, other.Callback)
        AnyEarlyStopping.__bases__ = (EarlyStopping, last)


_add_other_bases()  # for LightningCLI, which looks at the class before it makes one
