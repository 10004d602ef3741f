"""Find losses among logged metrics by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable

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
