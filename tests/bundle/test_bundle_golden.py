"""Golden queries are written and read back; arrays of another type or shape are refused."""

import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from re4.bundle.golden import GoldenQueries
from re4.common.errors import BundleDamagedError


def arrays() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "rows_QL": rng.integers(0, 9, (2, 3)),
        "lengths_Q": np.array([3, 1]),
        "interests_QKD": rng.standard_normal((2, 4, 5)).astype(np.float32),
        "candidate_rows_QM": rng.integers(0, 9, (2, 6)),
        "scores_QM": rng.standard_normal((2, 6)).astype(np.float32),
    }


def test_round_trip(tmp_path: Path) -> None:
    GoldenQueries(**arrays()).write(tmp_path / "golden.npz")
    read = GoldenQueries.read(tmp_path / "golden.npz")
    for name, array in arrays().items():
        np.testing.assert_array_equal(getattr(read, name), array)
        assert getattr(read, name).dtype == array.dtype


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths_Q": np.array([3, 1, 1])}, "Q is 2 elsewhere"),
        ({"scores_QM": np.zeros((2, 7), np.float32)}, "M is 6 elsewhere"),
        ({"scores_QM": np.zeros((2, 6), np.float64)}, "expected <f4 QM"),
        ({"rows_QL": np.zeros((2, 0), np.int64)}, "rows_QL"),
        ({"rows_QL": np.array([[None, None, None]] * 2)}, "not an archive of arrays"),
        ({"more": np.zeros(1)}, "6 entries, expected 5"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "golden.npz", **{**arrays(), **change})
    with pytest.raises(BundleDamagedError, match=message):
        GoldenQueries.read(tmp_path / "golden.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"text"])
def test_not_an_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "golden.npz").write_bytes(content)
    with pytest.raises(BundleDamagedError, match="not an archive"):
        GoldenQueries.read(tmp_path / "golden.npz")


def test_whichever_byte_changes_it_is_read_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "golden.npz"
    GoldenQueries(**arrays()).write(file)
    whole = file.read_bytes()
    for at, byte in enumerate(whole):
        file.write_bytes(whole[:at] + bytes([byte ^ (1, 8, 32)[at % 3]]) + whole[at + 1 :])
        with suppress(BundleDamagedError):
            GoldenQueries.read(file)


def test_one_array_in_place_of_the_archive(tmp_path: Path) -> None:
    with (tmp_path / "golden.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(BundleDamagedError, match="not an archive"):
        GoldenQueries.read(tmp_path / "golden.npz")


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(BundleDamagedError, match=r"golden\.npz"):
        GoldenQueries.read(tmp_path / "golden.npz")


def test_a_small_archive_of_huge_arrays_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    huge = {**arrays(), "interests_QKD": np.zeros((2, 4, 4 << 20), np.float32)}
    np.savez_compressed(tmp_path / "golden.npz", **huge)
    assert (tmp_path / "golden.npz").stat().st_size < 200_000
    tracemalloc.start()
    try:
        with pytest.raises(BundleDamagedError, match=r"rows_QL\.npy is compressed"):
            GoldenQueries.read(tmp_path / "golden.npz")
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
