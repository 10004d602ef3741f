"""Read a data set in a worker process, so that whatever it does to itself, it does to a copy."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from torch.utils.data import DataLoader, get_worker_info

from lightning_anomaly.images.dataset_facts import dataset_with
from lightning_anomaly.images.loaders import load_like

_TIMEOUT = 60  # seconds for a batch; a data set with threads of its own may wait for these forever in another process


def in_worker(
    loader: DataLoader[Any], *, attributes: Mapping[str, Any] | None = None, **changed: Any
) -> DataLoader[Any]:
    """Load like a loader, but in at least one worker process, where the data set may get other `attributes`.

    Raise RuntimeError where a process cannot be forked and the loader has none: starting one runs the user's script
    again, which may not allow for that.
    """
    if not loader.num_workers and sys.platform != "linux":
        raise RuntimeError(f"on {sys.platform}, give the loader a worker, `num_workers=1`")
    return load_like(
        loader,
        batch_sampler=loader.batch_sampler,
        num_workers=max(1, loader.num_workers),
        timeout=loader.timeout or _TIMEOUT,
        worker_init_fn=partial(_begin_worker, loader.worker_init_fn, dict(attributes or {})),
        multiprocessing_context=loader.multiprocessing_context if loader.num_workers else "fork",
        **changed,
    )


def _begin_worker(begin: Callable[[int], None] | None, attributes: Mapping[str, Any], number: int) -> None:
    """Begin a worker as the user's function does, and set the attributes of its copy of the data set."""
    _reopen_files()
    info = get_worker_info()
    for name, value in attributes.items():
        setattr(dataset_with(info.dataset if info else None, name), name, value)
    if begin is not None:
        begin(number)


def _reopen_files() -> None:
    """Open all files for reading again, as a forked process moves the place from which the other one reads on.

    A data set that keeps a zip archive open would read wrong bytes in the run.
    """
    if not os.path.isdir("/proc/self/fd"):
        return  # not on Linux, where no process is forked
    from fcntl import F_GETFL, fcntl

    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the listing's own is closed by now
            number = int(name)
            is_read = fcntl(number, F_GETFL) & os.O_ACCMODE == os.O_RDONLY
            if is_read and stat.S_ISREG(os.fstat(number).st_mode):
                again = os.open(f"/proc/self/fd/{name}", os.O_RDONLY)
                os.lseek(again, os.lseek(number, 0, os.SEEK_CUR), os.SEEK_SET)
                os.dup2(again, number)
                os.close(again)
