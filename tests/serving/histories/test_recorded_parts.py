"""The event log: each recorded event is in one part, whatever dies, and forgotten users are not."""

from pathlib import Path

import polars as pl
import pytest

from re4 import prepare_data
from re4.common.errors import DataError, HistoryStoreError
from re4.histories import event_parts
from re4.protos.v1 import retrieval_pb2 as pb
from re4.serving.histories.event_log import Part
from re4.serving.histories.lmdb_environment import LmdbEnvironment
from re4.serving.histories.lmdb_store import LmdbStore
from re4.serving.histories.redis_store import RedisStore
from re4.serving.histories.store import Bounds, Event, LogEntry, event_mark
from re4.training.data.events import Columns, read_events

DAY_MS = 86_400_000
NOW_MS = 20_000 * DAY_MS
BOUNDS = Bounds(max_events=20, max_age_ms=1000 * DAY_MS)


@pytest.fixture
def store(tmp_path: Path) -> LmdbStore:
    return LmdbStore(LmdbEnvironment(tmp_path / "histories", 1 << 30), BOUNDS)


def record(
    store: LmdbStore | RedisStore,
    users: list[str],
    items: list[int],
    *,
    at_ms: int = NOW_MS,
    ids: bool = True,
) -> None:
    times_ms = [at_ms + place for place in range(len(users))]
    request = pb.RecordEventsRequest(user_ids=users, items=pb.ItemIds(ints=items), times_ms=times_ms)
    marks = [
        event_mark(f"{time_ms}" if ids else "", item) for time_ms, item in zip(times_ms, items, strict=True)
    ]
    events = [Event(*each) for each in zip(users, times_ms, marks, items, strict=True)]
    store.append(events, at_ms, [LogEntry(at_ms, request.SerializeToString(), len(users))])


def logged(folder: Path) -> list[tuple[str, int]]:
    parts = sorted(folder.glob("*.parquet"))
    return [(user, item) for part in parts for user, item, _ in pl.read_parquet(part).iter_rows()]


def test_events_become_parts_that_prepare_reads(store: LmdbStore, tmp_path: Path) -> None:
    for user in range(60):
        record(store, [f"u{user}"] * 6, [0, 1, 2, 3, 4, user % 5 + 5], at_ms=NOW_MS + user * 1000)
    folder = tmp_path / "events"
    assert event_parts.rotate(store.event_log, folder) == 60
    assert event_parts.rotate(store.event_log, folder) == 0
    (part,) = folder.glob("*.parquet")
    assert part.name.startswith("2024-10-04-")
    table = pl.read_parquet(part)
    assert table.columns == ["user", "item", "timestamp"]
    assert table["timestamp"].dt.epoch("ms").min() == NOW_MS
    dataset = prepare_data(folder, tmp_path / "data", min_events=1, now_s=NOW_MS / 1e3)
    assert sum(split.num_events for split in dataset.info.splits.values()) == 360


def test_a_part_holds_the_calls_of_one_day(store: LmdbStore, tmp_path: Path) -> None:
    for day in (0, 0, 1, 2, 1):  # the clock was set back once
        record(store, ["u"], [day], at_ms=NOW_MS + day * DAY_MS, ids=False)
    assert event_parts.rotate(store.event_log, tmp_path / "events") == 5
    parts = sorted(path.name[:10] for path in (tmp_path / "events").glob("*.parquet"))
    assert parts == ["2024-10-04", "2024-10-05", "2024-10-05", "2024-10-06"]


def test_duplicates_are_not_logged_again(store: LmdbStore, tmp_path: Path) -> None:
    record(store, ["u", "v"], [1, 2])
    record(store, ["u", "v", "u"], [1, 2, 3])
    record(store, ["u"], [1])
    event_parts.rotate(store.event_log, tmp_path / "events")
    assert logged(tmp_path / "events") == [("u", 1), ("v", 2), ("u", 3)]


@pytest.mark.parametrize("dies_at", ["before the part", "after the part"])
def test_a_rotation_that_dies_is_repeated_with_the_same_part(
    store: LmdbStore, tmp_path: Path, dies_at: str
) -> None:
    folder = tmp_path / "events"
    record(store, ["u"], [1])

    class Killed(BaseException):
        pass

    def write(part: Part) -> None:
        if dies_at == "after the part":
            folder.mkdir()
            event_parts.write_part(part, folder)
        raise Killed

    with pytest.raises(Killed):
        store.event_log.rotate(write)
    names = {path.name for path in folder.glob("*")} if folder.exists() else set()
    record(store, ["u"], [2], at_ms=NOW_MS + 1000)  # meanwhile
    assert event_parts.rotate(store.event_log, folder) == 2
    assert logged(folder) == [("u", 1), ("u", 2)]
    assert names <= {path.name for path in folder.glob("*")}


def test_a_part_that_cannot_be_written_keeps_its_events(store: LmdbStore, tmp_path: Path) -> None:
    (tmp_path / "events").write_text("a file in place of the folder")
    record(store, ["u"], [1])
    with pytest.raises(HistoryStoreError, match="cannot be written"):
        event_parts.rotate(store.event_log, tmp_path / "events")
    (tmp_path / "events").unlink()
    event_parts.rotate(store.event_log, tmp_path / "events")
    assert logged(tmp_path / "events") == [("u", 1)]


def test_two_rotations_at_once_do_not_meet(store: LmdbStore, tmp_path: Path) -> None:
    record(store, ["u"], [1])
    with (
        event_parts._only_one(tmp_path / "events"),
        pytest.raises(HistoryStoreError, match="another process is at work"),
    ):
        event_parts.rotate(store.event_log, tmp_path / "events")


def test_a_forgotten_user_is_in_no_training(store: LmdbStore, tmp_path: Path) -> None:
    folder = tmp_path / "events"
    record(store, ["u", "v"], [1, 2])
    event_parts.rotate(store.event_log, folder)
    record(store, ["u", "v"], [3, 4], at_ms=NOW_MS + 1000)
    store.forget("u", NOW_MS + 2000)
    record(store, ["u", "v"], [5, 6], at_ms=NOW_MS + 3000)
    event_parts.rotate(store.event_log, folder)
    assert logged(folder) == [("u", 1), ("v", 2), ("v", 4), ("u", 5), ("v", 6)]
    assert not [path for path in (folder / "_forgotten").glob("*") if '"u"' in path.read_text()]
    read = read_events(folder, Columns())
    assert (read.events.num_events, read.dropped["events_of_forgotten_users"]) == (4, 1)
    assert sorted(read.events.user_ids) == ["u", "v"]
    assert event_parts.erase(folder) == (1, 1)
    assert event_parts.erase(folder) == (0, 0)
    assert logged(folder) == [("v", 2), ("v", 4), ("u", 5), ("v", 6)]


def test_a_clock_that_was_set_back_spares_no_event_of_a_forgotten_user(
    store: LmdbStore, tmp_path: Path
) -> None:
    folder = tmp_path / "events"
    record(store, ["u", "v"], [1, 2])
    event_parts.rotate(store.event_log, folder)
    store.forget("u", NOW_MS - DAY_MS)
    event_parts.rotate(store.event_log, folder)
    assert read_events(folder, Columns()).dropped["events_of_forgotten_users"] == 1


def test_tombstones_that_cannot_be_read_end_the_preparation(store: LmdbStore, tmp_path: Path) -> None:
    folder = tmp_path / "events"
    record(store, ["u", "v"], [1, 2])
    store.forget("u", NOW_MS)
    event_parts.rotate(store.event_log, folder)
    next((folder / "_forgotten").iterdir()).write_text("{")
    with pytest.raises(DataError, match="who was forgotten"):
        read_events(folder, Columns())


def test_integer_users_of_other_logs_are_forgotten_too(tmp_path: Path, store: LmdbStore) -> None:
    folder = tmp_path / "events"
    store.forget("7", NOW_MS)
    event_parts.rotate(store.event_log, folder)
    seconds = [NOW_MS // 1000 - 10, NOW_MS // 1000 - 5, NOW_MS // 1000 + 5]
    pl.DataFrame({"user": [7, 8, 7], "item": [1, 2, 3], "timestamp": seconds}).write_csv(folder / "old.csv")
    assert read_events(folder, Columns()).dropped["events_of_forgotten_users"] == 1


def test_expired_users_are_removed(store: LmdbStore) -> None:
    record(store, ["old", "new"], [1, 2])
    record(store, ["new"], [3], at_ms=NOW_MS + 10 * DAY_MS)
    assert store.remove_expired(NOW_MS + BOUNDS.max_age_ms + 5 * DAY_MS) == 1
    assert [user for user, _ in store.users()] == ["new"]


def test_mixed_ids_are_texts(tmp_path: Path) -> None:
    from re4.serving.histories.event_log import LoggedEvent

    table = event_parts.event_table([LoggedEvent("u", 7, NOW_MS), LoggedEvent("u", "x", NOW_MS)])
    assert table["item"].to_list() == ["7", "x"]
