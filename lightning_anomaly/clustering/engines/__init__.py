"""What computes: one interface, chosen once for an analysis."""

from __future__ import annotations

from importlib import import_module

from lightning_anomaly.clustering.engines.base import Engine

__all__ = ["Engine", "load_engine"]


def load_engine(name: str) -> Engine:
    """The engine of a name, see `AnalysisSettings`; what it needs is imported now."""
    engine: Engine = import_module(f"{__name__}.{'numba' if name == 'auto' else name}_engine").ENGINE()
    return engine
