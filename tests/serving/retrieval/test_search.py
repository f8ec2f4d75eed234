"""The search sets FAISS to compare by matrix products when a searcher is made, not when it is imported."""

import subprocess
import sys

import faiss
import numpy as np
import pytest

from re4.bundle.scoring.exact_search import exact_search
from re4.serving.retrieval.indexes.kinds import KINDS
from re4.serving.retrieval.merging import SearchResults
from re4.serving.retrieval.merging.policy import NO_ROWS
from re4.serving.retrieval.merging.soft_quota import SOFT_QUOTA
from re4.serving.retrieval.search import Searcher


def test_an_import_changes_no_setting_of_faiss() -> None:
    code = (
        "import faiss; before = faiss.cvar.distance_compute_blas_threshold; import re4.serving.api.server; "
        "import sys; sys.exit(faiss.cvar.distance_compute_blas_threshold != before)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_merge_policies_load_no_faiss() -> None:
    """The supervisor, which loads no parser, may look up a policy's name."""
    code = "import sys, re4.serving.retrieval.merging; sys.exit('faiss' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_searcher_compares_by_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss.cvar, "distance_compute_blas_threshold", 128_000)
    Searcher(faiss.IndexFlatIP(4), None, vectors_ND=np.empty((0, 4), np.float32), num_interests=1)
    assert faiss.cvar.distance_compute_blas_threshold == 1


def test_a_list_that_interests_share_is_exact_with_all_lists() -> None:
    rng = np.random.default_rng(0)
    items_ND = rng.standard_normal((2000, 8)).astype(np.float32)
    index = faiss.index_factory(8, "IVF16,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(items_ND)
    index.add(items_ND)
    all_lists = {"nprobe": 1, "shared_nprobe": 4 * 16, "reach_drop": 1e6, "k_factor": 1, "pool_factor": 1}
    plan = KINDS["ivf"].search_parameters(all_lists)
    searcher = Searcher(index, plan, vectors_ND=items_ND, num_interests=4)
    interests_BKD = rng.standard_normal((20, 4, 8)).astype(np.float32)
    interests_BKD[:, 1:] *= 0.7
    scores_QS, rows_QS = searcher.search(interests_BKD.reshape(-1, 8), 20, balance=SOFT_QUOTA.balance)
    shares = []
    for request, interests_KD in enumerate(interests_BKD):
        own = slice(4 * request, 4 * request + 4)
        lists = (scores_QS[own], rows_QS[own]), exact_search(interests_KD[:, None], items_ND, 20)
        found, exact = (
            SOFT_QUOTA.merge(SearchResults(*each), NO_ROWS, 20, np.ones((4, 1), np.float32)) for each in lists
        )
        shares.append(np.isin(exact.rows_M, found.rows_M).mean())
    assert np.mean(shares) > 0.98  # the pool has 40 of 80 items
