"""A process of its own that a benchmark talks with over a pipe; it ends with the block that started it."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, Final, NamedTuple

_END_TIMEOUT_S: Final = 2


class Child(NamedTuple):
    """A process that runs, and this end of its pipe."""

    pipe: Connection
    process: SpawnProcess


@contextmanager
def child_process(
    target: Callable[..., None], *arguments: Any, environment: Mapping[str, str] | None = None
) -> Iterator[Child]:
    """Run a function in a process of its own, on the cores of this thread, while the block runs.

    Args:
        target: A function of a module; its last argument is the other end of the pipe. It is to return when
            the pipe is closed, and is killed where it does not.
        arguments: The ones before.
        environment: Variables that the process starts with beside this one's: libraries read some of them
            when they are imported.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=target, args=(*arguments, theirs), daemon=True)
    wanted = environment or {}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        process.start()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    theirs.close()
    try:
        yield Child(ours, process)
    finally:
        ours.close()
        process.join(_END_TIMEOUT_S)
        if process.is_alive():
            process.kill()
            process.join()
