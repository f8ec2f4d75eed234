"""An index on another machine: time limits, the circuit breaker, selectors. Without that machine."""

import asyncio
import gc
import threading
from dataclasses import replace
from math import inf
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import pytest
from running_server import wait_until
from small_bundles import SmallVersion, load

from re4.bundle.hidden_ids import HiddenIds
from re4.bundle.live_items.records import Upsert
from re4.bundle.live_items.writer import append_changes
from re4.bundle.manifest import CollectionInfo
from re4.bundle.milvus.collection_index import CollectionIndex, CollectionParameters, CollectionSelector
from re4.common.errors import IndexUnavailableError, TooLateError
from re4.serving.batching.queue import BatchGroup, BatchQueue
from re4.serving.host.batch_deadline import DEADLINE_NS
from re4.serving.retrieval.indexes.remote_index import RemoteIndex
from re4.serving.retrieval.indexes.remote_vectors import RemoteVectors
from re4.serving.versions.live_items_follower import FollowedItems

QUERIES = np.zeros((1, 4), np.float32)


class FakeIndex:
    """A collection that fails on demand."""

    ntotal, d, where = 100, 4, "the collection c at milvus://h:1"

    def __init__(self) -> None:
        self.error: IndexUnavailableError | None = None
        self.timeouts: list[float] = []
        self.is_closed = threading.Event()

    def search(self, queries_QD: Any, num_results: int, *, params: Any = None, timeout_s: float) -> Any:
        self.timeouts.append(timeout_s)
        if self.error is not None:
            raise self.error
        return np.zeros((1, num_results), np.float32), np.zeros((1, num_results), np.int64)

    def close(self) -> None:
        self.is_closed.set()


def test_after_a_failure_calls_fail_at_once_until_it_answers() -> None:
    fake = FakeIndex()
    index = RemoteIndex(fake, timeout_s=1.0)  # type: ignore[arg-type]
    index.search(QUERIES, 3)
    fake.error = IndexUnavailableError("no answer within 1000 ms", is_late=True)
    with pytest.raises(IndexUnavailableError, match=r"no answer.* tried again by itself"):
        index.search(QUERIES, 3)
    assert index.failure == "no answer within 1000 ms"
    with pytest.raises(IndexUnavailableError, match="tried again by itself"):
        index.search(QUERIES, 3)
    fake.error = None
    wait_until(lambda index=index: not index.failure)  # the default value ends with the function
    index.search(QUERIES, 3)
    del index
    gc.collect(1)  # of young objects: the end of an old event loop of gRPC can wait for ever
    assert fake.is_closed.wait(20)


def test_an_unexpected_error_does_not_end_the_watch() -> None:
    fake = FakeIndex()
    index = RemoteIndex(fake, timeout_s=1.0)  # type: ignore[arg-type]
    fake.error = ZeroDivisionError("a defect")  # type: ignore[assignment]
    index._watch.wake()
    wait_until(lambda: "a defect" in index.failure)
    fake.error = None
    wait_until(lambda: not index.failure)


def test_a_refused_search_and_a_short_deadline_do_not_stop_others() -> None:
    fake = FakeIndex()
    index = RemoteIndex(fake, timeout_s=1.0)  # type: ignore[arg-type]
    fake.search = _raising(fake, IndexUnavailableError("cannot parse the expression"))  # type: ignore[method-assign]
    with pytest.raises(IndexUnavailableError, match="cannot parse"):
        index.search(QUERIES, 3)
    token = DEADLINE_NS.set(perf_counter_ns() + 1e8)
    try:
        fake.search = _raising(fake, IndexUnavailableError("late", is_late=True))  # type: ignore[method-assign]
        with pytest.raises(TooLateError, match="deadline passed while the collection c"):
            index.search(QUERIES, 3)
    finally:
        DEADLINE_NS.reset(token)
    assert fake.timeouts[-1] <= 0.1
    wait_until(lambda: not index.failure)


def _raising(fake: FakeIndex, error: IndexUnavailableError) -> Any:
    """Return a search that fails with results, and succeeds as the look at the index does."""

    def search(queries_QD: Any, num_results: int, *, params: Any = None, timeout_s: float) -> Any:
        if num_results > 1:
            fake.timeouts.append(timeout_s)
            raise error
        return np.zeros((1, 1), np.float32), np.zeros((1, 1), np.int64)

    return search


def test_rows_that_may_not_be_found_are_searched_past(monkeypatch: pytest.MonkeyPatch) -> None:
    info = CollectionInfo(address="milvus://127.0.0.1:1", name="c", index_type="FLAT")
    index, depths = CollectionIndex(info, 100, 4), []

    def search(queries_QD: Any, depth: int, params: Any, timeout_s: float, *, with_vectors: bool) -> Any:
        depths.append(depth)
        rows_QS = np.arange(depth)[None]
        return -rows_QS.astype(np.float32), rows_QS, None

    monkeypatch.setattr(index, "_search", search)
    even = CollectionSelector(expression="", contains=lambda rows: rows % 2 == 0)
    scores, rows = index.search(QUERIES, 6, params=CollectionParameters(sel=even))
    assert depths == [6, 24]
    assert rows.tolist() == [[0, 2, 4, 6, 8, 10]]
    assert scores[0, 1] == -2
    few = CollectionSelector(expression="", contains=lambda rows: rows < 2)
    _, rows = index.search(QUERIES, 3, params=CollectionParameters(sel=few))
    assert rows.tolist() == [[0, 1, -1]]
    with pytest.raises(IndexUnavailableError):
        CollectionIndex(info, 100, 4).search(QUERIES, 3, timeout_s=0.5)


class VectorsElsewhere:
    """An index that has vectors, and notes which rows were fetched."""

    ntotal, d = 100, 4

    def __init__(self) -> None:
        self.fetched: list[list[int]] = []
        self.error: IndexUnavailableError | None = None

    def vectors_of(self, rows_R: np.ndarray) -> np.ndarray:
        if self.error is not None:
            raise self.error
        self.fetched.append(rows_R.tolist())
        return np.repeat(rows_R[:, None], self.d, axis=1).astype(np.float32)


def test_vectors_of_a_batch_are_fetched_in_one_call_and_kept() -> None:
    elsewhere = VectorsElsewhere()
    vectors = RemoteVectors(elsewhere, cache_bytes=10 * 4 * 4)  # type: ignore[arg-type]
    assert (len(vectors), vectors.shape) == (100, (100, 4))
    rows_BL = np.array([[3, 7, 3], [13, -1, 99]])
    for _ in range(2):  # 3 and 13 share a slot of the cache
        np.testing.assert_array_equal(vectors.take(rows_BL)[..., 0], np.maximum(rows_BL, 0))
    assert elsewhere.fetched == [[0, 3, 7, 13, 99], [3]]
    assert vectors[99].tolist() == [99] * 4
    elsewhere.error = IndexUnavailableError("away")
    np.testing.assert_array_equal(vectors.take(np.array([7, 99, 7]))[:, 1], [7, 99, 7])
    with pytest.raises(IndexUnavailableError):
        vectors.take(np.array([7, 50]))


def test_live_items_wait_for_vectors_elsewhere(tmp_path: Path) -> None:
    """Changes that could not be applied, because a vector was missing, are applied by a later read."""
    version = SmallVersion(has_attributes=True)
    elsewhere = VectorsElsewhere()
    elsewhere.ntotal, elsewhere.d = version.vectors_ND.shape
    snapshot = replace(load(version, tmp_path), vectors_ND=RemoteVectors(elsewhere))  # type: ignore[arg-type]
    followed = FollowedItems(snapshot, HiddenIds())
    append_changes(tmp_path, [Upsert(version.ids[5], {"colour": ("red",)})])
    elsewhere.error = IndexUnavailableError("away")
    with pytest.raises(IndexUnavailableError):
        asyncio.run(followed.read())
    assert followed.overlay.view() is None
    elsewhere.error = None
    for _ in range(2):
        asyncio.run(followed.read())
    view = followed.overlay.view()
    assert view is not None
    assert view.vectors_RD.tolist() == [[5.0] * elsewhere.d]
    assert [5] in elsewhere.fetched


def test_the_time_of_a_batch_elsewhere_is_that_of_a_full_batch() -> None:
    """Calls that arrive during a search elsewhere are all in the next one."""
    queue = BatchQueue[int](64, lambda _: 0.1, inf)
    local, remote = BatchGroup(0, 2), BatchGroup(0, 2, is_remote=True)
    assert (queue.num_counted(local, 3), queue.num_counted(remote, 3)) == (3, 32)
    assert local.cost_class != remote.cost_class
