"""Flat search by matrix products finds the same items in less time."""

from time import thread_time

import faiss
import numpy as np

from re4.common.faiss_settings import use_matrix_products
from re4.serving.retrieval.search import Searcher


def test_a_batch_takes_less_time_than_one_after_another_and_finds_the_same() -> None:
    rng = np.random.default_rng(0)
    index = faiss.IndexFlatIP(64)
    index.add(rng.standard_normal((50_000, 64), np.float32))
    queries = rng.standard_normal((32, 64), np.float32)
    before, threads = faiss.cvar.distance_compute_blas_threshold, faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    taken = {}
    try:
        found = {}
        for name in ("products", "one by one"):
            if name == "products":
                use_matrix_products()
            else:
                faiss.cvar.distance_compute_blas_threshold = 128_000
            index.search(queries, 10)
            began = thread_time()
            for _ in range(3):
                found[name] = index.search(queries, 10)
            taken[name] = thread_time() - began
    finally:
        faiss.cvar.distance_compute_blas_threshold = before
        faiss.omp_set_num_threads(threads)
    np.testing.assert_allclose(found["products"][0], found["one by one"][0], rtol=1e-5)
    assert taken["products"] < taken["one by one"]


def test_a_searcher_searches_by_matrix_products() -> None:
    vectors = np.eye(4, dtype=np.float32)
    index = faiss.IndexFlatIP(4)
    index.add(vectors)
    before = faiss.cvar.distance_compute_blas_threshold
    try:
        faiss.cvar.distance_compute_blas_threshold = 128_000
        Searcher(index, None, vectors_ND=vectors, num_interests=1)
        assert faiss.cvar.distance_compute_blas_threshold == 1
    finally:
        faiss.cvar.distance_compute_blas_threshold = before
