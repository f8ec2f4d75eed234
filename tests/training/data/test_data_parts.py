"""A table in parts: a folder of files is read as one file with all their rows."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl
import pytest

from re4.common.errors import DataError
from re4.training.data.catalogue import read_catalogue
from re4.training.data.events import Columns, Events, read_events
from re4.training.data.tables.row_store import in_memory

Row = tuple[object, object, object]
COLUMNS = ("user", "item", "timestamp")
ROWS: list[Row] = [(f"u{number % 7}", number % 5, 100 + number % 11) for number in range(60)]
# A name sorts as its folder does, and not as the number in it.
NAMES = ("date=1/part-10", "date=1/part-2", "date=2/part-0", "z")


def write_parquet(rows: Sequence[Row], file: Path) -> None:
    pl.DataFrame(rows, schema=list(COLUMNS), orient="row").write_parquet(file)


def write_csv(rows: Sequence[Row], file: Path) -> None:
    file.write_text("\n".join(",".join(map(str, row)) for row in [COLUMNS, *rows]) + "\n")


def write_jsonl(rows: Sequence[Row], file: Path) -> None:
    file.write_text("".join(json.dumps(dict(zip(COLUMNS, row, strict=True))) + "\n" for row in rows))


FORMATS: dict[str, Callable[[Sequence[Row], Path], None]] = {
    ".parquet": write_parquet,
    ".csv": write_csv,
    ".jsonl": write_jsonl,
}


def write_parts(folder: Path, suffix: str = ".parquet", rows: Sequence[Row] = ROWS) -> list[Path]:
    parts = [folder / f"{name}{suffix}" for name in NAMES]
    each = len(rows) // len(parts)
    for number, part in enumerate(parts):
        part.parent.mkdir(parents=True, exist_ok=True)
        FORMATS[suffix](rows[number * each : (number + 1) * each], part)
    return parts


def values(events: Events) -> list[list[object]]:
    codes = [events.users_E.tolist(), events.items_E.tolist(), events.times_E.tolist()]
    return [*codes, events.user_ids.to_list(), events.item_ids.to_list()]


@pytest.mark.parametrize("suffix", FORMATS)
def test_parts_are_read_as_one_file_would_be(suffix: str, tmp_path: Path) -> None:
    folder, whole = tmp_path / "log", tmp_path / f"whole{suffix}"
    write_parts(folder, suffix)
    (folder / "_SUCCESS").touch()
    (folder / "date=1" / ".part-2.crc").write_bytes(b"\x00")
    (folder / "_temporary").mkdir()
    (folder / "_temporary" / f"half{suffix}").write_bytes(b"half")
    FORMATS[suffix](ROWS, whole)
    assert values(read_events(folder, Columns()).events) == values(read_events(whole, Columns()).events)


def test_columns_in_another_order_or_of_a_narrower_type_are_the_same_columns(tmp_path: Path) -> None:
    folder, whole = tmp_path / "log", tmp_path / "whole.parquet"
    parts = write_parts(folder)
    for part in parts[1:3]:
        frame = pl.read_parquet(part).select("timestamp", "user", pl.col("item").cast(pl.Int8))
        frame.write_parquet(part)
    write_parquet(ROWS, whole)
    assert values(read_events(folder, Columns()).events) == values(read_events(whole, Columns()).events)


def test_ids_that_are_text_in_one_part_are_text_in_all(tmp_path: Path) -> None:
    write_jsonl([("u", 7, 1), ("u", 8, 2)], tmp_path / "a.jsonl")
    write_jsonl([("u", "x", 3)], tmp_path / "b.jsonl")
    assert read_events(tmp_path, Columns()).events.item_ids.to_list() == ["7", "8", "x"]


def test_a_catalogue_may_come_in_parts(tmp_path: Path) -> None:
    (tmp_path / "0.csv").write_text("item,year\n3,1999\n")
    (tmp_path / "1.csv").write_text("item,year\n00,2001\n")
    rows = read_catalogue(tmp_path, "item", in_memory).rows.collect()
    assert rows.to_dict(as_series=False) == {"item_id": ["3", "00"], "year": [1999, 2001]}


def add_a_csv(folder: Path) -> None:
    write_csv(ROWS, folder / "more.csv")


def rename_a_column(folder: Path) -> None:
    part = folder / "z.parquet"
    pl.read_parquet(part).rename({"timestamp": "at"}).write_parquet(part)


def cut_a_part(folder: Path) -> None:
    part = folder / "date=2" / "part-0.parquet"
    part.write_bytes(part.read_bytes()[:-9])


def empty_a_part(folder: Path) -> None:
    (folder / "date=2" / "part-0.parquet").write_bytes(b"")


def make_it_delta(folder: Path) -> None:
    (folder / "_delta_log").mkdir()


def put_dates_for_ids(folder: Path) -> None:
    part = folder / "z.parquet"
    pl.read_parquet(part).with_columns(user=pl.lit("2026-11-28").str.to_date()).write_parquet(part)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (add_a_csv, r"different formats, such as .*z\.parquet and .*more\.csv; keep one"),
        (
            rename_a_column,
            r"z\.parquet has the columns user, item, at, and .*part-10\.parquet has user, item",
        ),
        (cut_a_part, r"date=2/part-0\.parquet cannot be read: .*; write it again"),
        (empty_a_part, r"date=2/part-0\.parquet is empty \(0 bytes\)"),
        (make_it_delta, r"is a Delta table, whose files also hold rows that were deleted"),
        (
            put_dates_for_ids,
            r"column 'user' is String in .*part-10\.parquet and Date in .*z\.parquet; write it",
        ),
    ],
)
def test_parts_that_do_not_make_a_table(damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "log"
    write_parts(folder)
    damage(folder)
    with pytest.raises(DataError, match=message):
        read_events(folder, Columns())


@pytest.mark.parametrize("suffix", FORMATS)
def test_of_many_parts_the_damaged_one_is_named(suffix: str, tmp_path: Path) -> None:
    for part in range(5):
        FORMATS[suffix](ROWS, tmp_path / f"part-{part}{suffix}")
    damaged = tmp_path / f"part-3{suffix}"
    whole = damaged.read_bytes()
    if suffix == ".parquet":
        begin = whole.index(b"PAR1", 0) + 40  # within the pages; the footer stays as it is
        damaged.write_bytes(whole[:begin] + bytes(40) + whole[begin + 40 :])
    else:
        damaged.write_bytes(whole + b"1,2,3,4\n" + whole)
    where = "cannot be read" if suffix == ".parquet" else f"line {len(whole.splitlines()) + 1}:"
    with pytest.raises(DataError, match=rf"part-3\{suffix},? {where}"):
        read_events(tmp_path, Columns())


def test_a_folder_without_parts(tmp_path: Path) -> None:
    (tmp_path / "_SUCCESS").touch()
    with pytest.raises(DataError, match="is a folder without a file in it; name the file, or the folder"):
        read_events(tmp_path, Columns())


@pytest.mark.parametrize(("name", "separator"), [("e.csv", ";"), ("e.csv", "\t"), ("e.tsv", ",")])
def test_another_separator_is_named(name: str, separator: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(separator.join(COLUMNS) + "\n" + separator.join("123") + "\n")
    with pytest.raises(DataError, match=r"taken for one column: columns are separated by commas in \.csv"):
        read_events(file, Columns())
