"""Synthetic vectors have the structure that they claim, and the same one every time."""

from pathlib import Path

import numpy as np
import pytest

from re4.benchmarks.load_generator.requests import real_histories
from re4.benchmarks.synthetic import bundle as synthetic_bundle
from re4.benchmarks.synthetic import vectors
from re4.benchmarks.synthetic.vectors import VectorSpace
from re4.bundle.ids.id_map import ItemIds
from re4.bundle.publishing.current import live_version
from re4.bundle.verify import verify_version


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


def test_histories_are_of_a_few_clusters_and_of_popular_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "CHUNK_SIZE", 3000)
    space = VectorSpace(num_items=20_000, embedding_dim=8, seed=2)
    rows, lengths = space.histories(200, length=12, num_tastes=3)
    assert (rows.shape, rows.dtype, lengths.min(), lengths.max()) == ((200, 12), np.int64, 6, 12)
    assert (rows[np.arange(12) >= lengths[:, None]] == 0).all()
    chunks = [space._clusters(space._rng_of(n), min(3000, 20_000 - 3000 * n)) for n in range(7)]
    clusters = np.concatenate(chunks)
    for some, length in zip(rows, lengths, strict=True):
        assert len(set(clusters[some[:length]].tolist())) <= 3
    real = np.arange(12) < lengths[:, None]
    assert rows[real].mean() < 0.45 * 20_000
    np.testing.assert_array_equal(rows, space.histories(200, length=12, num_tastes=3)[0])


def test_clusters_of_histories_are_those_of_the_items(tmp_path: Path) -> None:
    """Items of one history are nearer to each other than to those of another one."""
    space = VectorSpace(num_items=20_000, embedding_dim=32)
    space.write_items(tmp_path / "vectors.npy")
    found = np.load(tmp_path / "vectors.npy")
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    rows, lengths = space.histories(100, length=2, num_tastes=1)
    pairs = found[rows[lengths == 2]]
    assert (pairs[:, 0] * pairs[:, 1]).sum(axis=1).mean() > 0.5
    assert abs((pairs[:, 0] * np.roll(pairs[:, 1], 1, axis=0)).sum(axis=1).mean()) < 0.3


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="0 items of width 64"):
        VectorSpace(num_items=0)


def test_a_history_is_of_a_few_clusters_and_each_of_its_items_near_others() -> None:
    space = VectorSpace(num_items=4000, embedding_dim=8)
    rows, lengths = space.histories(30, length=12, num_tastes=3)
    clusters = space._item_clusters()
    assert rows.shape == (30, 12)
    assert all(
        len(set(clusters[history[:length]])) <= 3 for history, length in zip(rows, lengths, strict=True)
    )
    np.testing.assert_array_equal(rows, space.histories(30, length=12, num_tastes=3)[0])
    assert len({tuple(history) for history in rows.tolist()}) == 30


def test_every_item_is_in_the_cluster_around_whose_centre_it_was_drawn(tmp_path: Path) -> None:
    space = VectorSpace(num_items=3000, embedding_dim=32)
    found = items(tmp_path, num_items=3000, embedding_dim=32)
    directions = found / np.linalg.norm(found, axis=1, keepdims=True)
    centres = space._centres_CD()
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    own = np.einsum("nd,nd->n", directions, centres[space._item_clusters()])
    assert own.mean() > 0.7
    assert abs((directions @ centres.T).mean()) < 0.1


def test_a_synthetic_bundle_is_served_like_any_other(tmp_path: Path) -> None:
    synthetic_bundle.main(tmp_path, num_items=400, embedding_dim=8, index="flat", num_candidates=10)
    path = live_version(tmp_path / "bundles")
    manifest = verify_version(path)
    histories = real_histories(tmp_path / "data", max_length=20, seed=0)
    assert manifest.items.num_items == 400
    assert 10 <= len(histories.ids[0]) <= 20
    assert (ItemIds.open(path, "string", 400).rows(histories.ids[0]) >= 0).all()
