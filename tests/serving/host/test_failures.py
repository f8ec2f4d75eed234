"""How a process ended, in words; and which errors are the machine's."""

import errno
import signal

import pytest

from re4.common.errors import BundleDamagedError, BundleUnavailableError
from re4.serving.host.failures import exit_reason, is_transient


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
