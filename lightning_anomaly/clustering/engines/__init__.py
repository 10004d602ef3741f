"""What computes: one interface, chosen once for an analysis."""

from __future__ import annotations

from importlib import import_module

import torch

from lightning_anomaly.clustering.engines.base import Engine

__all__ = ["Engine", "choose_engine", "load_engine"]


def load_engine(name: str) -> Engine:
    """The engine of a name other than `"auto"`; its packages are imported now.

    Raises:
        ValueError: If they are not installed.
    """
    try:
        engine: Engine = import_module(f"{__name__}.{name}_engine").ENGINE()
    except ImportError as error:
        raise ValueError(
            f"Parameter `engine` should name an engine whose packages are installed. Found `engine = {name!r}`, whose "
            f'import fails with "{error}".'
        ) from error
    return engine


def choose_engine(name: str, device: torch.device) -> tuple[Engine, str | None]:
    """The engine for maps on a device, and what whoever leaves the choice to us should know about it.

    Args:
        name: See `AnalysisSettings`.
        device: Where the maps are.

    Returns:
        The engine, for `"auto"` numba's wherever numba can be imported; and a note, if there is something to say.

    Raises:
        ValueError: If an engine is asked for whose packages are not installed.
    """
    if name != "auto":
        return load_engine(name), None
    try:
        engine = load_engine("numba")
    except ValueError as error:
        return load_engine("torch"), (
            f'numba cannot be imported ("{error.__cause__}"), so plain torch clusters the filters, which takes two '
            'to three times as long on a CPU: `pip install "lightning-anomaly[fast]"`, or set `engine = "torch"` if '
            "that is what you want."
        )
    if device.type == "cuda":
        return engine, (
            f"The maps are on {device} and are taken to the CPU, where numba clusters the filters: what that costs is "
            'known, what it costs on a GPU is not yet. `engine = "torch"` clusters them where they are.'
        )
    return engine, None
