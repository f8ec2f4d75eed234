"""Titles in a version: written, read, cut, checked."""

from pathlib import Path

import numpy as np
import pytest

from re4.bundle.layout import TITLES, TITLES_OFFSETS
from re4.bundle.titles import CHUNK_TITLES, MAX_TITLE_BYTES, Titles, write_titles
from re4.common.errors import BundleDamagedError


def test_titles_are_read_as_they_were_written(tmp_path: Path) -> None:
    titles = [f"Film {row} é" if row % 3 else None for row in range(2 * CHUNK_TITLES + 5)]
    write_titles(tmp_path, titles)
    read = Titles(tmp_path, len(titles))
    read.check()
    assert [read.title(row) for row in range(len(titles))] == [title or "" for title in titles]
    assert "".join(text for _, text in read.chunks()) == "".join(title or "" for title in titles)


def test_spaces_are_joined_and_long_titles_cut_between_characters(tmp_path: Path) -> None:
    write_titles(tmp_path, ["  two\n\twords ", "a" + "é" * MAX_TITLE_BYTES, "lone \ud800"])
    read = Titles(tmp_path, 3)
    read.check()
    assert read.title(0) == "two words"
    assert read.title(1) == "a" + "é" * ((MAX_TITLE_BYTES - 1) // 2)
    assert read.title(2) == "lone ?"


def test_a_catalogue_without_titles_has_no_files(tmp_path: Path) -> None:
    write_titles(tmp_path, [None, "", " "])
    assert Titles.open(tmp_path, 3) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["descend", "split", "bytes"])
def test_damage_is_found(tmp_path: Path, damage: str) -> None:
    write_titles(tmp_path, ["éa", "ba"])
    offsets = np.load(tmp_path / TITLES_OFFSETS)
    if damage == "descend":
        offsets = np.array([0, 6, 5], "<u8")
    elif damage == "split":
        offsets = np.array([0, 1, 5], "<u8")
    else:
        (tmp_path / TITLES).write_bytes(b"\xff\xffaba")
    np.save(tmp_path / TITLES_OFFSETS, offsets)
    with pytest.raises(BundleDamagedError):
        Titles(tmp_path, 2).check()
