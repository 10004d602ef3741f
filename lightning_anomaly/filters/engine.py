"""Choose an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_anomaly.filters.numba_engine import NumbaEngine


def load_engine(name: str) -> NumbaEngine:
    """Import and return the engine with a name, see `AnalysisSettings`."""
    if name == "sklearn":
        from lightning_anomaly.filters.sklearn_engine import SklearnEngine

        return SklearnEngine()
    from lightning_anomaly.filters.numba_engine import NumbaEngine  # late, as numba takes long to import

    return NumbaEngine()
