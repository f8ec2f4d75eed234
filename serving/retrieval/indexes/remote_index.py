"""An index on another machine: a time limit for each search, and a circuit breaker that heals by itself.

While the index does not answer, searches fail at once. A thread of its own searches it again and again, so
that no request waits for the attempt. It also looks while no request comes, for the health of the server.

Legend: Q queries, D embedding, S results of a query.
"""

import logging
import threading
import weakref
from collections.abc import Callable
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from re4.bundle.milvus.collection_index import CollectionIndex, CollectionParameters, VectorsOfRows
from re4.common.errors import IndexUnavailableError, TooLateError
from re4.serving.host.backoff import Backoff
from re4.serving.host.batch_deadline import batch_time_left_s

_PROBE_INTERVAL_S: Final = 2.0

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")


class RemoteIndex:
    """A collection as a server searches it, in the form of a FAISS index. Threads may share it."""

    def __init__(self, index: CollectionIndex, *, timeout_s: float) -> None:
        """Search once, and start the thread that watches the index.

        Args:
            index: The collection.
            timeout_s: Longest search.
        """
        self.ntotal, self.d = index.ntotal, index.d
        self._timeout_s = timeout_s
        self._index = index
        self._watch = _Watch(index, timeout_s)
        self._watch.probe()
        threading.Thread(target=self._watch.run, name="index watch", daemon=True).start()
        weakref.finalize(self, self._watch.stop).atexit = False

    @property
    def failure(self) -> str:
        """Why the index does not answer; empty where it does."""
        return self._watch.failure

    def search(
        self, queries_QD: NDArray[np.float32], num_results: int, *, params: CollectionParameters | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Search, as `CollectionIndex.search`.

        Raises:
            IndexUnavailableError: the index does not answer.
            TooLateError: the deadline of the batch passes before it answers.
        """
        return self._within_time(
            lambda timeout_s: self._index.search(queries_QD, num_results, params=params, timeout_s=timeout_s)
        )

    def search_with_vectors(
        self, queries_QD: NDArray[np.float32], num_results: int, *, params: CollectionParameters | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], VectorsOfRows]:
        """Search, as `CollectionIndex.search_with_vectors`; errors as `search`."""
        return self._within_time(
            lambda timeout_s: self._index.search_with_vectors(
                queries_QD, num_results, params=params, timeout_s=timeout_s
            )
        )

    def vectors_of(self, rows_R: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return vectors, as `CollectionIndex.vectors_of`; errors as `search`."""
        return self._within_time(lambda timeout_s: self._index.vectors_of(rows_R, timeout_s=timeout_s))

    def _within_time(self, call: Callable[[float], _Answer]) -> _Answer:
        """Call the index with the seconds that it may take."""
        if failure := self.failure:
            raise self._unavailable(failure)
        left_s = batch_time_left_s()
        timeout_s = min(self._timeout_s, left_s)
        try:
            if timeout_s <= 0:
                raise IndexUnavailableError("", is_late=True)
            return call(timeout_s)
        except IndexUnavailableError as error:
            self._watch.wake()
            if error.is_late and left_s < self._timeout_s:
                raise TooLateError(
                    f"the caller's deadline passed while {self._index.where} was searched"
                ) from None
            if error.is_late or error.is_unreachable:
                self._watch.fail(str(error))
            raise self._unavailable(str(error)) from None

    def _unavailable(self, failure: str) -> IndexUnavailableError:
        return IndexUnavailableError(
            f"{failure}. Look at that server and at the network; it is tried again by itself"
        )


class _Watch:
    """The state of the index, and the thread that finds it out."""

    def __init__(self, index: CollectionIndex, timeout_s: float) -> None:
        self._index = index
        self._timeout_s = timeout_s
        self._backoff = Backoff(first_delay_s=0.1, longest_delay_s=2.0)
        self._wakes = threading.Event()
        self._is_stopped = False
        self.failure = ""

    def run(self) -> None:
        """Search the index until the stop."""
        while not self._is_stopped:
            self._wakes.wait(self._backoff.delay_s() if self.failure else _PROBE_INTERVAL_S)
            self._wakes.clear()
            try:
                if not self._is_stopped:
                    self.probe()
            except Exception as error:  # an index without its watch would never be used again
                self.fail(f"{self._index.where} cannot be searched: {error}")
        self._index.close()

    def probe(self) -> None:
        """Search for one item, and note whether that succeeds."""
        try:
            self._index.search(np.zeros((1, self._index.d), np.float32), 1, timeout_s=self._timeout_s)
        except IndexUnavailableError as error:
            self.fail(str(error))
        else:
            if self.failure:
                _log.warning("%s answers again", self._index.where)
                self._backoff.reset()
            self.failure = ""

    def fail(self, failure: str) -> None:
        if not self.failure and not self._is_stopped:
            _log.error("%s", failure)
        self.failure = failure

    def wake(self) -> None:
        """Let the thread search now."""
        self._wakes.set()

    def stop(self) -> None:
        """End the thread, and close the connection."""
        self._is_stopped = True
        self._wakes.set()
