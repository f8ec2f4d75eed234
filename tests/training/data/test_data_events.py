import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from re4.common.errors import DataError
from re4.training.data.events import Columns, EventLog, read_events
from re4.training.data.timestamps import Timestamps

Row = tuple[object, object, object]
Write = Callable[[Sequence[Row]], Path]

ROWS: list[Row] = [("ann", 7, 300), ("bob", 3, 200), ("ann", 3, 100), ("bob", 9, 250)]


def decoded(log: EventLog) -> list[Row]:
    events = log.events
    return list(
        zip(
            events.user_ids[events.users_E].to_list(),
            events.item_ids[events.items_E].to_list(),
            events.times_E.tolist(),
            strict=True,
        )
    )


def write_text(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    content = text.encode()
    file.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return file


def separated(separator: str) -> str:
    return "\n".join(separator.join(map(str, row)) for row in [("user", "item", "timestamp"), *ROWS]) + "\n"


def json_lines(rows: Sequence[Row]) -> str:
    return "".join(
        json.dumps(dict(zip(("user", "item", "timestamp"), row, strict=True))) + "\n" for row in rows
    )


@pytest.mark.parametrize(
    "name",
    ["e.csv", "e.CSV", "e.csv.gz", "e.tsv", "e.tsv.gz", "e.jsonl", "e.jsonl.gz", "e.parquet", "e*[1].csv"],
)
def test_every_format_gives_the_same_events_sorted_by_user_and_time(name: str, tmp_path: Path) -> None:
    if name.endswith(".parquet"):
        file = tmp_path / name
        pl.DataFrame(ROWS, schema=["user", "item", "timestamp"], orient="row").write_parquet(file)
    elif "jsonl" in name:
        file = write_text(tmp_path, name, json_lines(ROWS))
    else:
        file = write_text(tmp_path, name, separated("\t" if "tsv" in name else ","))
    log = read_events(file, Columns())
    assert decoded(log) == [("ann", 3, 100), ("ann", 7, 300), ("bob", 3, 200), ("bob", 9, 250)]
    assert log.dropped["duplicate_events"] == 0


events = st.tuples(st.integers(0, 3), st.sampled_from("abc"), st.integers(0, 4))


@given(rows=st.lists(events, min_size=1, max_size=40))
def test_order_and_duplicates_against_a_plain_python_reading(
    rows: list[Row], tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("log") / "events.jsonl"
    file.write_text(json_lines(rows))
    log = read_events(file, Columns())
    distinct = list(dict.fromkeys(rows))
    users = list(dict.fromkeys(user for user, _, _ in rows))
    items = list(dict.fromkeys(item for _, item, _ in rows))
    # Python's sort is stable, as ours must be: at equal times, the file's order stays.
    assert decoded(log) == sorted(distinct, key=lambda row: (users.index(row[0]), row[2]))
    assert log.dropped["duplicate_events"] == len(rows) - len(distinct)
    assert log.events.user_ids.to_list() == users
    assert log.events.item_ids.to_list() == items


@pytest.mark.parametrize(
    ("ids", "kept"),
    [
        (["5", "-7", "0"], [5, -7, 0]),
        (["9223372036854775807", "-9223372036854775808", "1"], [2**63 - 1, -(2**63), 1]),
        (["9223372036854775808", "1", "2"], ["9223372036854775808", "1", "2"]),
        (["00123", "123", "7"], ["00123", "123", "7"]),
        (["+1", "1", "2"], ["+1", "1", "2"]),
        (["-0", "0", "1"], ["-0", "0", "1"]),
        (["1.0", "1", "2"], ["1.0", "1", "2"]),
        (["1e3", "1000", "2"], ["1e3", "1000", "2"]),
        ([" 1", "1", "2"], [" 1", "1", "2"]),
        (["x ", "x", "X"], ["x ", "x", "X"]),
        (["null", "NA", "nan"], ["null", "NA", "nan"]),
        (['"a,b"', "café", "日本"], ["a,b", "café", "日本"]),
        (["١", "1", "2"], ["١", "1", "2"]),
    ],
)
def test_text_ids_are_kept_exactly(ids: list[str], kept: list[object], event_csv: Write) -> None:
    file = event_csv([(name, name, 1) for name in ids])
    log = read_events(file, Columns())
    assert log.events.user_ids.to_list() == kept
    assert log.events.item_ids.to_list() == kept


def test_one_text_id_late_in_the_file_makes_all_of_them_text(event_csv: Write) -> None:
    ids = [*range(20_000), "x"]
    log = read_events(event_csv([(1, item, 1) for item in ids]), Columns())
    assert log.events.item_ids.to_list() == [str(item) for item in ids]
    assert log.events.user_ids.to_list() == [1]


def test_one_json_string_late_in_the_file_makes_all_of_them_strings(tmp_path: Path) -> None:
    rows: list[Row] = [(1, item, 1) for item in [*range(5000), "x"]]
    log = read_events(write_text(tmp_path, "e.jsonl", json_lines(rows)), Columns())
    assert log.events.item_ids.to_list() == [str(item) for _, item, _ in rows]


def test_json_keeps_numbers_numbers_and_strings_strings(tmp_path: Path) -> None:
    file = write_text(tmp_path, "e.jsonl", json_lines([(12, "12", 1), (13, "007", 2)]))
    log = read_events(file, Columns())
    assert log.events.user_ids.to_list() == [12, 13]
    assert log.events.item_ids.to_list() == ["12", "007"]


@pytest.mark.parametrize(
    ("ids", "kept"),
    [
        (pl.Series(["1", "2"]), ["1", "2"]),
        (pl.Series(["1", "b"], dtype=pl.Categorical), ["1", "b"]),
        (pl.Series(["b", "a"], dtype=pl.Enum(["a", "b"])), ["b", "a"]),
        (pl.Series([1, 2], dtype=pl.Int8), [1, 2]),
        (pl.Series([1, 2], dtype=pl.UInt64), [1, 2]),
    ],
    ids=lambda value: str(getattr(value, "dtype", "")),
)
def test_parquet_keeps_its_types(ids: pl.Series, kept: list[object], tmp_path: Path) -> None:
    file = tmp_path / "e.parquet"
    pl.DataFrame({"user": ids, "item": ids, "timestamp": [1, 2]}).write_parquet(file)
    log = read_events(file, Columns())
    assert log.events.user_ids.to_list() == log.events.item_ids.to_list() == kept
    assert log.events.user_ids.dtype in (pl.Int64, pl.String)


@pytest.mark.parametrize(
    "ids",
    [pl.Series([1.0, 2.0]), pl.Series([2**63, 1], dtype=pl.UInt64), pl.Series([True, False])],
    ids=lambda ids: str(ids.dtype),
)
def test_parquet_ids_that_are_no_64_bit_integers_or_strings_are_refused(
    ids: pl.Series, tmp_path: Path
) -> None:
    file = tmp_path / "e.parquet"
    pl.DataFrame({"user": [1, 2], "item": ids, "timestamp": [1, 2]}).write_parquet(file)
    with pytest.raises(DataError, match=r"e\.parquet"):
        read_events(file, Columns())


def test_columns_can_be_named_and_others_do_not_matter(tmp_path: Path) -> None:
    file = write_text(tmp_path, "e.csv", "when,price,who,what\n5,x,1,a\n4,,1,b\n")
    log = read_events(file, Columns(user="who", item="what", timestamp="when"))
    assert decoded(log) == [(1, "b", 4), (1, "a", 5)]


def test_a_column_named_like_our_own_is_no_trouble(tmp_path: Path) -> None:
    file = write_text(tmp_path, "e.csv", "item,user,timestamp\n1,2,3\n")
    log = read_events(file, Columns(user="item", item="user"))
    assert decoded(log) == [(1, 2, 3)]


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("e.csv", "", ["empty"]),
        ("e.csv.gz", "", ["empty"]),
        ("e.jsonl", "\n", ["e.jsonl"]),
        ("e.csv", "user,item,timestamp\n", ["no events"]),
        ("e.csv", "user,item,timestamp\n\n\n", ["no events"]),
        ("e.txt", "user,item,timestamp\n1,2,3\n", [".parquet, .csv, .tsv, .jsonl", "rename or convert"]),
        ("events", "user,item,timestamp\n1,2,3\n", [".parquet, .csv, .tsv, .jsonl"]),
        ("e.parquet.gz", "x", [".parquet, .csv, .tsv, .jsonl"]),
        (
            "e.csv",
            "visitor,item,time\n1,2,3\n",
            ["'user', 'timestamp'", "'visitor', 'item', 'time'", "--user-column, --timestamp-column"],
        ),
        ("e.tsv", "user,item,timestamp\n1,2,3\n", ["'user,item,timestamp'"]),
        (
            "e.csv",
            "user,item,timestamp\n1,2,3\n\n,2,3\n1,2,3\n,5,6\n",
            ["'user'", "2 events", "event 2, 4", "correct or remove"],
        ),
        ("e.csv", 'user,item,timestamp\n1,"",3\n', ["'item'", "1 events"]),
        ("e.csv", "user,item,timestamp\n1,2\n", ["'timestamp'", "event 1"]),
        ("e.jsonl", '{"user":1,"item":2,"timestamp":3}\n{"user":1,"item":2}\n', ["'timestamp'", "event 2"]),
        ("e.csv", "user,item,timestamp\n1,2,3\n1,2,soon\n", ["'timestamp'", "event 2: 'soon'"]),
        ("e.csv", "user,item,timestamp\n1,2,3,4\n", ["line 2", "4 values, the header has 3", "'1,2,3,4'"]),
        ("e.csv", 'user,item,timestamp\n1,"2\n\n3",4\n1,2,3,4\n', ["line 5: it has 4 values"]),
        ("e.csv", 'user,item,timestamp\n1,2,3\n1,"2,3\n1,2,3\n', ["line 3", "correct its quotes"]),
        ("e.csv", "\n\nuser,item,timestamp\n1,2,3\n1,2,3,4\n", ["line 5: it has 4 values, the header has 3"]),
        ("e.tsv", "user\titem\ttimestamp\n1\t2\t3\t4\n", ["line 2", "4 values, the header has 3"]),
        ("e.jsonl", '{"user":1,"item":2,"timestamp":3}\nhello\n', ["line 2: not JSON", "'hello'"]),
        ("e.jsonl", '{"user":1,"item":2,"timestamp":3}\n\n[1]\n', ["line 3: not a JSON object"]),
        ("e.jsonl", '{"user":1,"item":2,"timestamp":' + "9" * 5000 + "}\n", ["line 1: Exceeds the limit"]),
        ("e.jsonl", '{"user":' + "[" * 100_000 + "\n", ["line 1: maximum recursion depth"]),
        ("e.jsonl", "{}\n", ["no column 'user'"]),
        ("e.jsonl", '{"user":1.5,"item":2,"timestamp":3}\n', ["'user'", "Float64"]),
        ("e.jsonl", '{"user":[1],"item":2,"timestamp":3}\n', ["'user'", "List"]),
        ("e.parquet", "not parquet at all", ["cannot be read"]),
    ],
)
def test_bad_files_get_a_reason_and_a_remedy(name: str, text: str, parts: list[str], tmp_path: Path) -> None:
    file = write_text(tmp_path, name, text)
    with pytest.raises(DataError) as caught:
        read_events(file, Columns())
    for part in [str(file), *parts]:
        assert part in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv does not exist"):
        read_events(tmp_path / "none.csv", Columns())


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "e.csv"
    file.write_bytes(b"user,item,timestamp\n1,caf\xe9,3\n")
    with pytest.raises(DataError, match=r"e\.csv, line 2: not UTF-8"):
        read_events(file, Columns())


@pytest.mark.parametrize("name", ["e.csv.gz", "e.jsonl.gz", "e.parquet"])
def test_a_file_that_was_cut_short_is_refused(name: str, tmp_path: Path) -> None:
    rows: list[Row] = [(user, user * 7919 % 1009, user) for user in range(3000)]
    file = tmp_path / name
    if name == "e.parquet":
        pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row").write_parquet(file)
    else:
        lines = "user,item,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows)
        write_text(tmp_path, name, lines if "csv" in name else json_lines(rows))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DataError, match="cannot be read"):
        read_events(file, Columns())


def test_one_column_cannot_be_two_things(event_csv: Write) -> None:
    with pytest.raises(DataError, match="named twice"):
        read_events(event_csv([(1, 2, 3)]), Columns(item="user"))


def test_windows_line_ends_and_a_byte_order_mark_are_no_trouble(tmp_path: Path) -> None:
    file = tmp_path / "e.csv"
    file.write_bytes(b"\xef\xbb\xbfuser,item,timestamp\r\n1,2,3\r\n\r\n")
    log = read_events(file, Columns())
    assert decoded(log) == [(1, 2, 3)]
    assert isinstance(log.timestamps, Timestamps)
