"""Find losses among logged metrics by their names, and remember what a run logs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_TRAIN, _VALIDATION = {"train", "training"}, {"val", "valid", "validation", "dev", "eval", "evaluation"}
_OTHER = {"test", "testing", "predict", "prediction"}
_LOWER = {"error", "err", "mse", "rmse", "mae", "nll", "ce", "bce", "perplexity"}
_HIGHER = {"acc", "accuracy", "precision", "recall", "f", "auc", "auroc", "iou", "dice", "map", "psnr", "ssim", "top"}


def loss_tags(names: Iterable[str]) -> dict[str, str]:
    """Find the "training" and the "validation" loss, if any, among the names in `logged_metrics`.

    Of several, prefer in this order: fewest other words, "total" not counted; a word for the kind; an epoch's mean,
    then no suffix, then a step's value; the first dataloader.
    """
    ranked = sorted(loss for loss in map(_loss_rank, names) if loss is not None)
    best = {kind: name for kind, _, name in reversed(ranked)}
    return dict(sorted(best.items()))


def validation_losses(names: Iterable[str]) -> list[str]:
    """Find the validation losses with the fewest other words, each logged by step and by epoch by one name."""
    ranked = sorted(loss for loss in map(_loss_rank, names) if loss is not None and loss[0] == "validation")
    best = {re.sub("[/_](step|epoch|dataloader_idx_.*)", "", name): name for _, _, name in reversed(ranked)}
    return sorted(name for _, rank, name in ranked if name in best.values() and rank[0] == ranked[0][1][0])


def remember_logged(history: list[dict[str, Any]], trainer: Any, epoch_ended: bool = False) -> None:
    """Add what the module logs at a validation, and its losses, to their entries of the history; a collective call.

    The mean training loss of an epoch is known after the validation: when the next epoch starts, or the fit ends.
    """
    loop, metrics = trainer.fit_loop.epoch_loop, trainer.logged_metrics
    if history and not epoch_ended:
        names = {result.meta.name for result in loop.val_loop._results.values()}
        ours = [vars(callback).get("log_key_prefix") for callback in trainer.callbacks]
        prefixes = tuple(f"{prefix}{end}" for prefix in ours if prefix for end in ("/", "_layers/"))
        history[-1]["logged"] = {
            name: float(value)
            for name, value in metrics.items()
            if not names.isdisjoint(_spellings(name)) and not name.startswith(prefixes)
        }
    means = {result.meta.name for result in loop._results.values() if result.meta.on_epoch}
    for kind, name in loss_tags(metrics).items():
        late = kind == "training" and not means.isdisjoint(_spellings(name))
        owners = [entry for entry in history if not late or entry["epoch"] == trainer.current_epoch - 1]
        if late == epoch_ended and owners:
            owners[-1].setdefault("logged", {})[name] = float(metrics[name])


def mode_by_name(name: str) -> str:
    """Return "min" for a metric that is better if lower, by its name, "max" for the opposite; empty if unknown.

    Examples:
        >>> mode_by_name("val/ce_loss"), mode_by_name("val_F1"), mode_by_name("val_temperature")
        ('min', 'max', '')
    """
    words = set(_words(name))
    lower = bool(words & _LOWER) or any(word.endswith(("loss", "losses")) for word in words)
    return "min" if lower else "max" if words & _HIGHER else ""


def _spellings(name: str) -> set[str]:
    """Return the names by which a module may have logged a metric."""
    name = name.partition("/dataloader_idx_")[0]
    return {name, name.removesuffix("_epoch"), name.removesuffix("_step")}


def _words(name: str) -> list[str]:
    return re.findall("[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())


def _loss_rank(name: str) -> tuple[str, tuple[int, ...], str] | None:
    """Return the kind of a loss, its rank (lower is better) and its name; None if no word of it ends in "loss".

    Without a word for its kind it is a training loss if it has at most one other word (`loss`, `nll_loss`).
    """
    base, _, loader = name.partition("/dataloader_idx_")
    words = _words(base)
    if not any(word.endswith(("loss", "losses")) for word in words):
        return None
    parts = {re.sub("loss(es)?$", "", word) for word in words} - {""}
    train, validation = bool(parts & _TRAIN), bool(parts & _VALIDATION)
    others = len(parts - _TRAIN - _VALIDATION - {"epoch", "step", "total"})
    unnamed = not (train or validation)
    if parts & _OTHER or (train and validation) or (unnamed and others > 1):
        return None
    rank = others, unnamed, "step" in parts, "epoch" not in parts, int(loader) if loader.isdecimal() else 0
    return "validation" if validation else "training", rank, name
