"""A child process that is killed when it reaches its n-th line of some files."""

import os
import signal
import sys
from collections.abc import Callable, Iterable
from types import FrameType, ModuleType
from typing import Any


def lives(change: Callable[[], object], line_number: int, *, traced: Iterable[ModuleType]) -> bool:
    """Run `change` in a fork that kills itself with SIGKILL at a line; return whether it lived to the end.

    Args:
        change: Function to run in the child; an exception in it fails the caller.
        line_number: Number of lines of the traced modules before the death.
        traced: Modules whose lines count.
    """
    files = {module.__file__ for module in traced}
    process = os.fork()
    if process == 0:
        _die_at(line_number, files)
        change()
        sys.settrace(None)
        os._exit(0)
    _, status = os.waitpid(process, 0)
    assert status in (0, signal.SIGKILL), status
    return status == 0


def _die_at(line_number: int, files: set[str | None]) -> None:
    left = line_number

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
