"""A server started by its command, with one worker process by default."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from re4.common.errors import ServerError
from re4.common.server_process import ServerProcess

DEADLINE_S = 60
"""Limit of every wait; a test that reaches it fails."""

PAUSE_S = 0.01
"""Time between two polls of a server, which may run on the same core."""

RE4 = (sys.executable, "-P", "-m", "re4.cli")

_AS_OUTSIDE = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
"""Tests limit libraries to one thread; the limits of a server must be its own."""


class RunningServer(ServerProcess):
    """`re4 serve` on a free port. Leaving the `with` block stops it."""

    start_timeout_s = DEADLINE_S

    def __init__(self, bundles: Path, *options: str, env: dict[str, str] | None = None) -> None:
        options = ("--num-processes", "1", *options)
        super().__init__(bundles, *options, environment=_AS_OUTSIDE | (env or {}))

    def wait(self, timeout_s: float | None = DEADLINE_S) -> int:
        """Wait for the end; the exit code."""
        return super().wait(timeout_s)

    def stop(self) -> int:
        """Stop the server; a server that does not end fails the test."""
        if self._process.poll() is None:
            self._process.terminate()
        return self.wait()

    @property
    def has_ended(self) -> bool:
        """Whether every process that writes to the log has ended."""
        with self._changed:
            return self._has_ended

    @property
    def num_lines(self) -> int:
        """Number of lines logged so far."""
        with self._changed:
            return self._num_lines

    def signal(self, number: int) -> None:
        """Send a signal to the first process of the server."""
        self._process.send_signal(number)

    def workers(self) -> set[int]:
        """Process ids of the server's worker processes."""
        return self.children(b"re4.serving.processes.worker")

    def children(self, word: bytes = b"") -> set[int]:
        """Process ids of the server's child processes with a word in their command."""
        found = set()
        with contextlib.suppress(OSError):  # they may end meanwhile
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
            for child in map(int, children.split()):
                with contextlib.suppress(OSError):
                    if word in Path(f"/proc/{child}/cmdline").read_bytes():
                        found.add(child)
        return found


def wait_until(holds: Callable[[], Any]) -> None:
    """Try again until it holds; a server that is away meanwhile is tried again too."""
    ends_s = time.monotonic() + DEADLINE_S
    while True:
        with contextlib.suppress(ServerError):
            if holds():
                return
        assert time.monotonic() < ends_s
        time.sleep(PAUSE_S)


def open_files(pid: int) -> set[str]:
    """What a process holds open."""
    links = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed in between
            links.add(str(entry.readlink()))
    return links


def raw_call(channel: grpc.Channel, method: str, data: bytes) -> tuple[grpc.StatusCode, str]:
    """Send bytes as they are; status and details of the answer."""
    call = channel.unary_unary(f"/re4.v1.Retrieval/{method}")
    try:
        call(data, timeout=DEADLINE_S)
    except grpc.RpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""


def serve_and_fail(bundles: Path, *options: str) -> tuple[int, str]:
    """Exit code and words of a server that does not start."""
    command = [*RE4, "serve", "--bundles", str(bundles), "--address", "127.0.0.1:0", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, " ".join(done.stderr.split())
