"""A child process that a benchmark talks to over a pipe; it ends with the block that started it."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final

from re4.common.errors import Re4Error

_END_TIMEOUT_S: Final = 2


@dataclass(frozen=True)
class Child:
    """A child process that runs, and this end of its pipe."""

    name: str
    """For error messages."""
    pipe: Connection
    pid: int

    def receive(self, timeout_s: float) -> Any:
        """Return what the child sends next."""
        try:
            if self.pipe.poll(timeout_s):
                return self.pipe.recv()
        except (EOFError, OSError):
            raise Re4Error(f"{self.name} died; its message is above, if it had one") from None
        raise Re4Error(f"{self.name} has not reported for {timeout_s:g} seconds")


@contextmanager
def child_process(
    name: str, target: Callable[..., None], *arguments: Any, environment: Mapping[str, str] | None = None
) -> Iterator[Child]:
    """Run a function in a child process, on the cores of this thread, while the block runs.

    The function's last argument is the other end of the pipe. It is to return when that is closed, and is
    killed where it does not. Libraries read variables of the environment when they are imported.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_main, args=(target, *arguments, theirs), daemon=True)
    before = os.environ.copy()
    os.environ.update(environment or {})
    try:
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(before)
    theirs.close()
    assert process.pid is not None
    try:
        yield Child(name, ours, process.pid)
    finally:
        ours.close()
        process.join(_END_TIMEOUT_S)
        if process.is_alive():
            process.kill()
            process.join()


def _main(target: Callable[..., None], *arguments: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent decides
    target(*arguments)
