"""Vectors made elsewhere: reading, and refusals that name the first offending rows."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from re4.common.errors import DataError
from re4.exporting.sources import given_vectors
from re4.exporting.sources.given_vectors import read_npy, read_parquet
from re4.exporting.storage.mapped_vectors import release_pages

VECTORS = np.arange(12, dtype=np.float32).reshape(4, 3)
IDS = np.array(["a", "b", "c", "é"])


def npy(folder: Path, vectors: Any, ids: Any) -> tuple[Path, Path]:
    for name, array in (("v.npy", vectors), ("i.npy", ids)):
        if isinstance(array, bytes):
            (folder / name).write_bytes(array)
        elif array is not None:
            np.save(folder / name, array, allow_pickle=True)
    return folder / "v.npy", folder / "i.npy"


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2"])
@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (IDS, ["a", "b", "c", "é"]),
        (np.char.encode(IDS, "utf-8"), ["a", "b", "c", "é"]),
        (np.array([7, 5, -3, 2**62]), [7, 5, -3, 2**62]),
        (np.array([1, 2, 3, 4], np.uint8), [1, 2, 3, 4]),
    ],
)
def test_types_that_are_read(dtype: str, ids: Any, expected: list[Any], tmp_path: Path) -> None:
    given = read_npy(*npy(tmp_path, np.asfortranarray(VECTORS.astype(dtype)), ids))
    np.testing.assert_array_equal(given.vectors_ND, VECTORS)
    assert (given.vectors_ND.dtype, given.vectors_ND.flags.c_contiguous) == (np.float32, True)
    assert given.item_ids[:] == expected


def test_a_ready_file_stays_mapped(tmp_path: Path) -> None:
    given = read_npy(*npy(tmp_path, VECTORS, IDS))
    assert not given.vectors_ND.flags.owndata


@pytest.mark.parametrize(
    ("vectors", "ids", "message"),
    [
        (None, IDS, "v.npy is not a file"),
        (b"nonsense", IDS, "not an array that can be mapped"),
        (np.array([{}], object), IDS, "Python objects .*astype"),
        (VECTORS[0], IDS, r"float32 \[3\]; vectors are \[items, width\]"),
        (VECTORS.astype(int), IDS, "int64"),
        (VECTORS[:3], IDS, "3 vectors for 4 ids"),
        (VECTORS[:0], IDS[:0], "nothing to retrieve"),
        (VECTORS, VECTORS, "ids are one row of integers or text"),
        (VECTORS, IDS[None], "ids are one row"),
        (VECTORS, np.array([1.0, 2, 3, 4]), "float64"),
        (VECTORS, np.array([1, 2, 3, 2**63], np.uint64), "row 3: 9223372036854775808"),
        (VECTORS, np.array([b"a", b"b", b"c", b"\xff"]), "not UTF-8"),
        (VECTORS, np.array(["a", "b", "a", "b"]), "rows 2, 3: id 'a' is there before, in row 0"),
        (VECTORS, np.array(["a", "", "c", ""]), "rows 1, 3: no id"),
    ],
)
def test_refusals(vectors: Any, ids: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_npy(*npy(tmp_path, vectors, ids))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named(wrong: float, tmp_path: Path) -> None:
    vectors = np.ones((9, 3), np.float32)
    vectors[[1, 3, 5, 7, 8], 2] = wrong
    with pytest.raises(DataError, match="rows 1, 3, 5 and 2 more: the vector of 1 is not finite"):
        read_npy(*npy(tmp_path, vectors, np.arange(9)))


def parquet(folder: Path, **columns: Any) -> Path:
    pl.DataFrame(columns).write_parquet(folder / "both.parquet")
    return folder / "both.parquet"


@pytest.mark.parametrize("kind", [pl.List(pl.Float32), pl.List(pl.Float64), pl.Array(pl.Float32, 3)])
def test_a_parquet_file(kind: Any, tmp_path: Path) -> None:
    file = parquet(tmp_path, item_id=IDS.tolist(), vector=pl.Series(VECTORS.tolist(), dtype=kind))
    given = read_parquet(file, "item_id", "vector", tmp_path)
    np.testing.assert_array_equal(given.vectors_ND, VECTORS)
    assert given.item_ids[:] == IDS.tolist()


def test_a_parquet_file_is_read_in_chunks_into_a_file_without_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(given_vectors, "_PARQUET_CHUNK_ROWS", 7)
    vectors = np.random.default_rng(0).standard_normal((100, 3)).astype(np.float32)
    file = parquet(tmp_path, item_id=np.arange(100), vector=pl.Series(vectors.tolist()))
    (tmp_path / "scratch").mkdir()
    given = read_parquet(file, "item_id", "vector", tmp_path / "scratch")
    np.testing.assert_array_equal(given.vectors_ND, vectors)
    assert isinstance(given.vectors_ND, np.memmap)
    release_pages(given.vectors_ND)
    np.testing.assert_array_equal(given.vectors_ND, vectors)
    assert sum(kept.stat().st_size for kept in (tmp_path / "scratch").iterdir()) < vectors.nbytes, "only ids"
    vectors_with_gap = pl.Series([[1.0], [2.0]] * 5 + [[None]])
    with pytest.raises(DataError, match="row 10: a vector with a missing"):
        read_parquet(
            parquet(tmp_path, item_id=np.arange(11), vector=vectors_with_gap), "item_id", "vector", tmp_path
        )


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["a"], "vector": [[1.0]]}, "no column 'item_id'.*--id-column"),
        ({"item_id": ["a"], "v": [[1.0]]}, "no column 'vector'.*--vector-column"),
        ({"item_id": ["a"], "vector": [1.0]}, "vectors are lists of numbers"),
        ({"item_id": ["a"], "vector": [["x"]]}, "vectors are lists of numbers"),
        ({"item_id": [1.5], "vector": [[1.0]]}, "ids must be integers or strings"),
        ({"item_id": ["a", "b", "c"], "vector": [[1.0, 2], [3.0, 4], [5.0]]}, "row 2: 1 numbers, most"),
        ({"item_id": ["a", "b", "c"], "vector": [[1.0, 2], None, [5.0, 6]]}, "row 1: 0 numbers"),
        ({"item_id": ["a", "b"], "vector": [[1.0, 2], [None, 4.0]]}, "row 1: a vector with a missing"),
        ({"item_id": ["a", None], "vector": [[1.0], [2.0]]}, "row 1: no id"),
        ({"item_id": ["a", "a"], "vector": [[1.0], [2.0]]}, "row 1: id 'a' is there before"),
        ({"item_id": ["a", "b"], "vector": [[1.0], [float("nan")]]}, "row 1: the vector of 'b'"),
    ],
)
def test_a_parquet_file_that_is_refused(columns: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_parquet(parquet(tmp_path, **columns), "item_id", "vector", tmp_path)
