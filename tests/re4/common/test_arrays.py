"""Array files made to hurt are refused before an array is made."""

import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from re4.common.arrays import MAX_ARCHIVE_BYTES, map_array, read_arrays


def npy(shape: str, *, descr: str = "'<f4'", data: bytes = bytes(16)) -> bytes:
    """Return an .npy file with any text in its header."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + data


HOSTILE = {
    "larger than its file": npy("(805306368,)"),
    "huge number": npy(f"({1 << 70},)"),
    "overflowing product": npy(f"({1 << 32}, {1 << 32}, 4)"),
    "negative": npy("(-1,)"),
    "deep nesting": npy("-" * 8000 + "1"),
    "deep sum": npy("1" + "+1" * 4000),
    "many digits": npy("9" * 8000),
    "pickle": npy("(1,)", descr="'|O'", data=pickle.dumps([1])),
    "no header": b"text",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_hostile_header(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError, match="not an array"):
        map_array(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", content)
    with pytest.raises(ValueError, match="not an archive"):
        read_arrays(tmp_path / "a.npz", ["a"])


def test_arrays_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.arange(3), b=np.ones((2, 0)))
    read = read_arrays(tmp_path / "a.npz", ["a", "b"])
    np.testing.assert_array_equal(read["a"], np.arange(3))
    assert read["b"].shape == (2, 0)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_archive(tmp_path: Path, compression: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", compression) as archive:
        archive.writestr("a.npy", npy("(1048576,)", data=bytes(4 << 20)))
    with pytest.raises(ValueError, match="compressed"):
        read_arrays(tmp_path / "a.npz", ["a"])


@pytest.mark.parametrize("num_members", [2, 3000])
def test_more_members_than_expected(tmp_path: Path, num_members: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for place in range(num_members):
            archive.writestr(f"{place}.npy", npy("(4,)"))
    with pytest.raises(ValueError, match=f"{num_members} entries, expected 1"):
        read_arrays(tmp_path / "a.npz", ["a"])


def test_another_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", b=np.zeros(4))
    with pytest.raises(ValueError, match=r"holds \['b.npy'\], expected \['a'\]"):
        read_arrays(tmp_path / "a.npz", ["a"])


def test_members_that_overlap(tmp_path: Path) -> None:
    """Two entries of the directory lead to the same 4 MiB."""
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", npy("(1048576,)", data=bytes(4 << 20)))
    content = path.read_bytes()
    start = content.rindex(b"PK\1\2")
    entry, end = content[start:-22], content[-22:]
    two = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 2, 2, 2 * len(entry), start, 0)
    assert len(two) == len(end)
    path.write_bytes(content[:start] + entry + entry + two)
    with pytest.raises(ValueError, match="holds"):
        read_arrays(path, ["a", "b"])


def test_a_huge_archive_is_refused_unread(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.zeros(4))
    os.truncate(tmp_path / "a.npz", MAX_ARCHIVE_BYTES + 1)
    with pytest.raises(ValueError, match="an archive has at most"):
        read_arrays(tmp_path / "a.npz", ["a"])


def test_a_directory_of_its_own_count_is_not_believed(tmp_path: Path) -> None:
    """The end record states one entry; a ZIP64 record, which would be read instead, states another number."""
    np.savez(tmp_path / "a.npz", a=np.zeros(4))
    content = (tmp_path / "a.npz").read_bytes()
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 9, 9, 9, 9)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, len(content) - 22, 1)
    (tmp_path / "a.npz").write_bytes(content[:-22] + record + locator + content[-22:])
    with pytest.raises(ValueError, match="does not end as one"):
        read_arrays(tmp_path / "a.npz", ["a"])


def test_a_missing_file_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_arrays(tmp_path / "a.npz", ["a"])
