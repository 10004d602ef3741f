"""Headless Chromium, driven over the pipe that it offers for debugging: no port, no driver, no Python package.

Messages of Chrome's DevTools protocol are JSON, each ended by a zero byte; Chromium reads them at its file descriptor 3
and answers at 4. When the pipe is closed it goes away, so it cannot outlive this process.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from types import TracebackType
from typing import Any

__all__ = ["Browser", "find_chromium"]

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--headless",
    "--no-sandbox",  # it refuses to start as root with one, and only shows pages of this machine
    "--disable-gpu",
    "--disable-dev-shm-usage",  # containers have little shared memory
    "--disable-quic",
    "--disable-sync",
    "--disable-breakpad",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


def find_chromium() -> str | None:
    """The path of a Chromium or Chrome, None if this machine has none."""
    return next((path for path in map(shutil.which, _NAMES) if path), None)


class Browser:
    """One page of a headless Chromium, as a context manager.

    Args:
        width: Width of the window (pixels).
        height: Height of the window (pixels).
        time_limit: The longest that anything may take, from an answer to a condition waited for (seconds).

    Raises:
        FileNotFoundError: If there is no browser on this machine.
        TimeoutError: By any method, when the time limit is over.
        RuntimeError: By any method, when the browser is gone or the page's script fails.
    """

    def __init__(self, width: int = 1280, height: int = 800, time_limit: float = 60) -> None:
        self._size = width, height
        self.time_limit = time_limit
        self._number = 0
        self._session: dict[str, str] = {}
        self._unread = b""

    def __enter__(self) -> Browser:
        chromium = find_chromium()
        if chromium is None:
            raise FileNotFoundError(f"No browser was found. Looked for {', '.join(_NAMES)}; Debian's is `chromium`.")
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        its_input, self._out = _high_pipe()
        self._in, its_output = _high_pipe()
        command = [chromium, *_FLAGS, f"--user-data-dir={self._profile.name}", "about:blank"]
        # Python can hand a descriptor on, but not under another number.
        moved = f'exec "$@" 3<&{its_input} 4>&{its_output} {its_input}<&- {its_output}>&-'
        self._process = subprocess.Popen(
            ["bash", "-c", moved, "bash", *command],
            pass_fds=(its_input, its_output),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(its_input)
        os.close(its_output)
        try:
            target = self._call("Target.createTarget", url="about:blank")["targetId"]
            session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            self._session = {"sessionId": session}
            self._call("Page.enable")
            self.resize(*self._size)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._out)
        os.close(self._in)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        with contextlib.suppress(ProcessLookupError):  # whatever is left of it
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._profile.cleanup()

    def resize(self, width: int, height: int, scale: float = 1) -> None:
        """Give the page another size (pixels), each pixel of it drawn by `scale` pixels of a picture."""
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )

    def open(self, url: str) -> None:
        """Go to a page; what it loads may come later, see `wait_for`."""
        answer = self._call("Page.navigate", url=url)
        if "errorText" in answer:
            raise RuntimeError(f"{url} could not be opened: {answer['errorText']}")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, as plain values; a promise is awaited."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise RuntimeError(f"{expression}\n{details.get('exception', details).get('description', details)}")
        return answer["result"].get("value")

    def wait_for(self, expression: str, what: str) -> Any:
        """Evaluate an expression until its value counts as true in Python, and return that value.

        Args:
            expression: JavaScript.
            what: What is waited for, for the error.
        """
        end = time.monotonic() + self.time_limit
        while not (value := self.evaluate(expression)):
            if time.monotonic() > end:
                raise TimeoutError(f"Waited {self.time_limit:g} seconds for {what}. Last value: {value!r}")
            time.sleep(0.05)  # between two looks
        return value

    def screenshot(self, box: dict[str, float] | None = None) -> bytes:
        """A PNG of the page, or of the `x`, `y`, `width` and `height` of a part of it (pixels)."""
        clip = {} if box is None else {"clip": {**box, "scale": 1}, "captureBeyondViewport": True}
        answer = self._call("Page.captureScreenshot", format="png", **clip)
        return base64.b64decode(answer["data"])

    def _call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters, **self._session}
        with contextlib.suppress(BrokenPipeError):  # the answer, which does not come, says so
            os.write(self._out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + self.time_limit
        while (answer := self._receive(method, end)).get("id") != self._number:
            pass  # an event, which nobody waits for
        if "error" in answer:
            raise RuntimeError(f"The browser refused {method}: {answer['error']['message']}")
        return answer["result"]

    def _receive(self, method: str, end: float) -> Any:
        while b"\0" not in self._unread:
            if not select.select([self._in], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError(f"The browser did not answer {method} within {self.time_limit:g} seconds.")
            read = os.read(self._in, 1 << 20)
            if not read:
                raise RuntimeError(f"The browser ended before it answered {method}.")
            self._unread += read
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)


def _high_pipe() -> tuple[int, int]:
    """The ends of a pipe, to read and to write, under numbers that are not 3 or 4."""
    ends = os.pipe()
    read, write = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return read, write
