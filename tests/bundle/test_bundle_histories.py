"""Histories of a version are read back as they were written; damaged ones are refused."""

from pathlib import Path

import numpy as np
import pytest

from re4.bundle.histories import read_histories, write_histories
from re4.common.errors import BundleDamagedError

ROWS = np.array([[3, 1, 0], [7, 0, 0], [2**31 - 1, 5, 6]])
LENGTHS = np.array([2, 1, 3])


def test_they_come_back(tmp_path: Path) -> None:
    write_histories(tmp_path / "h.npz", ROWS, LENGTHS)
    rows, lengths = read_histories(tmp_path / "h.npz")
    assert (rows.dtype, lengths.dtype) == (np.int64, np.int64)
    np.testing.assert_array_equal(rows, ROWS)
    np.testing.assert_array_equal(lengths, LENGTHS)


def test_what_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    write_histories(tmp_path / "h.npz", ROWS, LENGTHS[:2])
    with pytest.raises(BundleDamagedError, match="lengths_P is \\(2,\\), but P is 3 elsewhere"):
        read_histories(tmp_path / "h.npz")
    (tmp_path / "h.npz").write_bytes(b"no archive")
    with pytest.raises(BundleDamagedError, match="not an archive"):
        read_histories(tmp_path / "h.npz")
