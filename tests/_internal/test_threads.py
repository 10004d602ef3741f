"""Work is done by Python's threads, in order, and torch's own threads are the caller's again afterwards."""

import threading

import pytest
import torch

from lightning_anomaly._internal.threads import torch_in_threads


def test_several_items_are_worked_on_by_threads_with_one_torch_thread_each(two_threads):
    seen = []

    def inverse(item: int) -> float:
        seen.append((threading.current_thread() is threading.main_thread(), torch.get_num_threads()))
        return 1 / item

    for threads, count in ((2, 6), (2, 1), (1, 6)):
        torch.set_num_threads(threads)
        seen.clear()
        assert list(torch_in_threads(inverse, range(1, count + 1))) == [1 / item for item in range(1, count + 1)]
        assert seen == [(True, threads) if min(threads, count) == 1 else (False, 1)] * count


def test_the_number_of_torch_threads_is_restored_even_after_an_exception(two_threads):
    with pytest.raises(ZeroDivisionError):
        list(torch_in_threads(lambda item: 1 / item, range(2)))
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert torch.get_num_threads() == later[0] == 2
