"""How distinct a version's interests are: the figures by hand, the gate, the manifest."""

import math
from pathlib import Path

import numpy as np
import pytest
from rebuild_samples import Shop

from re4.bundle.golden import GoldenQueries
from re4.bundle.publishing.current import live_version
from re4.bundle.verify import verify_version
from re4.common.errors import GateError
from re4.exporting.encoder.interests import VersionInterests


def golden_of(interests_QKD: np.ndarray, vectors_ND: np.ndarray) -> GoldenQueries:
    scores_QN = (interests_QKD @ vectors_ND.T).max(axis=1)
    rows_QM = np.argsort(-scores_QN, axis=1, kind="stable")[:, :100]
    return GoldenQueries(
        rows_QL=np.zeros((len(interests_QKD), 1), np.int64),
        lengths_Q=np.ones(len(interests_QKD), np.int64),
        interests_QKD=interests_QKD,
        candidate_rows_QM=rows_QM,
        scores_QM=np.take_along_axis(scores_QN, rows_QM, axis=1),
    )


def test_the_figures_by_hand() -> None:
    """Two interests on two axes, each with its own items; 30 of the first 50 are of the first axis."""
    vectors = np.zeros((600, 2), np.float32)
    vectors[:300, 0] = np.linspace(1, 2, 300)
    vectors[300:, 1] = np.linspace(1, 2, 300) * np.where(np.arange(300) >= 280, 1, 0.5)
    distinct = np.eye(2, dtype=np.float32)[None]
    found = VersionInterests.of(golden_of(distinct, vectors), vectors)
    share = 20 / 50
    entropy = -(share * math.log(share) + (1 - share) * math.log(1 - share))
    assert found.effective_interests == pytest.approx(math.exp(entropy), rel=0.1)
    assert (found.interest_overlap, found.interest_cosine, found.one_interest_lists) == (0, 0, 0)
    assert found.collapse == ""


def test_equal_interests_are_reported() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(600, 4)).astype(np.float32)
    equal = np.repeat(rng.normal(size=(5, 1, 4)), 8, axis=1).astype(np.float32)
    found = VersionInterests.of(golden_of(equal, vectors), vectors)
    assert (found.effective_interests, found.interest_overlap, found.one_interest_lists) == (1, 1, 1)
    assert "--num-interests 1 finds as much for an eighth of the searches" in found.collapse


def test_the_gate_compares_with_the_live_version(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    error, report = shop.rebuild()
    assert error is None
    gate = next(gate for gate in report["gates"] if gate["name"] == "interests")
    assert gate["low"] is None, "the first version states no figure"
    manifest = verify_version(live_version(shop.bundles))
    assert manifest.effective_interests == pytest.approx(gate["figure"], abs=1e-4)
    assert manifest.evaluation["interests"]["interest_overlap"] == gate["details"]["interest_overlap"]
    error, report = shop.rebuild("--min-interests-ratio", 3)
    assert isinstance(error, GateError)
    assert [gate["name"] for gate in report["gates"] if not gate["passed"]] == ["interests"]
