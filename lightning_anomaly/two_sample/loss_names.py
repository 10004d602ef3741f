"""Which logged metrics are losses, by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable

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
