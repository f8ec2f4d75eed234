import json
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from re4.common.errors import DataError
from re4.common.file_lock import staging_folder
from re4.training.data import writing
from re4.training.data.dataset import Dataset, Sequences
from re4.training.data.layout import SPLITS, SplitName
from re4.training.data.writing import write_dataset


def sequences(users: list[list[int]], num_history: list[int] | None = None) -> Sequences:
    lengths = [len(user) for user in users]
    return Sequences(
        items_E=np.array([item for user in users for item in user], dtype=np.int32),
        offsets_U1=np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))),
        num_history_U=np.array(lengths if num_history is None else num_history, dtype=np.int32),
    )


def splits() -> dict[SplitName, Sequences]:
    return {
        "train": sequences([[0, 1, 2], [0, 1], [0]]),
        "valid": sequences([[2, 1, 0]], [2]),
        "test": sequences([[3, 0], [1, 2, 3, 0]], [1, 3]),
    }


def write(path: Path, **changes: object) -> Dataset:
    values: dict[str, object] = {
        "items": pl.DataFrame({"item_id": ["a", "b", "c", "d"], "title": ["A", None, "C", "D"]}),
        "sequences": splits(),
        "users": {
            "train": pl.Series([10, 11, 12]),
            "valid": pl.Series([13]),
            "test": pl.Series([14, 15]),
        },
        "prepared": {"format": "events"},
        "dropped": {"duplicate_events": 2},
    }
    return write_dataset(path, **(values | changes))


def test_what_was_written_is_opened_as_it_was(tmp_path: Path) -> None:
    write(tmp_path / "shop")
    dataset = Dataset.open(tmp_path / "shop")
    for split, given_sequences in splits().items():
        opened: Sequences = getattr(dataset, split)
        np.testing.assert_array_equal(opened.items_E, given_sequences.items_E)
        np.testing.assert_array_equal(opened.offsets_U1, given_sequences.offsets_U1)
        np.testing.assert_array_equal(opened.num_history_U, given_sequences.num_history_U)
    assert dataset.items()["item_id"].to_list() == ["a", "b", "c", "d"]
    assert dataset.items()["title"].to_list() == ["A", None, "C", "D"]
    assert dataset.users("test").to_list() == [14, 15]
    assert dataset.item_counts().tolist() == [3, 2, 1, 0]
    assert dataset.num_items == 4
    assert (dataset.info.name, dataset.info.item_id_kind, dataset.info.user_id_kind) == (
        "shop",
        "string",
        "int",
    )
    assert dataset.info.splits["test"].num_targets == 2
    assert dataset.info.dropped == {"duplicate_events": 2}


def test_arrays_are_read_only_memory_maps(tmp_path: Path) -> None:
    dataset = write(tmp_path / "shop")
    assert isinstance(dataset.train.items_E.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        dataset.train.items_E[0] = 1


def test_a_moved_data_set_opens(tmp_path: Path) -> None:
    write(tmp_path / "shop")
    (tmp_path / "shop").rename(tmp_path / "elsewhere")
    assert Dataset.open(tmp_path / "elsewhere").num_items == 4


@given(
    users=st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=9), min_size=1, max_size=8),
    max_length=st.integers(1, 12),
    data=st.data(),
)
def test_histories_are_the_newest_events_first(
    users: list[list[int]], max_length: int, data: st.DataObject
) -> None:
    num_history = [data.draw(st.integers(1, len(user))) for user in users]
    rows_UL, lengths_U = sequences(users, num_history).histories(max_length)
    assert rows_UL.dtype == lengths_U.dtype == np.int64
    assert rows_UL.shape == (len(users), max_length)
    for user, number, row, length in zip(users, num_history, rows_UL, lengths_U, strict=True):
        expected = user[:number][::-1][:max_length]
        assert row.tolist() == expected + [0] * (max_length - len(expected))
        assert length == len(expected)


def test_histories_of_length_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        sequences([[1]]).histories(0)


def resave(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        np.save(folder / name, change(np.array(np.load(folder / name))))

    return damage


def edit_info(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        info = json.loads((folder / "dataset.json").read_text())
        change(info)
        (folder / "dataset.json").write_text(json.dumps(info))

    return damage


def rewrite(name: str, frame: pl.DataFrame) -> Callable[[Path], None]:
    return lambda folder: frame.write_parquet(folder / name)


def with_value(place: int, value: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[place] = value
        return array

    return change


def truncate(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) - 3])

    return damage


DAMAGE: dict[str, tuple[str, Callable[[Path], None]]] = {
    "row above the items": ("valid.items.npy", resave("valid.items.npy", with_value(0, 4))),
    "row below 0": ("train.items.npy", resave("train.items.npy", with_value(1, -1))),
    "items of another type": ("train.items.npy", resave("train.items.npy", lambda a: a.astype(np.int64))),
    "items of two dimensions": ("train.items.npy", resave("train.items.npy", lambda a: a[:, None])),
    "fewer items": ("test.offsets.npy", resave("test.items.npy", lambda a: a[:-1])),
    "offsets fall": ("train.offsets.npy", resave("train.offsets.npy", with_value(1, 6))),
    "a user without events": ("train.offsets.npy", resave("train.offsets.npy", with_value(1, 5))),
    "offsets start late": ("train.offsets.npy", resave("train.offsets.npy", with_value(0, 1))),
    "fewer offsets": ("test.offsets.npy", resave("test.offsets.npy", lambda a: a[[0, -1]])),
    "no offsets": ("test.offsets.npy", resave("test.offsets.npy", lambda a: a[:0])),
    "train with targets": ("train.num_history.npy", resave("train.num_history.npy", with_value(0, 1))),
    "no history": ("valid.num_history.npy", resave("valid.num_history.npy", with_value(0, 0))),
    "no targets": ("valid.num_history.npy", resave("valid.num_history.npy", with_value(0, 3))),
    "other counts": (
        "dataset.json",
        edit_info(lambda info: info["splits"]["valid"].update(num_targets=7)),
    ),
    "fewer item ids": ("items.parquet", rewrite("items.parquet", pl.DataFrame({"item_id": ["a"]}))),
    "item ids of another kind": (
        "items.parquet",
        rewrite("items.parquet", pl.DataFrame({"item_id": [1, 2, 3, 4]})),
    ),
    "item ids not first": (
        "items.parquet",
        rewrite("items.parquet", pl.DataFrame({"title": ["x"] * 4, "item_id": list("abcd")})),
    ),
    "more users": ("valid_users.parquet", rewrite("valid_users.parquet", pl.DataFrame({"user_id": [1, 2]}))),
    "another schema": ("schema version 2", edit_info(lambda info: info.update(schema_version=2))),
    "an unknown field": ("surprise", edit_info(lambda info: info.update(surprise=1))),
    "a missing field": ("num_items", edit_info(lambda info: info.pop("num_items"))),
    "a number as text": ("num_items", edit_info(lambda info: info.update(num_items="4"))),
    "a missing split": ("test", edit_info(lambda info: info["splits"].pop("test"))),
    "info is a list": ("dataset.json", lambda folder: (folder / "dataset.json").write_text("[]") and None),
    "info cut short": ("dataset.json", truncate("dataset.json")),
    "array cut short": ("train.items.npy", truncate("train.items.npy")),
    "table cut short": ("items.parquet", truncate("items.parquet")),
    "array empty": ("train.items.npy", lambda folder: (folder / "train.items.npy").write_bytes(b"") and None),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_data_set_is_refused_by_name_with_a_remedy(damage: str, tmp_path: Path) -> None:
    write(tmp_path / "shop")
    named, do_damage = DAMAGE[damage]
    do_damage(tmp_path / "shop")
    with pytest.raises(DataError) as caught:
        Dataset.open(tmp_path / "shop")
    assert named in str(caught.value)
    assert "re4 data prepare" in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "dataset.json",
        "items.parquet",
        *(
            f"{split}{rest}"
            for split in SPLITS
            for rest in (".items.npy", ".offsets.npy", ".num_history.npy", "_users.parquet")
        ),
    ],
)
def test_every_file_of_the_layout_is_there_and_is_needed(name: str, tmp_path: Path) -> None:
    write(tmp_path / "shop")
    (tmp_path / "shop" / name).unlink()
    with pytest.raises(DataError, match=name):
        Dataset.open(tmp_path / "shop")


@pytest.mark.parametrize("name", ["train.items.npy", "valid.offsets.npy", "test.num_history.npy"])
def test_whichever_bit_of_an_arrays_header_flips_it_is_opened_or_refused(name: str, tmp_path: Path) -> None:
    write(tmp_path / "shop")
    file = tmp_path / "shop" / name
    whole = file.read_bytes()
    for at, byte in enumerate(whole[:128]):
        file.write_bytes(whole[:at] + bytes([byte ^ 1 << at % 7]) + whole[at + 1 :])
        with suppress(DataError):
            Dataset.open(tmp_path / "shop")


@pytest.mark.parametrize("name", ["items", "train_users"])
def test_a_table_whose_pages_are_damaged_is_named_when_it_is_read(name: str, tmp_path: Path) -> None:
    write(tmp_path / "shop")
    file = tmp_path / "shop" / f"{name}.parquet"
    file.write_bytes(file.read_bytes()[:4] + b"\xff" * 20 + file.read_bytes()[24:])
    dataset = Dataset.open(tmp_path / "shop")
    with pytest.raises(DataError, match=rf"{name}\.parquet is missing or cannot be read: .*prepare"):
        _ = dataset.items() if name == "items" else dataset.users("train")


class Bomb:
    """Unpickling this creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.file), "w")


def test_a_pickle_in_an_array_file_is_never_run(tmp_path: Path) -> None:
    write(tmp_path / "shop")
    mark = tmp_path / "ran"
    np.save(tmp_path / "shop" / "train.items.npy", np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"train\.items\.npy"):
        Dataset.open(tmp_path / "shop")
    (tmp_path / "shop" / "train.items.npy").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(DataError, match=r"train\.items\.npy"):
        Dataset.open(tmp_path / "shop")
    assert not mark.exists()


def test_opening_what_is_no_data_set_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        Dataset.open(tmp_path / "nowhere")
    with pytest.raises(DataError, match="not a prepared data set"):
        Dataset.open(tmp_path)


def test_nothing_is_ever_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "shop"
    out.mkdir()
    (out / "precious").write_text("kept")
    with pytest.raises(DataError, match="not empty"):
        write(out)
    assert [file.name for file in out.iterdir()] == ["precious"]
    file = tmp_path / "file"
    file.write_text("kept")
    with pytest.raises(DataError, match="not a folder"):
        write(file)
    assert file.read_text() == "kept"


def test_an_empty_folder_and_missing_parents_are_fine(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert write(tmp_path / "empty").num_items == 4
    assert write(tmp_path / "a" / "b").num_items == 4
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


@pytest.mark.parametrize(
    "changes",
    [
        {"items": pl.DataFrame({"item_id": ["a", "b", "c", "a"]})},
        {"items": pl.DataFrame({"item_id": ["a", "b", "c"]})},
        {"items": pl.DataFrame({"item_id": [0.5, 1.5, 2.5, 3.5]})},
        {"sequences": splits() | {"valid": sequences([[1, 2]], [2])}},
    ],
    ids=["item twice", "row without item", "float ids", "no targets"],
)
def test_what_is_no_valid_data_set_is_not_written(changes: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(DataError):
        write(tmp_path / "shop", **changes)
    assert list(tmp_path.iterdir()) == []


def test_everything_is_on_disk_before_the_name_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "shop"
    synced: list[tuple[str, bool]] = []
    monkeypatch.setattr(writing, "sync", lambda path: synced.append((path.name, out.exists())))
    write(out)
    *before, part, parent = synced
    assert sorted(before) == sorted((file.name, False) for file in out.iterdir())
    assert part == ("dataset", False)
    assert parent == (tmp_path.name, True)


def test_a_failure_just_before_the_rename_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise OSError(f"no space left for {path.name}")

    monkeypatch.setattr(writing, "sync", full)
    with pytest.raises(OSError, match="no space left"):
        write(tmp_path / "shop")
    assert list(tmp_path.iterdir()) == []


PREPARES_AND_DIES = """
import os, signal, sys
from pathlib import Path
from re4.training.data import writing
from re4.training.data.prepare import prepare_sequences

def die(path):
    os.kill(os.getpid(), signal.SIGKILL)

writing.sync = die
folder = Path(sys.argv[1])
prepare_sequences(
    dict.fromkeys(("train", "valid", "test"), folder / "users.txt"),
    folder / "out" / "killed",
)
"""


def test_the_next_data_set_removes_the_remains_of_a_killed_writer(tmp_path: Path) -> None:
    (tmp_path / "users.txt").write_text("ann 1 2 3 4 5\n", encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", PREPARES_AND_DIES, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = (tmp_path / "out").iterdir()
    assert (left / "dataset" / "dataset.json").exists()
    with staging_folder(tmp_path / "out", writing._PREFIX) as at_work:
        assert not left.exists()
        write(tmp_path / "out" / "shop")
        assert at_work.exists()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["shop"]
