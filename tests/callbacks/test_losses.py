"""Losses are found among logged metrics by their names."""

import pytest

from lightning_anomaly.callbacks._losses import loss_tags, validation_losses


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("epoch accuracy val_accuracy lr-Adam", []),
        ("train_loss_step train_loss train_loss_epoch val_loss", ["train_loss_epoch", "val_loss"]),
        ("train_loss_step val_loss_step val_loss_epoch", ["train_loss_step", "val_loss_epoch"]),
        ("Loss/val Loss/train", ["Loss/train", "Loss/val"]),
        ("valloss trainloss", ["trainloss", "valloss"]),
        ("losses/train losses/eval", ["losses/train", "losses/eval"]),
        ("train_aux_loss train_loss val_kl_loss val_loss", ["train_loss", "val_loss"]),
        ("train_loss test_loss test/loss_epoch", ["train_loss"]),
        ("val_loss/dataloader_idx_10 val_loss/dataloader_idx_2", ["val_loss/dataloader_idx_2"]),
        ("anomaly_filters/layer/loss_net.conv1 anomaly_filters/count", []),
        ("train_val_loss_gap training_step_time evaluation_loss", ["evaluation_loss"]),
    ],
)
def test_losses_are_recognised_by_their_names_in_any_order(names, found):
    losses = loss_tags(names.split())
    assert losses == loss_tags(names.split()[::-1])
    assert list(losses.values()) == found


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("loss train_loss epoch val_accuracy", ""),
        ("val_loss val_kl_loss train_loss", "val_loss"),
        ("val_kl_loss val_nll_loss val_kl_x_loss", "val_kl_loss val_nll_loss"),
        ("val_loss/dataloader_idx_1 val_loss/dataloader_idx_0", "val_loss/dataloader_idx_0"),
    ],
)
def test_a_validation_loss_is_one_name_unless_several_are_as_simple(names: str, found: str) -> None:
    assert validation_losses(names.split()) == found.split()
