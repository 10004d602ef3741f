"""Figures and chart layouts to whatever loggers the Trainer has.

A logger is known by what it can do, not by its class, because `lightning` and `pytorch_lightning` have two sets of
classes. "Can do" is asked of its type: Lightning's dummies answer to every name, but their types do not. Call these
functions on global rank 0 only, and behind the guard: a logger may fail.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Sequence
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


def log_page(logger: Any, name: str, page: str, step: int) -> None:
    """Log an HTML page, as a file beside TensorBoard's or CSVLogger's, where only the newest page is kept."""
    experiment: Any = getattr(logger, "experiment", None)
    kind, file = _kind(logger), f"{_file_name(name)}.html"
    if kind == "wandb":
        import wandb

        # Not as a string, which may be a path; without `inject`, which adds a style sheet from the network.
        logger.log_metrics({name: wandb.Html(io.StringIO(page), inject=False)}, step)
    elif kind == "tensorboard" and isinstance(folder := getattr(experiment, "log_dir", None), str):
        _write(folder, file, page.encode())
    elif kind == "mlflow":
        experiment.log_text(logger.run_id, page, file)
    elif kind == "comet":
        experiment.log_asset_data(page, name=file, overwrite=True, step=step)
    elif kind == "csv":
        _write(os.path.dirname(experiment.metrics_file_path), file, page.encode())


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


def log_overlay_layout(logger: Any, tags: Sequence[str], title: str) -> None:
    """Lay curves over each other in a chart of TensorBoard's custom scalars.

    TensorBoard takes one layout from each run, so call it once, when all curves are known.
    """
    experiment: Any = getattr(logger, "experiment", None)
    if _can(experiment, "add_custom_scalars"):
        # It takes a tag for the beginning of a regular expression: `loss` would bring `loss_step` along.
        curves = [f"^{re.escape(_prefixed(logger, tag))}$" for tag in tags]
        experiment.add_custom_scalars({title: {", ".join(tags): ["Multiline", curves]}})


_TRAIN, _VALIDATION = {"train", "training"}, {"val", "valid", "validation", "dev", "eval", "evaluation"}
_OTHER = {"test", "testing", "predict", "prediction"}


def loss_tags(names: Iterable[str]) -> dict[str, str]:
    """Find the "training" loss and the "validation" loss, if any, among the names in `logged_metrics`.

    A name is a loss if it has "loss" in it. Its words say its kind; without such a word it is a training loss if at
    most one word is left over (`loss`, `nll_loss`). Of several losses of a kind that one is taken which has the fewest
    words left over, "total" not counted; then one that says its kind; then an epoch's mean, one without a suffix, a
    step's value; then that of the first dataloader.

    Examples:
        >>> loss_tags(["train_loss_step", "train_loss_epoch", "epoch", "val_loss", "val_accuracy", "test_loss"])
        {'training': 'train_loss_epoch', 'validation': 'val_loss'}
    """
    best: dict[str, tuple[tuple[int, ...], str]] = {}
    for name in names:
        base, _, loader = name.partition("/dataloader_idx_")
        spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", base).lower()
        words = set(re.findall("[a-z]+", re.sub("loss(es)?", " ", spaced)))
        train, validation = bool(words & _TRAIN), bool(words & _VALIDATION)
        left_over = len(words - _TRAIN - _VALIDATION - {"epoch", "step", "total"})
        unsaid = not (train or validation)
        if "loss" not in spaced or words & _OTHER or (train and validation) or (unsaid and left_over > 1):
            continue
        variant = ("step" in words, "epoch" not in words)
        rank = (left_over, unsaid, *variant, int(loader) if loader.isdecimal() else 0)
        kind = "validation" if validation else "training"
        if kind not in best or rank < best[kind][0]:
            best[kind] = rank, name
    return {kind: best[kind][1] for kind in ("training", "validation") if kind in best}


def _can(thing: Any, method: str) -> bool:
    return callable(getattr(type(thing), method, None))


def _prefixed(logger: Any, name: str) -> str:
    """The name under which TensorBoardLogger files a metric."""
    prefix = getattr(logger, "_prefix", "")
    return f"{prefix}{getattr(logger, 'LOGGER_JOIN_CHAR', '-')}{name}" if prefix and isinstance(prefix, str) else name


def _file_name(name: str) -> str:
    """A path that any file system takes."""
    return re.sub(r"[^\w./=-]", "_", name)


def _write(folder: str, name: str, content: bytes) -> None:
    from lightning.fabric.utilities.cloud_io import get_filesystem  # a log folder may be a bucket

    path = os.path.join(folder, name)
    system = get_filesystem(path)
    system.makedirs(os.path.dirname(path), exist_ok=True)
    with system.open(path, "wb") as file:
        file.write(content)
