"""Lists are selected by the reach of their items, and scored by their centroids."""

from collections.abc import Callable

import faiss
import numpy as np
import pytest

from re4.benchmarks.synthetic.vectors import VectorSpace
from re4.exporting.index.build import build_index
from re4.exporting.index.coarse_quantizer import replace_quantizer, search_by_reach

NUM_ITEMS, DIM = 20_000, 32


@pytest.fixture(scope="module")
def vectors(mapped_items: Callable[[int, int], np.ndarray]) -> np.ndarray:
    return mapped_items(NUM_ITEMS, DIM)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return VectorSpace(num_items=NUM_ITEMS, embedding_dim=DIM).interests(50, 4).reshape(-1, DIM)


def by_centroids(index: faiss.Index) -> faiss.Index:
    """The same lists, chosen as FAISS does."""
    plain = faiss.clone_index(index)
    flat = faiss.IndexFlatIP(DIM)
    flat.add(index.quantizer.reconstruct_n(0, index.nlist))
    replace_quantizer(plain, flat)
    return plain


def found(index: faiss.Index, queries: np.ndarray, nprobe: int, num_results: int = 50) -> tuple:
    parameters = faiss.SearchParametersIVF(nprobe=nprobe)
    return index.search(queries, num_results, params=parameters)


def test_a_list_is_read_for_its_best_items_not_for_its_mean() -> None:
    """One list is better on average, the other one holds the best."""
    rng = np.random.default_rng(0)
    vectors = np.zeros((2000, DIM), np.float32)
    vectors[::2, 0] = 1
    vectors[1::2, 1] = 1 + 0.2 * rng.standard_normal(1000)
    query = np.zeros((1, DIM), np.float32)
    query[0, :2] = 1, 0.9
    index = build_index("IVF2,Flat", vectors).index
    assert (found(index, query, 1, 10)[1] % 2 == 1).all()
    assert (found(by_centroids(index), query, 1, 10)[1] % 2 == 0).all()


@pytest.mark.parametrize("factory", ["IVF256,Flat", "IVF512,Flat", "IVF256_HNSW16,Flat"])
def test_the_same_number_of_lists_holds_more_of_the_best(
    factory: str, vectors: np.ndarray, queries: np.ndarray
) -> None:
    index = build_index(factory, vectors).index
    exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :50]
    shares = [
        np.mean([np.isin(a, b).mean() for a, b in zip(exact, found(one, queries, 8)[1], strict=True)])
        for one in (index, by_centroids(index))
    ]
    assert shares[0] > shares[1] + 0.004


@pytest.mark.parametrize("factory", ["IVF256,PQ32x4fsr", "IVF64,SQ8", "IVF256,RaBitQ"])
def test_scores_are_those_of_the_centroids(factory: str, vectors: np.ndarray, queries: np.ndarray) -> None:
    """Which lists are read is all that a reach decides: where all are, nothing differs."""
    index = build_index(factory, vectors).index
    everywhere = found(index, queries, index.nlist), found(by_centroids(index), queries, index.nlist)
    np.testing.assert_allclose(everywhere[0][0], everywhere[1][0], rtol=1e-4, atol=1e-4)
    assert np.mean(everywhere[0][1] == everywhere[1][1]) > 0.98


def test_a_batch_and_a_lone_query_find_the_same(vectors: np.ndarray, queries: np.ndarray) -> None:
    index = build_index("IVF256,PQ32x4fsr", vectors).index
    together = found(index, queries, 5)[1]
    alone = np.concatenate([found(index, query[None], 5)[1] for query in queries])
    assert np.array_equal(together, alone)


def test_items_that_are_all_alike_still_have_lists(queries: np.ndarray) -> None:
    """No direction to reach in, and no deviation: nothing divides by zero."""
    vectors = np.zeros((3000, DIM), np.float32)
    vectors[::2] = 1
    index = build_index("IVF16,Flat", vectors).index
    scores, rows = found(index, np.ones((1, DIM), np.float32), 16, 10)
    assert np.isfinite(scores).all()
    assert (rows[0] % 2 == 0).all()


def test_doing_it_twice_changes_nothing(vectors: np.ndarray) -> None:
    index = build_index("IVF64,Flat", vectors).index
    before = faiss.serialize_index(index).tobytes()
    search_by_reach(index, vectors)
    assert faiss.serialize_index(index).tobytes() == before
