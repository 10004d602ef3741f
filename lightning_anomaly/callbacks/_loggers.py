"""Log figures to any logger.

A logger is recognized by the methods of its type, because `lightning` and `pytorch_lightning` have two sets of classes.
Lightning's dummy loggers answer to every name, but their types do not. Call this on global rank 0 only, and guarded: a
logger may fail.
"""

from __future__ import annotations

import io
import os
import re
from typing import Any


def log_figure(logger: Any, name: str, figure: Any, step: int) -> None:
    """Log a figure of `plots`, with CSVLogger as a PNG file; slashes in the name make groups or folders."""
    experiment: Any = getattr(logger, "experiment", None)
    kind, file = _kind(logger), f"{_file_name(name)}/step={step:06d}.png"
    if kind == "wandb":
        # The logger turns the step into a metric, "trainer/global_step". W&B counts its own step, and would discard
        # values that are logged with a smaller one than before.
        from PIL import Image

        logger.log_image(key=name, images=[Image.open(io.BytesIO(figure._repr_png_()))], step=step)
    elif kind == "tensorboard":
        experiment.add_figure(_prefixed(logger, name), figure, global_step=step, close=False)
    elif kind == "mlflow":
        experiment.log_figure(logger.run_id, figure, file)
    elif kind == "comet":
        experiment.log_figure(figure_name=name, figure=figure, step=step)
    elif kind == "csv":
        _write(os.path.dirname(experiment.metrics_file_path), file, figure._repr_png_())


def _kind(logger: Any) -> str:
    """Return the kind of a logger; "" if it takes no figures."""
    experiment = getattr(logger, "experiment", None)
    if _can(logger, "log_image"):
        return "wandb"
    if _can(experiment, "add_figure"):
        return "tensorboard"
    if _can(experiment, "log_figure"):
        return "mlflow" if hasattr(type(logger), "run_id") else "comet"  # MLflow's client serves many runs
    return "csv" if isinstance(getattr(experiment, "metrics_file_path", None), str) else ""


def _can(thing: Any, method: str) -> bool:
    return callable(getattr(type(thing), method, None))


def _prefixed(logger: Any, name: str) -> str:
    """Return the name under which TensorBoardLogger logs a metric."""
    prefix = getattr(logger, "_prefix", "")
    return f"{prefix}{getattr(logger, 'LOGGER_JOIN_CHAR', '-')}{name}" if prefix and isinstance(prefix, str) else name


def _file_name(name: str) -> str:
    """Return a path that every file system allows."""
    return re.sub(r"[^\w./=-]", "_", name)


def _write(folder: str, name: str, content: bytes) -> None:
    """Write a file."""
    from lightning.fabric.utilities.cloud_io import get_filesystem  # a log folder may be a bucket

    path = os.path.join(folder, name)
    system = get_filesystem(path)
    system.makedirs(os.path.dirname(path), exist_ok=True)
    with system.open(path, "wb") as file:
        file.write(content)
