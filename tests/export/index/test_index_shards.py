"""An index that was built in chunks, in shards, or on after an interruption, is the index built at once."""

from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import faiss
import numpy as np
import pytest

from re4.benchmarks.synthetic.vectors import VectorSpace
from re4.common.errors import ExportError
from re4.exporting.index import fill as filling
from re4.exporting.index import index_file
from re4.exporting.index import memory_estimate as memory
from re4.exporting.index.build import build_index
from re4.exporting.index.coarse_quantizer import search_by_reach, train_by_distance
from re4.exporting.index.fill import FILLED
from re4.exporting.storage import mapped_vectors as mapped
from re4.exporting.storage.build_cache import Checkpoints

NUM_ITEMS, DIM = 3000, 16
IN_SHARDS = ["IVF32,Flat", "IVF32,SQ8", "IVF32,PQ8x4", "IVF32,RaBitQ", "IVF64_HNSW16,Flat", "IVF2900,Flat"]
IN_ONE_PIECE = ["Flat", "IVF32,PQ8x4fs", "IVF32,RaBitQfs"]


@pytest.fixture(scope="module")
def vectors(mapped_items: Callable[[int, int], np.ndarray]) -> np.ndarray:
    return mapped_items(NUM_ITEMS, DIM)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 700 items, and shards wherever there are lists that can be merged."""
    monkeypatch.setattr(mapped, "CHUNK_ROWS", 700)
    monkeypatch.setattr(memory, "SHARD_BYTES", 20_000)


@pytest.fixture
def stages(tmp_path: Path) -> Checkpoints:
    (tmp_path / "stages").mkdir()
    return Checkpoints(tmp_path / "stages")


def at_once(factory: str, vectors: np.ndarray, path: Path) -> bytes:
    """Return FAISS's file of an index that it fills by itself, without chunks or shards."""
    index = faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        index.cp.min_points_per_centroid = 1
        if hasattr(index, "pq"):
            index.pq.cp.min_points_per_centroid = 1
        train_by_distance(index, np.array(vectors))
    index.add(np.array(vectors))
    search_by_reach(index, vectors)
    faiss.write_index(index, str(path))
    return path.read_bytes()


@pytest.mark.parametrize("factory", IN_SHARDS + IN_ONE_PIECE)
def test_the_file_is_that_of_an_index_built_at_once(
    factory: str, vectors: np.ndarray, stages: Checkpoints, tmp_path: Path
) -> None:
    reports: list[str] = []
    build_index(factory, vectors, checkpoints=stages, on_progress=reports.append)
    assert stages.path(FILLED).read_bytes() == at_once(factory, vectors, tmp_path / "at once")
    assert ("merging the shards" in reports) == (factory in IN_SHARDS)


@pytest.mark.parametrize("factory", ["IVF32,Flat", "IVF32,SQ8"])
def test_a_merged_index_is_searched_from_its_file(
    factory: str, vectors: np.ndarray, stages: Checkpoints
) -> None:
    built = build_index(factory, vectors, checkpoints=stages)
    queries = VectorSpace(num_items=NUM_ITEMS, embedding_dim=DIM).interests(20, 1)[:, 0]
    slowest = built.ladders(10)[-1][-1]
    rows = built.index.search(queries, 10, params=built.family.parameters(slowest))[1]
    exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    assert np.mean([len(set(a) & set(b)) for a, b in zip(rows.tolist(), exact.tolist(), strict=True)]) > 9.9


def test_finished_stages_leave_only_the_files_of_later_ones(vectors: np.ndarray, stages: Checkpoints) -> None:
    build_index("IVF32,Flat", vectors, checkpoints=stages)
    assert {path.name for path in stages.folder.iterdir()} == {"trained.faiss", FILLED}


class _InterruptedError(Exception):
    """Stands for what ends a process."""


def _interrupt(num_calls: int, real: Callable) -> Callable:
    """The real function, until it has been called so many times."""
    left = iter(range(num_calls))

    def interrupted(*args: object) -> object:
        if next(left, None) is None:
            raise _InterruptedError
        return real(*args)

    return interrupted


@pytest.mark.parametrize("factory", ["IVF32,Flat", "IVF32,SQ8"])
def test_interrupted_after_any_number_of_files_it_goes_on_to_the_same_index(
    factory: str, vectors: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, writing = at_once(factory, vectors, tmp_path / "at once"), filling.write_index
    num_written: list[int] = []
    for num_files in range(20):
        folder = tmp_path / str(num_files)
        folder.mkdir()
        stages = Checkpoints(folder)
        with monkeypatch.context() as patch:
            patch.setattr(filling, "write_index", _interrupt(num_files, writing))
            try:
                build_index(factory, vectors, checkpoints=stages)
            except _InterruptedError:
                pass
            else:
                break
        with monkeypatch.context() as patch:
            counting = Mock(side_effect=writing)
            patch.setattr(filling, "write_index", counting)
            build_index(factory, vectors, checkpoints=stages)
        num_written.append(counting.call_count)
        assert stages.path(FILLED).read_bytes() == expected
    assert len(num_written) >= 3
    assert num_written == list(range(len(num_written), 0, -1))  # none of the finished shards again


@pytest.mark.parametrize("factory", ["Flat", "IVF32,PQ8x4fs", "IVF32,RaBitQfs"])
def test_an_index_in_one_piece_goes_on_from_where_it_was_saved(
    factory: str, vectors: np.ndarray, stages: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "_SECONDS_BETWEEN_SAVES", -1.0)
    expected, writing = at_once(factory, vectors, tmp_path / "at once"), filling.write_index
    with monkeypatch.context() as patch:
        patch.setattr(filling, "write_index", _interrupt(2, writing))
        with pytest.raises(_InterruptedError):
            build_index(factory, vectors, checkpoints=stages)
    assert faiss.read_index(str(stages.path("partly-filled.faiss"))).ntotal == 700
    build_index(factory, vectors, checkpoints=stages)
    assert stages.path(FILLED).read_bytes() == expected
    assert not stages.has("partly-filled.faiss")


@pytest.mark.parametrize("factory", ["HNSW16,Flat", "HNSW16_SQ8"])
def test_a_graph_goes_on_from_where_it_was_saved_to_one_as_good(
    factory: str, vectors: np.ndarray, stages: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to the same one: which items the upper layers get is drawn anew for those that were missing."""
    monkeypatch.setattr(filling, "_SECONDS_BETWEEN_SAVES", -1.0)
    with monkeypatch.context() as patch:
        patch.setattr(filling, "write_index", _interrupt(3, filling.write_index))
        with pytest.raises(_InterruptedError):
            build_index(factory, vectors, checkpoints=stages)
    saved = faiss.read_index(str(stages.path("partly-filled.faiss")))
    assert saved.ntotal == 1400
    reports: list[str] = []
    built = build_index(factory, vectors, checkpoints=stages, on_progress=reports.append)
    assert built.index.ntotal == NUM_ITEMS
    assert not stages.has("partly-filled.faiss")
    assert "training" not in reports
    levels = faiss.vector_to_array(built.index.hnsw.levels)
    np.testing.assert_array_equal(levels[:1400], faiss.vector_to_array(saved.hnsw.levels))
    queries = VectorSpace(num_items=NUM_ITEMS, embedding_dim=DIM).interests(40, 1)[:, 0]
    exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    shares = []
    for index in (built.index, build_index(factory, vectors).index):
        rows = index.search(queries, 10, params=faiss.SearchParametersHNSW(efSearch=80))[1]
        shares.append(np.mean([np.isin(a, b).mean() for a, b in zip(exact, rows, strict=True)]))
    assert shares[0] > 0.95
    assert shares[0] > shares[1] - 0.02


def test_a_damaged_shard_is_not_merged(vectors: np.ndarray, stages: Checkpoints, tmp_path: Path) -> None:
    trained = faiss.index_factory(DIM, "IVF8,Flat", faiss.METRIC_INNER_PRODUCT)
    trained.train(np.array(vectors))
    whole = faiss.clone_index(trained)
    whole.add(np.array(vectors))
    shard = tmp_path / "shard"
    faiss.write_index(whole, str(shard))
    content = shard.read_bytes()
    shard.write_bytes(content[:-100])
    with pytest.raises(ExportError, match="merged"):
        index_file.merge_shards(trained, [shard], tmp_path / "merged")
    assert trained.ntotal == 0


def test_another_format_of_lists_is_refused_rather_than_guessed_at(
    vectors: np.ndarray, stages: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_file, "_ARRAYS", b"ilax")
    with pytest.raises(ExportError, match="does not write lists as this code expects"):
        build_index("IVF32,Flat", vectors, checkpoints=stages)
