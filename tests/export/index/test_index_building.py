"""Every index that can be built finds the items of brute force, with true scores; others are refused."""

from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pytest

from re4.benchmarks.synthetic.vectors import VectorSpace
from re4.common.errors import ExportError, UsageError
from re4.exporting.index import build as building
from re4.exporting.index.build import build_index, check_factory
from re4.exporting.index.built_index import merge_results
from re4.exporting.index.index_names import RECIPES, num_lists
from re4.exporting.storage import mapped_vectors as mapped

NUM_ITEMS, DIM, NUM_RESULTS = 3000, 16, 20
FACTORIES = {name: recipe(NUM_ITEMS, DIM) for name, recipe in RECIPES.items()} | {
    "own PQ": "IVF32,PQ16x4",
    "own refinement": "IVF32,SQ4,RFlat",
    "graph over centroids": "IVF64_HNSW16,PQ8x4fs",
    "fast-scan RaBitQ": "IVF32,RaBitQfs",
    "short name": "HNSW24",
}


@pytest.fixture(scope="module")
def vectors(mapped_items: Callable[[int, int], np.ndarray]) -> np.ndarray:
    return mapped_items(NUM_ITEMS, DIM)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return VectorSpace(num_items=NUM_ITEMS, embedding_dim=DIM).interests(40, 1)[:, 0]


@pytest.mark.parametrize("name", FACTORIES)
def test_every_kind_finds_the_items_of_brute_force(
    name: str, vectors: np.ndarray, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "CHUNK_ROWS", 700)
    built = build_index(FACTORIES[name], vectors)
    assert built.index.ntotal == NUM_ITEMS
    slowest = built.ladders(NUM_RESULTS)[-1][-1]
    interests = queries[:, None, :]
    rows = merge_results(
        built.search(slowest, interests, NUM_RESULTS), slowest, interests, vectors, NUM_RESULTS
    )
    exact = queries @ vectors.T
    wanted = np.argsort(-exact, axis=1)[:, :NUM_RESULTS]
    recall = np.mean([len(set(a) & set(b)) for a, b in zip(rows.tolist(), wanted.tolist(), strict=True)])
    assert recall >= 0.99 * NUM_RESULTS
    assert (np.diff(np.take_along_axis(exact, rows, axis=1), axis=1) <= 0).all()


@pytest.mark.parametrize("name", FACTORIES)
def test_searching_changes_nothing_in_the_index(name: str, vectors: np.ndarray, queries: np.ndarray) -> None:
    """The cheapest setting answers the same before and after the slowest one was used."""
    built = build_index(FACTORIES[name], vectors)
    cheap, slow = (built.family.parameters(built.ladders(5)[end][end]) for end in (0, -1))
    before = built.index.search(queries, 5, params=cheap)[1]
    built.index.search(queries, 5, params=slow)
    np.testing.assert_array_equal(built.index.search(queries, 5, params=cheap)[1], before)


@pytest.mark.parametrize("name", ["hnsw", "hnsw-sq8", "ivf", "ivf-pq", "ivf-rabitq"])
def test_settings_differ_in_recall(name: str, vectors: np.ndarray, queries: np.ndarray) -> None:
    """Recall rises along a ladder: the parameters reach the index, also through a refinement."""
    built = build_index(FACTORIES[name], vectors)
    best = (queries @ vectors.T).argmax(axis=1)

    def found(settings: dict) -> float:
        rows = built.index.search(queries, 1, params=built.family.parameters(settings))[1][:, 0]
        return float((rows == best).mean())

    ladder = built.ladders(1)[0]
    assert found(ladder[0]) < found(ladder[-1])


def test_the_same_vectors_give_the_same_index(
    vectors: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "_MIN_TRAINING", 500)
    for name in ("first", "second"):
        faiss.write_index(build_index("IVF16,PQ8x4fs", vectors).index, str(tmp_path / name))
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("IVF16,PQ5x4fs", "FAISS cannot make an index of width 16"),
        ("OPQ8,IVF16,PQ8", "IndexPreTransform, which no server loads"),
        ("PQ8", "IndexPQ, which no server loads; choose a factory string that makes one of IndexFlat"),
        ("HNSW16_PQ8", "IndexHNSWPQ"),
        ("IDMap,Flat", "IndexIDMap"),
        ("LSH", "FAISS cannot make|which no server loads"),
        ("Flat,RFlat", "nothing to refine"),
    ],
)
def test_an_index_that_no_server_loads_is_refused_before_any_work(factory: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_factory(factory, DIM)


def test_too_few_items_are_an_error_that_says_so() -> None:
    few = np.eye(10, 16, dtype=np.float32)
    with pytest.raises(ExportError, match="11 lists for 10 items"):
        build_index("IVF11,Flat", few)
    with pytest.raises(ExportError, match="could not build it over 10 items"):
        build_index("IVF2,PQ8x4fs", few)


def test_training_is_quiet(vectors: np.ndarray, capfd: pytest.CaptureFixture[str]) -> None:
    build_index("IVF200,PQ8x4fs", vectors)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("num_items", "expected"),
    [(1, 1), (38, 1), (100, 2), (3000, 64), (10**5, 1024), (10**6, 2048), (10**8, 32768)],
)
def test_lists_grow_with_the_root_of_the_catalogue(num_items: int, expected: int) -> None:
    assert num_lists(num_items) == expected
