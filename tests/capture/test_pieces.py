"""Rows gathered batch by batch: as they came, side by side in memory."""

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import profile

from lightning_anomaly.capture import maps as module
from lightning_anomaly.capture.hooks import MapCapture
from lightning_anomaly.capture.maps import Pieces


def gathered(batches: list[Tensor], most: int) -> Pieces:
    rows = Pieces()
    for batch in batches:
        rows.keep(batch, most)
        most -= len(batch)
    return rows


def test_batches_that_fit_are_one_tensor_and_others_begin_another(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = list(torch.split(torch.randn(20, 3, 2, 2), [4, 4, 1, 4, 4, 3]))
    (one,) = gathered(batches, 20)
    assert torch.equal(one, torch.cat(batches))
    assert one.untyped_storage().nbytes() == one.nbytes  # no more than there may be
    monkeypatch.setattr(module, "_ROOM", 10 * batches[0][0].nbytes)
    several = gathered(batches, 1000)
    assert [len(rows) for rows in several] == [9, 8, 3]
    assert torch.equal(torch.cat(several), torch.cat(batches))
    monkeypatch.setattr(module, "_ROOM", 1)
    assert [len(rows) for rows in gathered(batches, 20)] == [4, 4, 1, 4, 4, 3]


def test_what_is_kept_is_a_copy_and_keeps_its_type() -> None:
    batch = torch.ones(2, 3)
    rows = gathered([batch, torch.full((2, 3), 1 + 1e-12, dtype=torch.float64)], 9)
    batch.zero_()
    assert [part.dtype for part in rows] == [torch.float32, torch.float64]
    assert torch.equal(rows[0], torch.ones(2, 3))
    assert (rows[1] > 1).all()


def test_nothing_is_held_of_what_was_cleared() -> None:
    rows = gathered([torch.ones(2, 3)], 4)
    rows.clear()
    rows.keep(torch.zeros(1, 3), 1)
    assert torch.equal(torch.cat(rows), torch.zeros(1, 3))


def test_in_deterministic_mode_no_memory_is_taken_in_advance() -> None:
    batch = torch.ones(2, 3)
    torch.use_deterministic_algorithms(True)
    try:
        with profile() as ours:
            (rows,) = gathered([batch], 10**9)
        with profile() as usual:
            torch.empty(3)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(rows, batch)
    assert rows.untyped_storage().nbytes() > 2**24
    assert "aten::fill_" not in {event.key for event in ours.key_averages()}
    assert "aten::fill_" in {event.key for event in usual.key_averages()}  # torch goes on filling


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_capture_over_passes_in_any_mode_and_layout_is_that_of_one_pass(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    images = torch.randn(12, 3, 20, 20).contiguous(memory_format=layout)
    layer = nn.Conv2d(3, 4, 3)
    whole, parts = (MapCapture({"conv": layer}, limit=10) for _ in range(2))
    with torch.no_grad(), whole:
        layer(images)
    for mode, part in zip(
        (torch.inference_mode, torch.no_grad, torch.enable_grad), torch.split(images, 5), strict=True
    ):
        with mode(), parts:
            layer(part)
    found, expected = parts.maps["conv"], whole.maps["conv"]
    assert torch.allclose(found.maps, expected.maps, atol=1e-6)
    assert found.maps.shape == expected.maps.shape == (10, 4, 6, 6)
    assert not found.maps.requires_grad
    assert len(found.batches) == len(found.statistics) == 1
