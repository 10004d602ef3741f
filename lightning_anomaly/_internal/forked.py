"""A process of our own: share nothing with the one that forked it, and send it values as bytes."""

from __future__ import annotations

import io
import os
import pickle
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor


def share_nothing(connection: int) -> None:
    """Share no place in a file, and no connection but one, with the process that was forked.

    Reading moves the place for both: the run would read wrong bytes of an archive that is kept open. So files are
    opened again, as they were. Both would take from a connection, so it is lost: whoever uses it gets an error.
    """
    if not os.path.isdir("/proc/self/fd"):
        return  # not on Linux
    from fcntl import F_GETFL, fcntl

    kept, lost = (0, 1, 2, connection), socket.socket()
    for number in {*map(int, os.listdir("/proc/self/fd"))}.difference(kept):
        with suppress(OSError):  # the listing's own is closed by now
            mode, flags = os.fstat(number).st_mode, fcntl(number, F_GETFL)
            if stat.S_ISSOCK(mode):
                os.dup2(lost.fileno(), number)
            elif stat.S_ISREG(mode) and flags & os.O_ACCMODE != os.O_WRONLY:
                again = os.open(f"/proc/self/fd/{number}", flags)
                os.lseek(again, os.lseek(number, 0, os.SEEK_CUR), os.SEEK_SET)
                os.dup2(again, number)
                os.close(again)


class _Pickler(pickle.Pickler):
    """Takes tensors as arrays, whose numbers it does not copy."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is Tensor:
            with suppress(TypeError, RuntimeError):  # of a type or on a device that NumPy does not know
                return torch.from_numpy, (value.contiguous().numpy(),)
        return NotImplemented


def send(value: Any, stream: Any) -> None:
    """Send a value; if it cannot be pickled, raise before anything is sent."""
    pickled, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
    _Pickler(pickled, 5, buffer_callback=buffers.append).dump(value)
    parts = [pickled.getbuffer(), *(buffer.raw() for buffer in buffers)]
    pickle.dump([*map(len, parts)], stream)
    stream.writelines(parts)
    stream.flush()


def receive(stream: Any) -> Any:
    """Receive a value; raise EOFError if there is no more."""
    parts = [np.empty(size, np.uint8) for size in pickle.load(stream)]
    if sum(map(stream.readinto, parts)) < sum(map(len, parts)):
        raise EOFError
    return pickle.loads(parts[0].data, buffers=parts[1:])


def attempt(function: Callable[..., Any], *arguments: Any) -> tuple[Any, str]:
    """Return a function's value, or None and the kind of what it raised with its text."""
    try:
        return function(*arguments), ""
    except Exception as error:  # whatever a data set raises
        # A text with `<` shows an object, `<_io.BufferedReader ...>`, which means nothing to a reader.
        kind, text = type(error).__name__, str(error)
        return None, kind if "<" in text or not text else f"{kind}: {text}"
