"""Work is done by Python's threads, in order, and torch's own threads are the caller's again afterwards."""

import threading

import torch

from lightning_anomaly.threads import torch_in_threads


def test_threads_work_where_there_are_several_items_on_the_cpu(two_threads):
    seen = []

    def negative(item: int) -> int:
        seen.append((threading.current_thread() is threading.main_thread(), torch.get_num_threads()))
        return -item

    for count, device, alone in ((6, "cpu", False), (1, "cpu", True), (6, "meta", True)):
        seen.clear()
        assert list(torch_in_threads(negative, range(count), torch.device(device))) == [-item for item in range(count)]
        assert seen == [(alone, 2 if alone else 1)] * count
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert list(torch_in_threads(negative, range(6), torch.device("cpu"))) == [0, -1, -2, -3, -4, -5]
    assert seen[-1] == (True, 1)
