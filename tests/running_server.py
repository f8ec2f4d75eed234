"""A server started as a user starts it: the command `re4 serve`, its log read line by line."""

import contextlib
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Self

import grpc

DEADLINE_S = 60
"""Nobody waits this long: it ends a test that would wait for ever."""

PAUSE_S = 0.01
"""Between two looks at a server, which has something to do meanwhile, and perhaps the same core."""

_ONE = ("--num-processes", "1")
"""Unless a test says otherwise: the default is the machine's business."""

RE4 = (sys.executable, "-P", "-m", "re4.cli")

_AS_OUTSIDE = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
"""Tests have one thread: where a server has one, it is to be its own doing."""


class RunningServer:
    """`re4 serve` on a free port. Leaving the `with` block stops it."""

    def __init__(self, bundles: Path, *options: str, env: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [*RE4, "serve", "--bundles", str(bundles), "--address", "127.0.0.1:0", *_ONE, *options],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | _AS_OUTSIDE | (env or {}),
        )
        self.pid = self._process.pid
        self._lines: list[str] = []
        self._has_ended = False
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        try:
            self.address = self.wait_for(r"listening on ([\w.:\[\]]+)").group(1)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        self.wait()

    def _read(self) -> None:
        for line in self._process.stderr:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    @property
    def has_ended(self) -> bool:
        """Whether every process that writes to the log has ended."""
        with self._changed:
            return self._has_ended

    @property
    def log(self) -> str:
        with self._changed:
            return "".join(self._lines)

    def wait_for(self, pattern: str, *, after: int = 0) -> re.Match[str]:
        """Wait until a line of the log matches, ignoring the first `after` lines."""

        def found() -> re.Match[str] | None:
            return next((match for line in self._lines[after:] if (match := re.search(pattern, line))), None)

        with self._changed:
            self._changed.wait_for(lambda: found() or self._has_ended, DEADLINE_S)
            match = found()
        assert match, f"the log never said {pattern!r}:\n{self.log}"
        return match

    @property
    def num_lines(self) -> int:
        with self._changed:
            return len(self._lines)

    def workers(self) -> set[int]:
        """Process ids of the server's worker processes."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return {
            int(child)
            for child in children.split()
            if b"re4.serving.processes.worker" in Path(f"/proc/{child}/cmdline").read_bytes()
        }

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """Wait for the end; the exit code."""
        code = self._process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)  # ends when every process that shares the log has
        self._process.stderr.close()
        return code


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
