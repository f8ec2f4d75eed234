"""One thread makes, uses and destroys a confined resource, whichever thread calls or releases it."""

import threading
from collections.abc import Iterator

import pytest

from re4.serving.retrieval.devices.thread_confinement import ResourceThread, ThreadConfined


@pytest.fixture
def thread() -> Iterator[ResourceThread]:
    thread = ResourceThread("owner")
    yield thread
    thread.executor.shutdown()


class Fragile:
    """Records the threads that use it."""

    def __init__(self, threads: list[int]) -> None:
        self.threads = threads
        threads.append(threading.get_ident())

    def touch(self) -> int:
        self.threads.append(threading.get_ident())
        return len(self.threads)

    def __del__(self) -> None:
        self.threads.append(threading.get_ident())


def test_one_thread_makes_uses_and_destroys(thread: ResourceThread) -> None:
    threads: list[int] = []
    owned = [ThreadConfined(thread, lambda: Fragile(threads))]
    callers = [threading.Thread(target=owned[0].use, args=(Fragile.touch,)) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    forgetting = threading.Thread(target=owned.clear)
    forgetting.start()
    forgetting.join()
    assert thread.call(threading.get_ident) == thread.call(lambda: thread.call(threading.get_ident))
    assert threads == [thread.call(threading.get_ident)] * 10


def test_an_error_in_the_thread_is_raised_in_the_calling_thread(thread: ResourceThread) -> None:
    def fail() -> None:
        raise ValueError("no memory left on the device")

    with pytest.raises(ValueError, match="no memory left"):
        ThreadConfined(thread, fail)
    assert thread.call(lambda: 3) == 3


def test_a_thread_that_has_ended_leaves_things_alone() -> None:
    threads: list[int] = []
    thread = ResourceThread("ending")
    owner = thread.call(threading.get_ident)
    owned = ThreadConfined(thread, lambda: Fragile(threads))
    thread.executor.shutdown()
    del owned
    assert threads == [owner]
