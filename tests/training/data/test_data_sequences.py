import gzip
from collections.abc import Mapping
from pathlib import Path

import pytest

from re4.common.errors import DataError
from re4.training.data import sequences as module
from re4.training.data.layout import SplitName
from re4.training.data.sequences import SplitFiles, read_sequences

TEXT: Mapping[SplitName, str] = {
    "train": "u1 a b c\nu2 b\n",
    "valid": "u3 c a\n",
    "test": "u4 d a b c a\n",
}


def write(folder: Path, **changed: str) -> dict[SplitName, Path]:
    files: dict[SplitName, Path] = {}
    for split, text in (TEXT | changed).items():
        files[split] = folder / f"{split}.txt"
        files[split].write_text(text, encoding="utf-8")
    return files


def read(files: Mapping[SplitName, Path]) -> SplitFiles:
    return read_sequences(files, lambda: None)


def lists(read_files: SplitFiles, split: SplitName) -> list[tuple[object, list[object], int]]:
    sequences = read_files.sequences[split]
    items = read_files.item_ids[sequences.items_E].to_list()
    offsets = sequences.offsets_U1
    return [
        (user, items[offsets[place] : offsets[place + 1]], int(sequences.num_history_U[place]))
        for place, user in enumerate(read_files.users[split])
    ]


def test_lines_become_sequences_in_file_order(tmp_path: Path) -> None:
    got = read(write(tmp_path))
    assert lists(got, "train") == [("u1", ["a", "b", "c"], 3), ("u2", ["b"], 1)]
    assert lists(got, "valid") == [("u3", ["c", "a"], 1)]
    assert lists(got, "test") == [("u4", ["d", "a", "b", "c", "a"], 4)]
    assert got.item_ids.to_list() == ["a", "b", "c", "d"]


def test_gzip_is_detected_by_content_and_tabs_blanks_and_empty_lines_do_not_matter(tmp_path: Path) -> None:
    plain = read(write(tmp_path))
    files = write(tmp_path, train="\n  u1\ta  b\tc \r\n\n\nu2 b")
    files["test"].write_bytes(gzip.compress(files["test"].read_bytes()))
    got = read(files)
    for split in ("train", "valid", "test"):
        assert lists(got, split) == lists(plain, split)


def test_reading_in_blocks_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read(write(tmp_path))
    monkeypatch.setattr(module, "_BLOCK", 2)
    got = read(write(tmp_path))
    for split in ("train", "valid", "test"):
        assert lists(got, split) == lists(whole, split)


def test_ids_are_integers_only_if_all_three_files_agree(tmp_path: Path) -> None:
    numbers = {"train": "1 10 11\n2 10\n", "valid": "3 11 10\n", "test": "4 12 10\n"}
    got = read(write(tmp_path, **numbers))
    assert got.item_ids.to_list() == [10, 11, 12]
    assert got.users["test"].to_list() == [4]
    got = read(write(tmp_path, **numbers | {"test": "4 012 10\n"}))
    assert got.item_ids.to_list() == ["10", "11", "012"]
    assert got.users["test"].to_list() == [4]


def test_held_out_users_with_one_event_are_dropped_and_counted(tmp_path: Path) -> None:
    got = read(write(tmp_path, valid="u3 c a\nu5 b\nu6 a b c\n", test="u7 a\nu8 d b\n"))
    assert lists(got, "valid") == [("u3", ["c", "a"], 1), ("u6", ["a", "b", "c"], 2)]
    assert lists(got, "test") == [("u8", ["d", "b"], 1)]
    assert lists(got, "train") == [("u1", ["a", "b", "c"], 3), ("u2", ["b"], 1)]
    assert got.dropped == {"held_out_users_with_one_event": 2}


@pytest.mark.parametrize(
    ("split", "text", "parts"),
    [
        ("train", "u1 a\n\nu2\n", ["line 3", "'u2' has no items"]),
        ("valid", "", ["is empty"]),
        ("valid", "\n \n", ["no lines"]),
        ("test", "u1 a\n", ["two items or more"]),
        ("train", "u1 a\nu2 b\nu1 c\n", ["'u1'", "more than one line"]),
    ],
)
def test_bad_files_are_named_with_the_line(
    split: SplitName, text: str, parts: list[str], tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        read(write(tmp_path, **{split: text}))
    for part in [f"{split}.txt", *parts]:
        assert part in str(caught.value)


def test_bytes_that_are_no_text_and_half_a_gzip_file_are_refused(tmp_path: Path) -> None:
    files = write(tmp_path)
    files["valid"].write_bytes(b"u1 a b\nu2 \xff\xfe\n")
    with pytest.raises(DataError, match=r"valid\.txt, line 2: not UTF-8"):
        read(files)
    packed = gzip.compress(b"".join(b"u%d a b%d\n" % (user, user * 7919 % 1009) for user in range(1000)))
    flipped = [
        packed[:at] + bytes([packed[at] ^ 255]) + packed[at + 1 :] for at in range(50, len(packed), 100)
    ]
    for damaged in (packed[:-20], *flipped):
        files["valid"].write_bytes(damaged)
        with pytest.raises(DataError, match=r"valid\.txt(, line| cannot be read)"):
            read(files)
    with pytest.raises(DataError, match="does not exist"):
        read(files | {"train": tmp_path / "none"})
    with pytest.raises(DataError, match="is not a file; name one file"):
        read(files | {"train": tmp_path})


def test_a_byte_order_mark_is_no_part_of_an_id(tmp_path: Path) -> None:
    files = write(tmp_path)
    files["train"].write_bytes(b"\xef\xbb\xbf" + files["train"].read_bytes())
    assert read(files).users["train"].to_list() == ["u1", "u2"]
