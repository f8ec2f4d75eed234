"""The search sets FAISS to compare by matrix products when a searcher is made, not when it is imported."""

import subprocess
import sys

import faiss
import numpy as np
import pytest

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
