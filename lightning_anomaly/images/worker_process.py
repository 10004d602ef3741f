"""Read a data set in worker processes, so that whatever it does to itself, it does to a copy."""

from __future__ import annotations

import multiprocessing
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.data import DataLoader, get_worker_info

from lightning_anomaly._internal.forked import attempt, receive, send, share_nothing
from lightning_anomaly._internal.random_state import isolated_random_state
from lightning_anomaly.images.loaders import dataset_with, load_like

_TIMEOUT = 60  # seconds for a batch; a data set with threads of its own may wait for these forever in another process


def in_worker(
    loader: DataLoader[Any], *, attributes: Mapping[str, Any] | None = None, **changed: Any
) -> DataLoader[Any]:
    """Load like a loader, but in at least one worker process, where the data set may get other `attributes`.

    Raise RuntimeError where none can be forked: starting one runs the user's script again, which may not allow for
    that.
    """
    if not loader.num_workers and sys.platform != "linux":
        raise RuntimeError(f"on {sys.platform}, give the loader a worker, `num_workers=1`")
    return load_like(
        loader,
        batch_sampler=loader.batch_sampler,
        num_workers=max(1, loader.num_workers),
        timeout=loader.timeout or _TIMEOUT,
        worker_init_fn=partial(_begin_worker, loader.dataset, loader.worker_init_fn, dict(attributes or {})),
        multiprocessing_context=loader.multiprocessing_context if loader.num_workers else "fork",
        **changed,
    )


def _begin_worker(dataset: Any, begin: Any, attributes: Mapping[str, Any], number: int) -> None:
    """Set the attributes of a worker's copy of the data set, and begin it as the user's function does."""
    for name, value in attributes.items():
        setattr(dataset_with(dataset, name), name, value)
    if begin is not None:
        begin(number)


def load_batches(
    loader: DataLoader[Any], batches: Sequence[list[int]], collate_fn: Callable[[Any], Any], workers: int
) -> Iterator[tuple[Any, str]]:
    """Load items by their positions like a loader; yield each batch, or None and why it cannot be read.

    Each has its own random numbers in any process. `DataLoader`'s processes send batches through shared memory, of
    which a container has little. Raise OSError or EOFError if one died or hangs.
    """
    load = partial(_load, loader.dataset, collate_fn)
    if not workers:
        yield from (attempt(load, get_worker_info(), *batch) for batch in enumerate(batches))
        return
    context: Any = loader.multiprocessing_context or multiprocessing.get_context()
    streams, processes = [], []
    try:
        for number in range(workers):
            worker = SimpleNamespace(id=number, num_workers=workers, seed=number, dataset=loader.dataset)
            own = [*enumerate(batches)][number::workers]
            ours, theirs = socket.socketpair()
            with ours, theirs:
                ours.settimeout(loader.timeout or None)
                streams.append(ours.makefile("rb"))
                arguments = theirs, load, worker, loader.worker_init_fn, own
                processes.append(context.Process(target=_work, args=arguments, daemon=True))
                processes[-1].start()
        for number in range(len(batches)):
            yield receive(streams[number % workers])
    finally:
        for stream in streams:
            stream.close()
        for process in processes:
            process.join(1)
            process.kill()  # it hangs, and may ignore to be terminated
            process.join()


def _load(dataset: Any, collate_fn: Callable[[Any], Any], worker: Any, number: int, positions: list[int]) -> Any:
    with isolated_random_state(number):
        with _known_as(worker):
            several = getattr(dataset, "__getitems__", None)
            items = several(positions) if several else [dataset[position] for position in positions]
        return collate_fn(items)  # torch's takes shared memory if it knows to be in a worker


@contextmanager
def _known_as(worker: Any) -> Iterator[None]:
    """Tell `get_worker_info`, for which torch has no public way: a `worker_init_fn` relies on it, such as MONAI's."""
    known = get_worker_info.__globals__
    before, known["_worker_info"] = known["_worker_info"], worker
    try:
        yield
    finally:
        known["_worker_info"] = before


def _work(connection: socket.socket, load: Any, worker: Any, begin: Any, batches: Sequence[Any]) -> None:
    """Load and send batches of a number and positions each, in a worker process."""
    share_nothing(connection.fileno())
    connection.settimeout(None)
    torch.set_num_threads(1)
    with _known_as(worker):
        _, failed = attempt(begin, worker.id) if begin else (None, "")
    with suppress(KeyboardInterrupt, ConnectionError), connection.makefile("wb") as stream:  # nobody wants more
        for batch in batches:
            _, unsent = attempt(send, (None, failed) if failed else attempt(load, worker, *batch), stream)
            if unsent:
                send((None, unsent), stream)
