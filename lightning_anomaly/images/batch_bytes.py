"""Send batches to another process as bytes."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor


class _Pickler(pickle.Pickler):
    """Takes tensors as arrays, whose numbers it does not copy."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is Tensor:
            with suppress(TypeError, RuntimeError):  # of a type or on a device that NumPy does not know
                return torch.from_numpy, (value.contiguous().numpy(),)
        return NotImplemented


def pickled(batch: Any) -> list[Any]:
    """Return a batch as bytes, and the numbers of its arrays."""
    stream, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
    _Pickler(stream, 5, buffer_callback=buffers.append).dump(batch)
    return [stream.getbuffer(), *(buffer.raw() for buffer in buffers)]


def unpickled(parts: Sequence[Any]) -> Any:
    """Return the batch that was `pickled`."""
    return pickle.loads(parts[0], buffers=parts[1:])


def send_parts(parts: Sequence[Any], stream: Any) -> None:
    """Send bytes in parts."""
    pickle.dump([*map(len, parts)], stream)
    for part in parts:
        stream.write(part)
    stream.flush()


def receive_parts(stream: Any) -> list[Any]:
    """Receive the parts that were sent together; raise EOFError at the end."""
    parts = [np.empty(size, np.uint8) for size in pickle.load(stream)]
    if sum(map(stream.readinto, parts)) < sum(map(len, parts)):
        raise EOFError
    return parts


def attempt(function: Callable[..., Any], *arguments: Any) -> tuple[Any, str]:
    """Return a function's value, or None and the kind of what it raised with its text."""
    try:
        return function(*arguments), ""
    except Exception as error:  # whatever a data set raises
        # A text with `<` shows an object, `<_io.BufferedReader ...>`, which means nothing to a reader.
        kind, text = type(error).__name__, str(error)
        return None, kind if "<" in text or not text else f"{kind}: {text}"
