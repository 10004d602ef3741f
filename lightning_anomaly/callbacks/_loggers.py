"""Figures and pages to whatever loggers the Trainer has.

A logger is known by what it can do, not by its class, because `lightning` and `pytorch_lightning` have two sets of
classes. "Can do" is asked of its type: Lightning's dummies answer to every name, but their types do not. Call these
functions on global rank 0 only, and behind the guard: a logger may fail.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable
from typing import Any


def log_figure(logger: Any, name: str, figure: Any, step: int) -> None:
    """Log a figure of `plots`, as a PNG file beside CSVLogger's; slashes in its name make groups or folders."""
    experiment: Any = getattr(logger, "experiment", None)
    kind, file = _kind(logger), f"{_file_name(name)}/step={step:06d}.png"
    if kind == "wandb":
        # Its logger turns the step into a metric, "trainer/global_step". W&B's own step, which must never go back and
        # would discard what does, is left to count by itself.
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


def log_page(logger: Any, name: str, page: str, step: int) -> str | None:
    """Log an HTML page; return its path if it is a file, of which TensorBoard and CSVLogger keep the newest."""
    experiment: Any = getattr(logger, "experiment", None)
    kind, file = _kind(logger), f"{_file_name(name)}.html"
    if kind == "wandb":
        import wandb

        # Not as a string, which may be a path; without `inject`, which adds a style sheet from the network.
        logger.log_metrics({name: wandb.Html(io.StringIO(page), inject=False)}, step)
    elif kind == "tensorboard" and isinstance(folder := getattr(experiment, "log_dir", None), str):
        return _write(folder, file, page.encode())
    elif kind == "mlflow":
        experiment.log_text(logger.run_id, page, file)
    elif kind == "comet":
        experiment.log_asset_data(page, name=file, overwrite=True, step=step)
    elif kind == "csv":
        return _write(os.path.dirname(experiment.metrics_file_path), file, page.encode())
    return None


def _kind(logger: Any) -> str:
    """Which logger this is; "" for one that takes no figures."""
    experiment = getattr(logger, "experiment", None)
    if _can(logger, "log_image"):
        return "wandb"
    if _can(experiment, "add_figure"):
        return "tensorboard"
    if _can(experiment, "log_figure"):
        return "mlflow" if hasattr(type(logger), "run_id") else "comet"  # MLflow's client serves many runs
    return "csv" if isinstance(getattr(experiment, "metrics_file_path", None), str) else ""


_TRAIN, _VALIDATION = {"train", "training"}, {"val", "valid", "validation", "dev", "eval", "evaluation"}
_OTHER = {"test", "testing", "predict", "prediction"}


def loss_tags(names: Iterable[str]) -> dict[str, str]:
    """Find the "training" loss and the "validation" loss, if any, among the names in `logged_metrics`.

    A name is a loss if one of its words ends in "loss". Its words say its kind; without such a word it is a training
    loss if at most one word is left over (`loss`, `nll_loss`). Of several losses of a kind that one is taken which has
    the fewest words left over, "total" not counted; then one that says its kind; then an epoch's mean, one without a
    suffix, a step's value; then that of the first dataloader.

    Examples:
        >>> loss_tags(["train_loss_step", "train_loss_epoch", "epoch", "val_loss", "val_accuracy", "test_loss"])
        {'training': 'train_loss_epoch', 'validation': 'val_loss'}
    """
    ranked = sorted(found for found in map(_loss_rank, names) if found is not None)
    best = {kind: name for kind, _, name in reversed(ranked)}
    return {kind: best[kind] for kind in ("training", "validation") if kind in best}


def validation_losses(names: Iterable[str]) -> list[str]:
    """Find the validation losses that fit best, of one that is logged by step and by epoch the better.

    Examples:
        >>> validation_losses(["val_loss", "val_kl_loss"]), validation_losses(["val_kl_loss", "val_nll_loss"])
        (['val_loss'], ['val_kl_loss', 'val_nll_loss'])
    """
    ranked = sorted(found for found in map(_loss_rank, names) if found is not None and found[0] == "validation")
    best = {re.sub("[/_](step|epoch|dataloader_idx_.*)", "", name): name for _, _, name in reversed(ranked)}
    return sorted(name for _, rank, name in ranked if name in best.values() and rank[0] == ranked[0][1][0])


def _loss_rank(name: str) -> tuple[str, tuple[int, ...], str] | None:
    """The kind of a loss, its rank among those of the kind, the lower the better, and its name; None for another."""
    base, _, loader = name.partition("/dataloader_idx_")
    words = re.findall("[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", base).lower())
    if not any(word.endswith(("loss", "losses")) for word in words):
        return None
    said = {re.sub("loss(es)?$", "", word) for word in words} - {""}
    train, validation = bool(said & _TRAIN), bool(said & _VALIDATION)
    left_over = len(said - _TRAIN - _VALIDATION - {"epoch", "step", "total"})
    unsaid = not (train or validation)
    if said & _OTHER or (train and validation) or (unsaid and left_over > 1):
        return None
    rank = left_over, unsaid, "step" in said, "epoch" not in said, int(loader) if loader.isdecimal() else 0
    return "validation" if validation else "training", rank, name


def _can(thing: Any, method: str) -> bool:
    return callable(getattr(type(thing), method, None))


def _prefixed(logger: Any, name: str) -> str:
    """The name under which TensorBoardLogger files a metric."""
    prefix = getattr(logger, "_prefix", "")
    return f"{prefix}{getattr(logger, 'LOGGER_JOIN_CHAR', '-')}{name}" if prefix and isinstance(prefix, str) else name


def _file_name(name: str) -> str:
    """A path that any file system takes."""
    return re.sub(r"[^\w./=-]", "_", name)


def _write(folder: str, name: str, content: bytes) -> str:
    """Write a file, and return its path."""
    from lightning.fabric.utilities.cloud_io import get_filesystem  # a log folder may be a bucket

    path = os.path.join(folder, name)
    system = get_filesystem(path)
    system.makedirs(os.path.dirname(path), exist_ok=True)
    with system.open(path, "wb") as file:
        file.write(content)
    return path
