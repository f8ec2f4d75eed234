"""The compiled scan of lists finds the same items as FAISS, once each, in one pool for all interests."""

import faiss
import numpy as np
import pytest

from re4.bundle.scoring.rescoring import best_rescored
from re4.common import list_scan
from re4.common.list_scan import FurtherItems, open_list_scan
from re4.common.native_code import compiler, is_native_allowed
from re4.common.shared_list_search import NO_DROP_TOO_LARGE, SharedBudget, SharedListSearch
from re4.exporting.index.build import build_index

DIM, NUM_ITEMS, NUM_INTERESTS = 16, 3000, 4
FACTORIES = [
    "IVF32,PQ16x4fsr",
    "IVF300,PQ16x4fsr",
    "IVF32,PQ16x4fs",
    "IVF32,PQ8x4fsr",
    "IVF300_HNSW8,PQ16x4fsr",
]

pytestmark = pytest.mark.skipif(
    not is_native_allowed() or list_scan._library() is None, reason="there is no C compiler for AVX2 here"
)


@pytest.fixture(scope="module")
def indexes() -> dict[str, faiss.IndexIVF]:
    vectors = np.random.default_rng(0).standard_normal((NUM_ITEMS, DIM)).astype(np.float32)
    return {factory: build_index(factory, vectors).index for factory in FACTORIES}


@pytest.fixture(scope="module")
def interests() -> np.ndarray:
    rng = np.random.default_rng(1)
    made = rng.standard_normal((12, NUM_INTERESTS, DIM)).astype(np.float32)
    made[3:, 1] = made[3:, 0] + 0.1 * made[3:, 1]  # two that read the same lists
    made[6, 2] = made[6, 0]
    return made * rng.uniform(0.3, 2, (12, NUM_INTERESTS, 1)).astype(np.float32)


def by_faiss(index: faiss.IndexIVF, interests: np.ndarray, budget: SharedBudget) -> list[dict[int, float]]:
    """The best approximate score of every item in the lists of each request."""
    search = SharedListSearch(index, is_native=False)
    found = []
    for scores_KS, rows_KS in zip(*search.search(interests, NUM_ITEMS, budget, pool_size=1), strict=True):
        best: dict[int, float] = {}
        for row, score in zip(rows_KS.ravel().tolist(), scores_KS.ravel().tolist(), strict=True):
            if row >= 0:
                best[row] = max(score, best.get(row, -np.inf))
        found.append(best)
    return found


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("pool_size", [1, 5, 100, 2 * NUM_ITEMS])
@pytest.mark.parametrize(
    "budget", [SharedBudget(30, 0.7), SharedBudget(3, 9), SharedBudget(10**6, NO_DROP_TOO_LARGE)]
)
def test_the_pool_holds_the_best_by_approximate_scores(
    factory: str,
    pool_size: int,
    budget: SharedBudget,
    indexes: dict[str, faiss.IndexIVF],
    interests: np.ndarray,
) -> None:
    index = indexes[factory]
    scores_BAP, rows_BAP = SharedListSearch(index).search(interests, 7, budget, pool_size=pool_size)
    assert scores_BAP.shape == rows_BAP.shape == (len(interests), 1, pool_size)
    for expected, scores_P, rows_P in zip(
        by_faiss(index, interests, budget), scores_BAP[:, 0], rows_BAP[:, 0], strict=True
    ):
        is_row = rows_P >= 0
        rows, scores = rows_P[is_row].tolist(), scores_P[is_row]
        assert len(rows) == len(set(rows)) == min(pool_size, len(expected))
        tolerance = 0.03 * max(map(abs, expected.values()))  # tables of eight bits, rounded in another way
        assert scores == pytest.approx([expected[row] for row in rows], abs=tolerance)
        worst_allowed = sorted(expected.values(), reverse=True)[: len(rows)][-1] - tolerance
        assert min(expected[row] for row in rows) >= worst_allowed


@pytest.mark.parametrize("factory", FACTORIES)
def test_with_all_lists_and_a_pool_of_all_items_nothing_is_missing(
    factory: str, indexes: dict[str, faiss.IndexIVF], interests: np.ndarray
) -> None:
    budget = SharedBudget(10**6, NO_DROP_TOO_LARGE)
    _, rows_BAP = SharedListSearch(indexes[factory]).search(interests, 7, budget, pool_size=NUM_ITEMS)
    assert (np.sort(rows_BAP[:, 0], axis=1) == np.arange(NUM_ITEMS)).all()


@pytest.mark.parametrize("factory", ["IVF32,PQ16x4fsr", "IVF300_HNSW8,PQ16x4fsr", "IVF32,PQ16x4fs"])
@pytest.mark.parametrize("pool_size", [5, 100, 2 * NUM_ITEMS])
def test_hidden_rows_and_further_items(
    factory: str, pool_size: int, indexes: dict[str, faiss.IndexIVF], interests: np.ndarray
) -> None:
    """Two indexes with the same centroids and codes give what one index of all items gives."""
    rng, first_row, num_more = np.random.default_rng(3), NUM_ITEMS + 5, 700
    more_vectors = rng.standard_normal((num_more, DIM)).astype(np.float32)
    whole, more = faiss.clone_index(indexes[factory]), faiss.clone_index(indexes[factory])
    whole.add(more_vectors)
    more.reset()
    more.add(more_vectors)
    is_hidden = rng.random(NUM_ITEMS + num_more) < 0.3
    allowed = np.packbits(~is_hidden, bitorder="little")
    expected = SharedListSearch(whole, is_native=False).search(
        interests,
        NUM_ITEMS + num_more,
        SharedBudget(40, 0.8),
        pool_size=1,
        selector=faiss.IDSelectorBitmap(allowed),
    )
    scan = SharedListSearch(more).list_scan
    assert scan is not None
    scores_BAP, rows_BAP = SharedListSearch(indexes[factory]).search(
        interests,
        7,
        SharedBudget(40, 0.8),
        pool_size=pool_size,
        is_hidden_N=is_hidden[:NUM_ITEMS],
        more=FurtherItems(scan, first_row, is_hidden[NUM_ITEMS:]),
    )
    for scores_KS, rows_KS, scores_P, rows_P in zip(*expected, scores_BAP[:, 0], rows_BAP[:, 0], strict=True):
        best: dict[int, float] = {}
        for row, score in zip(rows_KS.ravel().tolist(), scores_KS.ravel().tolist(), strict=True):
            row = row if row < NUM_ITEMS else row - NUM_ITEMS + first_row
            if row >= 0:
                best[row] = max(score, best.get(row, -np.inf))
        is_row = rows_P >= 0
        rows, scores = rows_P[is_row].tolist(), scores_P[is_row]
        assert len(rows) == len(set(rows)) == min(pool_size, len(best))
        tolerance = 0.03 * max(map(abs, best.values()))
        assert scores == pytest.approx([best[row] for row in rows], abs=tolerance)
        assert min(best[row] for row in rows) >= sorted(best.values())[-len(rows)] - tolerance


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("pool_size", [1, 100, 2 * NUM_ITEMS])
@pytest.mark.parametrize("has_more", [False, True])
def test_one_step_gives_the_best_of_the_pool(
    factory: str, pool_size: int, has_more: bool, indexes: dict[str, faiss.IndexIVF], interests: np.ndarray
) -> None:
    rng, first_row = np.random.default_rng(4), NUM_ITEMS + 5
    vectors, more_vectors = (rng.standard_normal((n, DIM)).astype(np.float32) for n in (NUM_ITEMS, 700))
    is_hidden = rng.random(NUM_ITEMS) < 0.3
    more, budget = None, SharedBudget(40, 0.8)
    unlimited = budget._replace(reach_drop=NO_DROP_TOO_LARGE)
    if has_more:
        further = faiss.clone_index(indexes[factory])
        further.reset()
        further.add(more_vectors)
        scan = SharedListSearch(further).list_scan
        assert scan is not None
        more = FurtherItems(scan, first_row, rng.random(700) < 0.3)
    search = SharedListSearch(indexes[factory])
    pool = search.search(interests, 7, budget, pool_size=pool_size, is_hidden_N=is_hidden, more=more)
    further = search.search(interests, 7, unlimited, pool_size=pool_size, is_hidden_N=is_hidden, more=more)
    is_short = np.count_nonzero(pool[1] >= 0, axis=(1, 2)) < min(50, pool_size)
    pool = tuple(np.where(is_short[:, None, None], *pair) for pair in zip(further, pool, strict=True))
    expected = best_rescored(
        *pool, interests, vectors, pool_size, 50, None if more is None else (first_row, more_vectors)
    )
    found = search.best(
        interests,
        budget,
        vectors,
        50,
        pool_size=pool_size,
        is_hidden_N=is_hidden,
        more=more,
        more_vectors_RD=more_vectors if has_more else None,
    )
    assert found is not None
    assert all(map(np.array_equal, found, expected))
    assert search.best(interests, budget, vectors[:, ::-1], 50, pool_size=9) is None  # not contiguous


def test_lists_that_promise_less_are_read_where_others_hold_too_few(
    indexes: dict[str, faiss.IndexIVF], interests: np.ndarray
) -> None:
    vectors = np.random.default_rng(0).standard_normal((NUM_ITEMS, DIM)).astype(np.float32)
    search = SharedListSearch(indexes["IVF300,PQ16x4fsr"])
    few = search.search(interests, 7, SharedBudget(40, 0.0), pool_size=90)[1]
    assert (np.count_nonzero(few >= 0, axis=(1, 2)) < 60).all()
    found = search.best(interests, SharedBudget(40, 0.0), vectors, 60, pool_size=90)
    expected = search.best(interests, SharedBudget(40, NO_DROP_TOO_LARGE), vectors, 60, pool_size=90)
    assert found is not None
    assert expected is not None
    assert (found[0] >= 0).all()
    assert all(map(np.array_equal, found, expected))


def test_a_batch_and_a_lone_request_find_the_same(
    indexes: dict[str, faiss.IndexIVF], interests: np.ndarray
) -> None:
    search, budget = SharedListSearch(indexes["IVF300,PQ16x4fsr"]), SharedBudget(40, 0.8)
    scores_BAP, rows_BAP = search.search(interests, 7, budget, pool_size=50)
    for request, interests_KD in enumerate(interests):
        scores_AP, rows_AP = search.search(interests_KD[None], 7, budget, pool_size=50)
        np.testing.assert_array_equal(scores_AP[0], scores_BAP[request])
        np.testing.assert_array_equal(rows_AP[0], rows_BAP[request])


def test_a_search_with_a_selector_is_faiss_s(
    indexes: dict[str, faiss.IndexIVF], interests: np.ndarray
) -> None:
    allowed = np.arange(NUM_ITEMS) % 3 == 0
    selector = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
    index, budget = indexes["IVF32,PQ16x4fsr"], SharedBudget(60, 9)
    found, expected = (
        SharedListSearch(index, is_native=native).search(
            interests, 9, budget, pool_size=20, selector=selector
        )
        for native in (True, False)
    )
    np.testing.assert_array_equal(found[1], expected[1])


def test_what_cannot_be_scanned_is_left_to_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(0).standard_normal((500, 12)).astype(np.float32)
    for factory in ("IVF16,Flat", "IVF16,PQ6x4fs", "IVF16,PQ6x4"):
        assert open_list_scan(build_index(factory, vectors).index, None) is None
    index = build_index("IVF16,PQ12x4fsr", vectors).index
    monkeypatch.setenv("RE4_NATIVE", "0")
    search = SharedListSearch(index)
    assert search.search(vectors[:6].reshape(2, 3, 12), 4, SharedBudget(9, 9), pool_size=8)[1].shape == (
        2,
        3,
        4,
    )


def test_a_failed_compilation_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path
) -> None:
    broken = tmp_path / "list_scan.c"
    broken.write_text("no C")
    monkeypatch.setattr(list_scan, "_SOURCE", broken)
    list_scan._library.cache_clear()
    try:
        caplog.set_level("INFO")
        vectors = np.random.default_rng(0).standard_normal((500, 12)).astype(np.float32)
        index = build_index("IVF16,PQ12x4fsr", vectors).index
        assert SharedListSearch(index)._scan is None
        assert "FAISS scans the lists" in caplog.text
    finally:
        list_scan._library.cache_clear()


def test_without_a_compiler_there_is_no_scan(
    monkeypatch: pytest.MonkeyPatch, indexes: dict[str, faiss.IndexIVF]
) -> None:
    compiler.cache_clear()
    monkeypatch.setenv("CC", "no-such-compiler")
    try:
        assert SharedListSearch(indexes["IVF32,PQ16x4fsr"])._scan is None
    finally:
        compiler.cache_clear()
