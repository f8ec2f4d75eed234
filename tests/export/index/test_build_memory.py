"""Memory of a build is bounded: by the estimate before it, by the limit, by the chunks."""

import os
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest

from re4.benchmarks.synthetic.vectors import VectorSpace
from re4.bundle.scoring import exact_search as exact
from re4.bundle.scoring.exact_search import exact_search, exact_thresholds
from re4.common.errors import ExportError, UsageError
from re4.exporting.index import memory_estimate as memory
from re4.exporting.index.build import build_index
from re4.exporting.index.index_names import RECIPES
from re4.exporting.index.memory_estimate import check_memory, estimate_memory
from re4.exporting.storage import mapped_vectors as mapped
from re4.exporting.storage.build_cache import Checkpoints
from re4.exporting.storage.mapped_vectors import chunks, read_rows, release_pages, sha256_of
from re4.settings.sizes import parse_bytes

NUM_ITEMS, DIM = 200_000, 64
MIB = 1 << 20


@pytest.fixture(scope="module")
def vectors_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vectors") / "vectors.npy"
    VectorSpace(num_items=NUM_ITEMS, embedding_dim=DIM).write_items(path)
    return path


def peak_of(vectors_file: Path, factory: str, folder: Path, memory_limit: int) -> int:
    """Bytes that a process of its own held at most while it built the index, beside what it began with."""
    folder.mkdir()
    child = Path(__file__).parent / "build_and_measure.py"
    done = subprocess.run(
        [sys.executable, str(child), str(vectors_file), factory, str(folder), str(memory_limit)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_a_memory_limit_below_the_size_of_the_index_is_kept(vectors_file: Path, tmp_path: Path) -> None:
    """The index is 50 MiB, and so are the vectors: neither is ever in memory as a whole."""
    peak = peak_of(vectors_file, "IVF64,Flat", tmp_path / "stages", 32 * MIB)
    assert (tmp_path / "stages" / "filled.faiss").stat().st_size > 50 * MIB
    assert peak < 32 * MIB


@pytest.mark.parametrize("factory", ["Flat", "IVF64,Flat", "IVF64,PQ64x4fsr"])
def test_without_a_limit_it_is_the_index_and_little_more(
    factory: str, vectors_file: Path, tmp_path: Path
) -> None:
    peak = peak_of(vectors_file, factory, tmp_path / "stages", 0)
    assert peak < (tmp_path / "stages" / "filled.faiss").stat().st_size + 24 * MIB


@pytest.mark.parametrize("name", RECIPES)
def test_the_estimate_is_the_size_of_the_file(name: str, vectors_file: Path, tmp_path: Path) -> None:
    few = np.load(vectors_file, mmap_mode="r")[:20_000]
    factory = RECIPES[name](len(few), DIM)
    base = faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT)
    build_index(factory, few, checkpoints=Checkpoints(tmp_path))
    size = (tmp_path / "filled.faiss").stat().st_size
    assert 0.9 * size < estimate_memory(base, len(few)).index_bytes < 1.1 * size


def test_shards_become_smaller_with_the_limit() -> None:
    base = faiss.index_factory(DIM, "IVF64,Flat", faiss.METRIC_INNER_PRODUCT)
    limits = [None, 4 * memory.GIB, 2 * memory.GIB, memory.WORKING_BYTES + 100 * MIB]
    needs = [estimate_memory(base, 10**8, limit) for limit in limits]
    assert [need.shard_bytes for need in needs] == sorted((need.shard_bytes for need in needs), reverse=True)
    for need, limit in zip(needs, limits, strict=True):
        assert limit is None or need.build_bytes <= limit
    assert needs[0].build_bytes < memory.WORKING_BYTES + 2 * memory.GIB < needs[0].index_bytes


@pytest.mark.parametrize(
    ("name", "index_gib", "build_gib"),
    [("ivf-pq", 3.8, 4.8), ("ivf-sq8", 6.7, 2.0), ("ivf-rabitq", 2.2, 2.0), ("ivf", 24.6, 2.0)],
)
def test_the_plan_for_a_hundred_million_items_states_the_computed_sizes(
    name: str, index_gib: float, build_gib: float
) -> None:
    base = faiss.index_factory(DIM, RECIPES[name](10**8, DIM), faiss.METRIC_INNER_PRODUCT)
    need = estimate_memory(base, 10**8)
    assert need.index_bytes / memory.GIB == pytest.approx(index_gib, abs=0.06)
    assert need.build_bytes / memory.GIB == pytest.approx(build_gib, abs=0.06)


def test_an_index_above_the_limit_is_refused_before_any_work(tmp_path: Path) -> None:
    few = np.eye(100, DIM, dtype=np.float32)
    with pytest.raises(ExportError, match=r"takes 1\.00 GiB, --memory-limit is 0\.98 GiB"):
        build_index("HNSW8,Flat", few, checkpoints=Checkpoints(tmp_path), memory_limit=1000 * MIB)
    assert not list(tmp_path.iterdir())


def test_a_limit_that_is_met_is_no_error() -> None:
    base = faiss.index_factory(DIM, "Flat", faiss.METRIC_INNER_PRODUCT)
    need = estimate_memory(base, 10**6)
    check_memory("Flat", need, 10**6, need.build_bytes)
    check_memory("Flat", need, 10**6, None)
    with pytest.raises(ExportError, match="ivf-sq8"):
        check_memory("Flat", need, 10**6, need.build_bytes - 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8GiB", 8 << 30),
        ("512 MB", 512 << 20),
        ("1.5g", 3 << 29),
        ("2T", 2 << 40),
        ("4096", 4096),
        ("1k", 1024),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, expected: int) -> None:
    assert parse_bytes(text, "--memory-limit") == expected


@pytest.mark.parametrize("text", ["", "much", "-1GiB", "0", "8 GiBs", "1e9", "nan"])
def test_a_text_that_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--memory-limit"):
        parse_bytes(text, "--memory-limit")


def test_chunks_hold_every_row_once_in_order(vectors_file: Path) -> None:
    vectors = np.load(vectors_file, mmap_mode="r")
    starts, parts = zip(
        *((start, piece.copy()) for start, piece in chunks(vectors, 9999, first=5)), strict=True
    )
    np.testing.assert_array_equal(np.concatenate(parts), vectors[5:])
    assert list(starts) == list(range(5, NUM_ITEMS, 9999))
    assert not list(chunks(vectors, 10, first=3, stop=3))


def test_rows_are_gathered_from_mapped_and_other_arrays(
    vectors_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "CHUNK_ROWS", 1000)
    rows = np.unique(np.random.default_rng(0).integers(NUM_ITEMS, size=500))
    whole = np.load(vectors_file)
    for vectors in (np.load(vectors_file, mmap_mode="r"), whole):
        np.testing.assert_array_equal(read_rows(vectors, rows), whole[rows])
    assert sha256_of(np.load(vectors_file, mmap_mode="r")) == sha256_of(whole)
    assert sha256_of(whole[1:]) != sha256_of(whole)


def test_changes_in_a_private_copy_are_not_released(vectors_file: Path) -> None:
    private = np.load(vectors_file, mmap_mode="c")
    private[3, 2] = 17
    release_pages(private)
    release_pages(np.asarray(private)[3:])
    assert private[3, 2] == 17


def test_exact_answers_do_not_depend_on_the_chunks(
    vectors_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = np.load(vectors_file, mmap_mode="r")[:5000]
    interests = VectorSpace(num_items=NUM_ITEMS, embedding_dim=DIM).interests(6, 3)
    scores, rows = exact_search(interests, vectors, 30, sum_in_float64=True, read_chunks=chunks)
    thresholds = exact_thresholds(interests, vectors, 30)
    np.testing.assert_allclose(thresholds, scores[:, -1], rtol=1e-5)
    monkeypatch.setattr(exact, "_MAX_CHUNK_PRODUCTS", 18 * 19)  # fewer items than candidates
    again = exact_search(interests, vectors, 30, sum_in_float64=True, read_chunks=chunks)
    np.testing.assert_array_equal(again[1], rows)
    np.testing.assert_allclose(exact_thresholds(interests, vectors, 30), thresholds, rtol=1e-5)
