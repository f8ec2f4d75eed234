"""Item ids: known ids are found, unknown ids are -1, invalid ids are refused."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from re4.bundle.ids import string_ids
from re4.bundle.ids.id_map import ItemIds, write_item_ids
from re4.bundle.ids.string_keys import MAX_ID_BYTES, key_of, keys_of_words, words_of
from re4.bundle.layout import ID_KEYS, ID_OFFSETS, ID_ROWS, ID_TEXT, ID_VALUES
from re4.common.errors import BundleDamagedError, BundleError

valid_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
KEYS = ["0x0", "0x7c942294ea14668e", "0xec6674979903908f", "0xe7b7bf9b3fa0a15f"]

int64 = st.integers(-(2**63), 2**63 - 1)


def reopened(ids: Sequence[Any] | NDArray[Any]) -> ItemIds:
    """Write ids, map them, and remove the files: a mapping outlives its name."""
    with tempfile.TemporaryDirectory() as folder:
        kind = write_item_ids(Path(folder), ids)
        return ItemIds.open(Path(folder), kind, len(ids))


def string_keys(ids: Sequence[bytes]) -> NDArray[np.uint64]:
    return keys_of_words(*words_of(ids))


def check_round_trip(ids: Sequence[Any], unknown: Sequence[Any]) -> None:
    mapped = reopened(ids)
    assert mapped.ids(np.arange(len(ids))) == list(ids)
    expected = {id_: row for row, id_ in enumerate(ids)}
    asked = [*unknown, *ids, *ids[::-1], *unknown]
    rows = mapped.rows(asked)
    assert rows.dtype == np.int64
    assert rows.tolist() == [expected.get(id_, -1) for id_ in asked]


@given(st.lists(valid_text, min_size=1, unique=True), st.lists(st.text(max_size=40)))
def test_strings_round_trip(ids: list[str], unknown: list[str]) -> None:
    check_round_trip(ids, unknown)


@pytest.mark.parametrize("is_compiled", [True, False])
@given(st.lists(valid_text, min_size=1, unique=True), st.lists(st.text(max_size=40)))
def test_ids_of_a_column_are_found_as_single_ones(
    is_compiled: bool, ids: list[str], unknown: list[str]
) -> None:
    mapped = reopened(ids)
    asked = [*unknown, "", "x" * (MAX_ID_BYTES + 1), *ids, *ids[::-1], *unknown]
    encoded = [id_.encode() for id_ in asked]
    ends = np.cumsum([len(text) for text in encoded])
    with pytest.MonkeyPatch.context() as patch:
        if not is_compiled:
            patch.setattr(string_ids, "_open_compiled", lambda: None)
        found = mapped.rows_of_texts(b"".join(encoded), ends)
    assert found.tolist() == mapped.rows(asked).tolist()


@given(st.lists(int64, min_size=1, unique=True), st.lists(st.integers()))
def test_integers_round_trip(ids: list[int], unknown: list[int]) -> None:
    check_round_trip(ids, unknown)


@given(st.lists(valid_text, min_size=1, unique=True), st.lists(st.text(max_size=40)), st.integers(1, 3))
def test_colliding_keys_are_told_apart(ids: list[str], unknown: list[str], num_keys: int) -> None:
    def few_keys(words: NDArray[np.uint64], lengths: NDArray[np.uint64]) -> NDArray[np.uint64]:
        return keys_of_words(words, lengths) % np.uint64(num_keys)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(string_ids, "keys_of_words", few_keys)
        patch.setattr(string_ids, "key_of", lambda id_: key_of(id_) % num_keys)
        check_round_trip(ids, unknown)
        with pytest.raises(BundleError, match="there once"):
            reopened([*ids, ids[0]])


@pytest.mark.parametrize("num_keys", [1, 2, 2**64 - 1])
def test_keys_at_the_end_of_the_table(monkeypatch: pytest.MonkeyPatch, num_keys: int) -> None:
    highest = np.uint64(2**64 - 1)
    monkeypatch.setattr(
        string_ids,
        "keys_of_words",
        lambda *laid_out: highest - keys_of_words(*laid_out) % np.uint64(num_keys),
    )
    monkeypatch.setattr(string_ids, "key_of", lambda id_: int(highest) - key_of(id_) % num_keys)
    check_round_trip(["a", "b", "c"], ["d", "", "e"])
    check_round_trip(["a"], [""])


@given(st.lists(valid_text, min_size=1, max_size=40, unique=True), st.lists(st.text(max_size=20)), st.data())
def test_few_ids_and_many_are_found_alike(ids: list[str], unknown: list[str], data: st.DataObject) -> None:
    mapped = reopened(ids)
    expected = {id_: row for row, id_ in enumerate(ids)}
    for _ in range(4):
        asked = data.draw(st.lists(st.sampled_from([*ids, *unknown]), max_size=12))
        assert mapped.rows(asked).tolist() == [expected.get(id_, -1) for id_ in asked]


def test_many_ids_beyond_one_piece() -> None:
    ids = [f"item-{number}" for number in range(2 * string_ids._CHUNK_IDS + 7)]
    check_round_trip(ids, ["item-", "item--1", f"item-{len(ids)}"])


def test_long_ids() -> None:
    ids = ["x" * length for length in (1, 7, 8, 9, 1023, 1024)] + ["é" * 512]
    check_round_trip(ids, ["x" * 1025, "x" * 10_000_000, "é" * 513])


def test_ids_that_differ_by_trailing_nul() -> None:
    check_round_trip(["a", "a\0", "a\0\0", "\0", "\0\0"], ["a\0\0\0", "", "\0\0\0"])


def test_a_lone_surrogate_is_unknown() -> None:
    assert reopened(["a", "?"]).rows(["\ud800", "a"]).tolist() == [-1, 0]


def test_no_ids_asked() -> None:
    for ids in (["a"], [1]):
        mapped = reopened(ids)
        assert mapped.rows([]).tolist() == []
        assert mapped.ids(np.array([], np.int64)) == []


def test_numpy_integers_are_ids() -> None:
    assert reopened(np.array([5, -3], np.int32)).ids(np.array([1, 0])) == [-3, 5]
    assert reopened(np.array([2**63 - 1, 0], np.uint64)).rows([2**63 - 1]).tolist() == [0]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "0 given"),
        (["a", ""], "row 1: 0 UTF-8 bytes"),
        (["a", "é" * 513], "row 1: 1026 UTF-8 bytes, 1 to 1024"),
        (["a", "b\ud800"], r"row 1: .*surrogate"),
        (["a", 1], "row 1: 1 is not a string"),
        (["a", "b", "a"], "item id 'a': in row 0 and in row 2"),
        ([1, "a"], "row 1: 'a' is not an integer"),
        ([1, 2**63], "row 1: 9223372036854775808 is not an integer"),
        ([-(2**63) - 1], "row 0"),
        ([1, None], "row 1: None"),
        ([1, 2.0], r"row 1: 2\.0"),
        ([1, True], "row 1: True"),
        (np.array([1.0]), "float64"),
        (np.array([True]), "bool"),
        (np.array([[1]]), r"\(1, 1\)"),
        (np.array([1, 2**63], np.uint64), "row 1: 9223372036854775808"),
        ([7, -7, 7], "item id 7: in row 0 and in row 2"),
    ],
)
def test_what_cannot_be_a_catalogue_is_refused(tmp_path: Path, ids: Sequence[Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        write_item_ids(tmp_path, ids)


@pytest.mark.parametrize("ids", [["a", "b"], [10, 20]])
@pytest.mark.parametrize("rows", [[-1], [0, -1], [2], [0, 2**40]])
def test_a_missing_result_is_never_the_last_item(ids: list[Any], rows: list[int]) -> None:
    with pytest.raises(BundleError, match="0 to 1 are allowed"):
        reopened(ids).ids(np.array(rows))


def test_kind_is_known() -> None:
    assert reopened(["1"]).kind == "string"
    assert reopened([1]).kind == "int"


@given(st.lists(st.binary(max_size=MAX_ID_BYTES), min_size=2))
def test_a_key_does_not_depend_on_its_neighbours(ids: list[bytes]) -> None:
    alone = [int(string_keys([id_])[0]) for id_ in ids]
    assert string_keys(ids).tolist() == alone


@given(st.binary(max_size=MAX_ID_BYTES))
def test_the_key_of_one_id_is_that_among_many(id_: bytes) -> None:
    assert key_of(id_) == int(string_keys([id_])[0])


def test_keys_are_the_format() -> None:
    """Published versions hold these: if this fails, the schema version must change."""
    assert [hex(key) for key in string_keys([b"", b"a", b"B00000JBLH", "né".encode() * 9]).tolist()] == KEYS


def test_keys_of_a_million_neighbouring_ids_are_distinct() -> None:
    keys = np.concatenate(
        [string_keys([b"item:%d:x" % n for n in range(s, s + 10_000)]) for s in range(0, 10**6, 10_000)]
    )
    assert len(np.unique(keys)) == len(keys)
    # Each bit is set for half of them, give or take six standard deviations.
    bits = np.unpackbits(keys.view(np.uint8)).reshape(len(keys), 64).mean(axis=0)
    assert np.abs(bits - 0.5).max() < 6 * 0.5 / 1000


@pytest.mark.parametrize(
    ("ids", "name", "array"),
    [
        (["a", "b"], ID_KEYS, np.zeros(3, np.uint64)),
        (["a", "b"], ID_OFFSETS, np.zeros(3, np.int64)),
        (["a", "b"], ID_OFFSETS, np.array([0, 1, 99], np.uint64)),
        ([1, 2], ID_VALUES, np.zeros((2, 1), np.int64)),
        ([1, 2], ID_VALUES, np.array([1, None], object)),
    ],
)
def test_arrays_of_another_shape_are_refused(
    tmp_path: Path, ids: list[Any], name: str, array: NDArray[Any]
) -> None:
    kind = write_item_ids(tmp_path, ids)
    np.save(tmp_path / name, array)
    with pytest.raises(BundleDamagedError, match=r"item_ids\."):
        ItemIds.open(tmp_path, kind, len(ids))


@pytest.mark.parametrize(
    ("ids", "name", "array", "message"),
    [
        (["a", "b", "cé"], ID_OFFSETS, np.array([1, 2, 3, 5], "<u8"), "first text begins at 1"),
        (["a", "b", "cé"], ID_OFFSETS, np.array([0, 2, 1, 5], "<u8"), "texts of -1 to 4 bytes"),
        (["a", "b", "cé"], ID_OFFSETS, np.array([0, 2**63, 2, 5], "<u8"), "1 to 1024 are allowed"),
        (["a", "b", "cé"], ID_OFFSETS, np.array([0, 1, 4, 5], "<u8"), "number 0 on are not all UTF-8"),
        (["a", "b", "cé"], ID_ROWS, np.array([0, 1, 3], "<i4"), "not one row for each key"),
        (["a", "b", "cé"], ID_ROWS, np.array([0, 1, -1], "<i4"), "not one row for each key"),
        (["a", "b", "cé"], ID_ROWS, np.array([0, 1, 1], "<i4"), "not one row for each key"),
        (["a", "b", "cé"], ID_KEYS, np.array([2, 1, 3], "<u8"), "keys ascending"),
        ([7, 5], ID_ROWS, np.array([0, 2], "<i4"), "not the row of each id"),
        ([7, 5], ID_ROWS, np.array([0, 1], "<i4"), "not the row of each id"),
        ([7, 5], ID_KEYS, np.array([7, 5], "<i8"), "not the row of each id"),
        ([7, 5], ID_VALUES, np.array([5, 5], "<i8"), "not the row of each id"),
    ],
)
def test_files_that_contradict_each_other_are_noticed(
    tmp_path: Path, ids: list[Any], name: str, array: NDArray[Any], message: str
) -> None:
    kind = write_item_ids(tmp_path, ids)
    ItemIds.open(tmp_path, kind, len(ids)).check()
    np.save(tmp_path / name, array)
    with pytest.raises(BundleDamagedError, match=message):
        ItemIds.open(tmp_path, kind, len(ids)).check()


@pytest.mark.parametrize("content", [b"", b"more", b"\x93NUMPY"])
def test_files_that_do_not_fit_are_refused(tmp_path: Path, content: bytes) -> None:
    kind = write_item_ids(tmp_path, ["a", "b"])
    (tmp_path / ID_TEXT).write_bytes(content)
    with pytest.raises(BundleDamagedError, match=ID_TEXT):
        ItemIds.open(tmp_path, kind, 2)
    (tmp_path / ID_KEYS).write_bytes(content)
    with pytest.raises(BundleDamagedError, match=ID_KEYS):
        ItemIds.open(tmp_path, kind, 2)
