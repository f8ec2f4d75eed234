"""Made-up vectors have the structure that they claim, and the same one every time."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import vectors
from benchmarks.vectors import VectorSpace


def items(folder: Path, **options: int) -> np.ndarray:
    VectorSpace(**options).write_items(folder / "vectors.npy")
    return np.load(folder / "vectors.npy")


def test_a_seed_gives_the_same_vectors_and_another_seed_others(tmp_path: Path) -> None:
    first = items(tmp_path, num_items=2000, embedding_dim=16, seed=4)
    assert (first.dtype, first.shape, first.flags.c_contiguous) == (np.float32, (2000, 16), True)
    np.testing.assert_array_equal(first, items(tmp_path, num_items=2000, embedding_dim=16, seed=4))
    assert not np.allclose(first, items(tmp_path, num_items=2000, embedding_dim=16, seed=5))
    np.testing.assert_array_equal(
        VectorSpace(num_items=2000, embedding_dim=16, seed=4).interests(7),
        VectorSpace(num_items=2000, embedding_dim=16, seed=4).interests(7),
    )


def test_chunks_differ_and_leave_no_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "CHUNK_SIZE", 300)
    found = items(tmp_path, num_items=1000, embedding_dim=8)
    assert np.isfinite(found).all()
    assert (np.linalg.norm(found, axis=1) > 0).all()
    assert len(np.unique(found, axis=0)) == 1000


def test_norms_vary_and_popular_items_have_larger_ones(tmp_path: Path) -> None:
    norms = np.linalg.norm(items(tmp_path, num_items=40_000, embedding_dim=16), axis=1)
    assert 0.2 < np.log(norms).std() < 0.4
    assert norms[:1000].mean() > 1.1 * norms[-1000:].mean()


def test_items_are_clustered_and_interests_lie_near_them(tmp_path: Path) -> None:
    space = VectorSpace(num_items=40_000, embedding_dim=32)
    found = items(tmp_path, num_items=40_000, embedding_dim=32)
    directions = found / np.linalg.norm(found, axis=1, keepdims=True)
    interests = space.interests(50, 3)
    assert (interests.dtype, interests.shape) == (np.float32, (50, 3, 32))
    wanted = interests.reshape(-1, 32)
    wanted = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
    random = np.random.default_rng(0).standard_normal((150, 32)).astype(np.float32)
    random /= np.linalg.norm(random, axis=1, keepdims=True)

    def tenth_best(queries: np.ndarray) -> float:
        return float(np.partition(queries @ directions.T, -10, axis=1)[:, -10].mean())

    assert tenth_best(wanted) > tenth_best(random) + 0.15


def test_a_few_clusters_are_crowded() -> None:
    space = VectorSpace(num_items=100_000, embedding_dim=8)
    sizes = np.sort(np.bincount(space._clusters(np.random.default_rng(0), 100_000)))[::-1]
    assert space.num_clusters == 500
    assert sizes[:50].sum() > 4 * sizes[-50:].sum()


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="0 items of width 64"):
        VectorSpace(num_items=0)
