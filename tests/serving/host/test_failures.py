"""How a process ended, in words; and which errors are the machine's."""

import asyncio
import errno
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from re4.common.errors import BundleDamagedError, BundleUnavailableError
from re4.serving.host.failures import exit_reason, is_transient, kill


@pytest.mark.parametrize("number", range(1, signal.SIGRTMAX + 1))
def test_every_signal_has_words(number: int) -> None:
    assert exit_reason(-number).startswith("signal ")
    assert exit_reason(number) == f"exit code {number}"


def test_signals_without_a_name_are_numbered() -> None:
    assert exit_reason(-signal.SIGKILL) == "signal SIGKILL"
    assert exit_reason(-35) == "signal 35"


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (OSError(errno.EMFILE, "Too many open files"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (MemoryError(), True),
        (BundleUnavailableError("try again"), True),
        (FileNotFoundError(errno.ENOENT, "No such file"), False),
        (ValueError("not JSON"), False),
    ],
)
def test_an_error_is_transient_by_what_caused_it(cause: Exception, expected: bool) -> None:
    def fail() -> None:
        try:
            raise cause
        except type(cause):
            raise BundleDamagedError("cannot be read") from None

    with pytest.raises(BundleDamagedError) as raised:
        fail()
    assert is_transient(raised.value) is expected
    assert is_transient(cause) is expected


def test_the_exit_code_of_an_ended_child_is_left_to_asyncio(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The child has ended, and asyncio has not noticed it yet."""
    may_reap = threading.Event()
    waitpid = os.waitpid

    def late_waitpid(pid: int, options: int) -> Any:
        assert may_reap.wait(30)
        return waitpid(pid, options)

    monkeypatch.setattr(asyncio.unix_events.os, "waitpid", late_waitpid)

    async def main() -> int:
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", "raise SystemExit(7)")
        stat = Path(f"/proc/{child.pid}/stat")
        while stat.read_text().rpartition(")")[2].split()[0] != "Z":
            os.sched_yield()
        kill(child)
        may_reap.set()
        return await child.wait()

    with caplog.at_level(logging.WARNING, "asyncio"):
        assert asyncio.run(main()) == 7
    assert not caplog.records
