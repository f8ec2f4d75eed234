"""A server in a process of its own: `re4 serve` on a free port, started, followed by its log, and stopped."""

import os
import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Final, Self

from re4.common.errors import ServerError

_NUM_KEPT_LINES: Final = 10_000
_STOP_TIMEOUT_S: Final = 30.0


class ServerProcess:
    """A running `re4 serve`. Entering the `with` block waits until it listens; leaving the block stops it.

    A thread reads the log all the time: otherwise the server would block when the pipe is full.
    """

    start_timeout_s: ClassVar[float] = 600.0
    """Loading and checking a large bundle takes minutes."""

    address: str
    """HOST:PORT of the server; set when it listens."""

    def __init__(
        self,
        bundles: Path,
        *options: str,
        environment: Mapping[str, str] | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        """Start the process.

        Args:
            bundles: Bundle directory to serve.
            options: Further options of `re4 serve`.
            environment: Variables beside those of this process.
            on_line: Called with each line of the log, in the thread that reads it.
        """
        words = ["serve", "--bundles", str(bundles), "--address", "127.0.0.1:0", *options]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "re4.cli", *words],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
            start_new_session=True,  # Ctrl-C ends this process, which then stops the server
        )
        self.pid: Final = self._process.pid
        self._lines: deque[str] = deque(maxlen=_NUM_KEPT_LINES)
        self._num_lines = 0
        self._has_ended = False
        self._on_line = on_line
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, name="server log", daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        try:
            self.address = self.wait_for(r"listening on (\S+:\d+)", timeout_s=self.start_timeout_s).group(1)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with self._changed:
                self._lines.append(line)
                self._num_lines += 1
                self._changed.notify_all()
            if self._on_line is not None:
                self._on_line(line.rstrip("\n"))
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    @property
    def log(self) -> str:
        """The newest lines of the log."""
        with self._changed:
            return "".join(self._lines)

    def wait_for(self, pattern: str, *, after: int = 0, timeout_s: float = 60.0) -> re.Match[str]:
        """Wait until a line of the log matches.

        Args:
            pattern: Regular expression to search each line for.
            after: Number of lines at the start of the log to skip.
            timeout_s: How long to wait.

        Raises:
            ServerError: no line matched before the server ended or the time was over; with the log's end.
        """

        def found() -> re.Match[str] | None:
            lines = list(self._lines)[max(0, after - self._num_lines + len(self._lines)) :]
            return next((match for line in lines if (match := re.search(pattern, line))), None)

        with self._changed:
            self._changed.wait_for(lambda: found() is not None or self._has_ended, timeout_s)
            match, state = found(), "ended" if self._has_ended else f"ran for {timeout_s:g} seconds"
        if match is None:
            end = "".join(self.log.splitlines(keepends=True)[-20:])
            raise ServerError(f"re4 serve {state} without a line {pattern!r}; its log:\n{end}")
        return match

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait for the end of the server, and return its exit code.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        code = self._process.wait(timeout_s)
        self._reader.join(timeout_s)
        if self._process.stderr is not None and not self._reader.is_alive():
            self._process.stderr.close()
        return code

    def stop(self) -> int:
        """Stop the server by SIGTERM, or by SIGKILL where that takes too long; return its exit code."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            return self.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self.wait(_STOP_TIMEOUT_S)
