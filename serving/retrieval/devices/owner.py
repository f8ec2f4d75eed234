"""One thread that owns what other threads must not touch, from birth to death.

FAISS's GPU indexes are not thread-safe, not even for reads, and creating or destroying one while another
searches has crashed. So all of them are made, used and destroyed by one thread, whoever asks for it. Knows
nothing about GPUs.
"""

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

ResourceT = TypeVar("ResourceT")
ResultT = TypeVar("ResultT")


class OwnerThread:
    """A thread that runs one thing after another."""

    def __init__(self, name: str) -> None:
        """Start it.

        Args:
            name: Of the thread.
        """
        self.executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._kept: list[Any] = []
        self._ident = self.executor.submit(threading.get_ident).result()

    def call(self, work: Callable[[], ResultT]) -> ResultT:
        """Run something in the thread, after what it has to do already, and wait for it."""
        if threading.get_ident() == self._ident:
            return work()
        return self.executor.submit(work).result()

    def give_back(self, cell: "_Cell[ResourceT]") -> None:
        """Destroy what a cell holds, in the thread; does not wait. A thread that has ended keeps it."""
        try:
            self.executor.submit(cell.empty)
        except RuntimeError:
            self._kept.append(cell)  # destroying it here would be another thread's doing


class Owned(Generic[ResourceT]):
    """Something that one thread made. When nobody refers to this any more, the thread destroys it."""

    def __init__(self, thread: OwnerThread, make: Callable[[], ResourceT]) -> None:
        """Have it made.

        Args:
            thread: Who is to own it.
            make: Makes it, in that thread; whatever it raises is raised here.
        """
        self._thread = thread
        self._cell = thread.call(lambda: _Cell(make()))
        end = weakref.finalize(self, thread.give_back, self._cell)
        end.atexit = False  # a process that ends frees everything, and has no thread to do it with

    def use(self, work: Callable[[ResourceT], ResultT]) -> ResultT:
        """Run something with it, in its thread, and wait for it."""
        return self._thread.call(lambda: work(self._cell.resource))


class _Cell(Generic[ResourceT]):
    """Holds the one reference to a resource, so that dropping it is destroying it."""

    def __init__(self, resource: ResourceT) -> None:
        self._held = [resource]

    @property
    def resource(self) -> ResourceT:
        return self._held[0]

    def empty(self) -> None:
        self._held.clear()
