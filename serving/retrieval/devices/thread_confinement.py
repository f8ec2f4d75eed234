"""Thread confinement: one thread makes, uses and destroys resources that are not thread-safe.

FAISS's GPU indexes are not thread-safe, not even for reads. Creating or destroying one while
another thread searches has crashed. So one thread makes, uses and destroys all of them, on behalf
of any other thread.
"""

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

ResourceT = TypeVar("ResourceT")
ResultT = TypeVar("ResultT")


class ResourceThread:
    """A thread that runs one call after another."""

    def __init__(self, name: str) -> None:
        """Start a thread of this name."""
        self.executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._kept: list[Any] = []
        self._ident = self.executor.submit(threading.get_ident).result()

    def call(self, work: Callable[[], ResultT]) -> ResultT:
        """Run something in the thread, after the calls before it, and wait for the result."""
        if threading.get_ident() == self._ident:
            return work()
        return self.executor.submit(work).result()

    def release(self, cell: "_Cell[ResourceT]") -> None:
        """Destroy a cell's resource in the thread, without waiting."""
        try:
            self.executor.submit(cell.clear)
        except RuntimeError:
            self._kept.append(cell)  # another thread must not destroy it


class ThreadConfined(Generic[ResourceT]):
    """A resource of one thread, which destroys it when this object is no longer referenced."""

    def __init__(self, thread: ResourceThread, make: Callable[[], ResourceT]) -> None:
        """Make the resource.

        Args:
            thread: The thread that makes, uses and destroys it.
            make: Makes it, in that thread; its exceptions are raised here.
        """
        self._thread = thread
        self._cell = thread.call(lambda: _Cell(make()))
        finalizer = weakref.finalize(self, thread.release, self._cell)
        finalizer.atexit = False  # a process that ends frees everything, and its threads have ended before

    def use(self, work: Callable[[ResourceT], ResultT]) -> ResultT:
        """Run something with the resource in its thread, and wait for the result."""
        return self._thread.call(lambda: work(self._cell.resource))


class _Cell(Generic[ResourceT]):
    """The only reference to a resource: clearing it destroys the resource."""

    def __init__(self, resource: ResourceT) -> None:
        self._resources = [resource]

    @property
    def resource(self) -> ResourceT:
        return self._resources[0]

    def clear(self) -> None:
        self._resources.clear()
