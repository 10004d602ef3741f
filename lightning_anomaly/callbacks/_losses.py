"""Find losses among logged metrics by their names, and remember them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_TRAIN, _VALIDATION = {"train", "training"}, {"val", "valid", "validation", "dev", "eval", "evaluation"}
_OTHER = {"test", "testing", "predict", "prediction"}


def loss_tags(names: Iterable[str]) -> dict[str, str]:
    """Find the "training" and the "validation" loss, if any, among the names in `logged_metrics`.

    A loss has a word that ends in "loss", and its kind is one of its words. Without such a word it is a training loss
    if it has at most one other word (`loss`, `nll_loss`). Of several losses of a kind, prefer in this order: fewest
    other words, "total" not counted; a word for the kind; an epoch's mean, then no suffix, then a step's value; the
    first dataloader.

    Examples:
        >>> loss_tags(["train_loss_step", "train_loss_epoch", "epoch", "val_loss", "val_accuracy", "test_loss"])
        {'training': 'train_loss_epoch', 'validation': 'val_loss'}
    """
    ranked = sorted(loss for loss in map(_loss_rank, names) if loss is not None)
    best = {kind: name for kind, _, name in reversed(ranked)}
    return dict(sorted(best.items()))


def validation_losses(names: Iterable[str]) -> list[str]:
    """Find the validation losses with the fewest other words; of one logged by step and by epoch, the preferred name.

    Examples:
        >>> validation_losses(["val_loss", "val_kl_loss"]), validation_losses(["val_kl_loss", "val_nll_loss"])
        (['val_loss'], ['val_kl_loss', 'val_nll_loss'])
    """
    ranked = sorted(loss for loss in map(_loss_rank, names) if loss is not None and loss[0] == "validation")
    best = {re.sub("[/_](step|epoch|dataloader_idx_.*)", "", name): name for _, _, name in reversed(ranked)}
    return sorted(name for _, rank, name in ranked if name in best.values() and rank[0] == ranked[0][1][0])


def remember_losses(history: list[dict[str, Any]], trainer: Any, epoch_ended: bool = False) -> None:
    """Add the logged losses to their entries of the history; a collective call, as it reads metrics.

    The losses of a validation and of a training step are known when the validation ends. The mean training loss of an
    epoch is known later: when the next epoch starts, or the fit ends.
    """
    results = trainer.fit_loop.epoch_loop._results.values()
    means = {result.meta.name for result in results if result.meta.on_epoch}
    metrics = trainer.logged_metrics
    for kind, name in loss_tags(metrics).items():
        spellings = {name, name.removesuffix("_epoch"), name.removesuffix("_step")}
        late = kind == "training" and not means.isdisjoint(spellings)
        owners = [entry for entry in history if not late or entry["epoch"] == trainer.current_epoch - 1]
        if late == epoch_ended and owners:
            owners[-1].setdefault("losses", {})[name] = float(metrics[name])


def _loss_rank(name: str) -> tuple[str, tuple[int, ...], str] | None:
    """Return the kind of a loss, its rank (lower is better) and its name; None if it is no loss."""
    base, _, loader = name.partition("/dataloader_idx_")
    words = re.findall("[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", base).lower())
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
