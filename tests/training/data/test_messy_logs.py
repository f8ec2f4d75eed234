"""Logs as they are: robots, events of several types, missing values, mixed times, damaged lines."""

import json
import logging

import numpy as np
import polars as pl
import pytest

from re4.common.errors import DataError, UsageError
from re4.training.data.event_cleaning import STAND_OUT_EVENTS
from re4.training.data.events import Columns, EventLog, read_events
from re4.training.data.prepare import prepare_data

TIME = 1_700_000_000


def people(num_users=200, num_items=100, each=10, seed=0):
    rng = np.random.default_rng(seed)
    return [
        (f"u{user}", f"i{item}", TIME + 60 * number)
        for user in range(num_users)
        for number, item in enumerate(rng.integers(0, num_items, each))
    ]


def frame(rows):
    return pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")


def robot(num_events, num_items=3_000):
    rng = np.random.default_rng(1)
    return [("robot", f"i{item}", TIME + n) for n, item in enumerate(rng.integers(0, num_items, num_events))]


class TestRobots:
    def test_a_user_that_stands_out_is_dropped_before_anything_is_counted(self, tmp_path, caplog):
        caplog.set_level(logging.INFO)
        alone = prepare_data(frame(people()), tmp_path / "alone", now_s=2e9)
        mixed = prepare_data(frame(people() + robot(20_000)), tmp_path / "mixed", now_s=2e9)
        assert mixed.items().equals(alone.items()), "no item lives by the robot alone"
        assert mixed.info.dropped["users_that_stand_out"] == 1
        assert mixed.info.prepared["stand_out_bound"] == STAND_OUT_EVENTS
        shown = "dropped, stands out (more than 1,000 events): user 'robot' has 20,000 events"
        assert caplog.messages.count(shown) == 1
        for split in ("train", "valid", "test"):
            assert "robot" not in mixed.users(split).to_list()

    def test_a_busy_person_stays(self, tmp_path):
        busy = prepare_data(frame(people() + robot(STAND_OUT_EVENTS, 100)), tmp_path / "data", now_s=2e9)
        assert busy.info.dropped["users_that_stand_out"] == 0
        assert "robot" in {user for split in ("train", "valid", "test") for user in busy.users(split)}

    def test_where_everybody_is_busy_nobody_stands_out(self, tmp_path):
        dataset = prepare_data(frame(people(20, 50, 1_500)), tmp_path / "data", now_s=2e9)
        assert dataset.info.dropped["users_that_stand_out"] == 0
        assert dataset.info.prepared["stand_out_bound"] == 15_000

    def test_a_given_bound_caps_instead(self, tmp_path):
        capped = prepare_data(
            frame(people() + robot(20_000)), tmp_path / "data", max_user_events=50, now_s=2e9
        )
        assert capped.info.dropped["users_that_stand_out"] == 0
        assert capped.info.dropped["older_events_of_users_with_too_many"] == 19_950
        assert "stand_out_bound" not in capped.info.prepared


def decoded(log: EventLog):
    events = log.events
    return sorted(
        (events.user_ids[int(user)], events.item_ids[int(item)], int(time))
        for user, item, time in zip(events.users_E, events.items_E, events.times_E, strict=True)
    )


def read(source, **options):
    return read_events(source, Columns(), drop_invalid=True, **options)


def reasons(log):
    return {name: number for name, number in log.dropped.items() if number}


class TestDropInvalid:
    def test_missing_values_are_counted_and_shown(self, tmp_path):
        file = tmp_path / "events.csv"
        file.write_text("user,item,timestamp\n1,5,100\n,6,100\n2,,100\n2,7,\n\n3,8,200\n,9,100\n")
        log = read(file)
        assert decoded(log) == [(1, 5, 100), (3, 8, 200)], "the ids that are left are integers"
        assert reasons(log) == {
            "events_without_user": 2,
            "events_without_item": 1,
            "events_without_timestamp": 1,
        }
        assert log.examples[0] == "without user: event 2 (user None, item '6', timestamp '100')"
        with pytest.raises(DataError, match="leave them out with --drop-invalid"):
            read_events(file, Columns())

    @pytest.mark.parametrize(
        ("times", "kept", "shown"),
        [
            (["100", "2024-01-01", "200", "soon"], ["100", "200"], "2024-01-01"),
            (
                ["2024-01-01", "1700000000", "2024-01-02T03:04:05Z"],
                ["2024-01-01", "2024-01-02"],
                "1700000000",
            ),
            (["1700000000", "1700000001", "1700000002000", "0"], ["0", "1700000000", "1700000001"], "02000"),
            (["1700000000", "1700000001.5", "nan", "inf"], ["1700000000", "1700000001"], "nan"),
        ],
    )
    def test_of_mixed_times_those_of_most_events_stay(self, tmp_path, times, kept, shown):
        file = tmp_path / "events.csv"
        rows = [f"u{number},i,{time}" for number, time in enumerate(times)]
        file.write_text("\n".join(["user,item,timestamp", *rows]) + "\n")
        log = read(file)
        dates = sorted(log.timestamps.values.to_list())
        wanted = [log.timestamps.value_of(each) if "-" in each else float(each) for each in kept]
        assert [int(date) // 86_400_000_000 if "-" in kept[0] else int(date) for date in dates] == [
            int(each) // 86_400_000_000 if "-" in kept[0] else int(each) for each in wanted
        ]
        assert log.dropped["events_with_other_timestamps"] == len(times) - len(kept)
        assert shown in log.examples[0]
        with pytest.raises(DataError, match="--drop-invalid"):
            read_events(file, Columns())

    def test_integers_beside_missing_values_as_pandas_writes_them(self):
        log = read(pl.DataFrame({"user": [1.0, None, 2.0], "item": [3.0, 4.0, 0.5], "timestamp": [5, 6, 7]}))
        assert decoded(log) == [(1, 3, 5)]
        assert reasons(log) == {"events_without_user": 1, "events_without_item": 1}

    @pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
    def test_damaged_lines_are_left_out(self, tmp_path, suffix):
        rows = [("a", "x,y", 100), ("b", 'say "z"', 200), ("c", "w", 300)]
        file = tmp_path / f"events{suffix}"
        if suffix == ".jsonl":
            lines = [json.dumps(dict(zip(("user", "item", "timestamp"), row, strict=True))) for row in rows]
            damaged = ['{"user": "d", "item": ', "[1, 2]"]
        else:
            copy = tmp_path / "whole"
            frame(rows).write_csv(copy, separator="," if suffix == ".csv" else "\t")
            lines = copy.read_text().splitlines()
            damaged = [("," if suffix == ".csv" else "\t").join(["d", "v", "400", "and", "more"])]
        file.write_text("\n".join([lines[0], *damaged, *lines[1:]]) + "\n")
        with pytest.raises(DataError):
            read_events(file, Columns())
        log = read(file)
        assert decoded(log) == sorted(rows)
        assert log.dropped["damaged_lines"] == len(damaged)
        assert f"damaged: {file}, line 2 (" in log.examples[0]

    def test_no_file_but_those_of_the_users_holds_a_user_id(self, tmp_path, caplog):
        """A run and a report are made from the other files, and are given to more people."""
        caplog.set_level(logging.INFO)
        rows = [f"person-{user},i{item},{TIME + item}" for user in range(30) for item in range(8)]
        wrong = ["person-x,i1,soon", "person-y,,1", f"person-z,i1,{TIME * 9}", f"person-v,i1,{TIME},more"]
        busy = [f"person-w,i{item},{TIME + item}" for item in range(20)]
        (tmp_path / "events.csv").write_text("\n".join(["user,item,timestamp", *rows, *wrong, *busy]) + "\n")
        prepare_data(
            tmp_path / "events.csv", tmp_path / "data", drop_invalid=True, max_user_events=10, now_s=2e9
        )
        for name in "vwxyz":
            assert f"person-{name}" in caplog.text, "the examples are shown"
        for file in (tmp_path / "data").iterdir():
            assert file.name.endswith("_users.parquet") or b"person" not in file.read_bytes(), file.name

    def test_a_clean_log_is_the_same_with_and_without(self, tmp_path):
        clean = frame(people())
        for name, options in (("without", {}), ("with", {"drop_invalid": True})):
            prepare_data(clean, tmp_path / name / "data", now_s=2e9, **options)
        for file in sorted((tmp_path / "without" / "data").iterdir()):
            if file.name != "dataset.json":
                assert file.read_bytes() == (tmp_path / "with" / "data" / file.name).read_bytes()

    def test_a_log_without_a_valid_event_is_refused(self):
        with pytest.raises(DataError, match=r"no event is valid \(without user: event 1"):
            read(
                pl.DataFrame(
                    {"user": [None], "item": ["a"], "timestamp": [1]}, schema_overrides={"user": pl.String}
                )
            )


class TestEventTypes:
    LOG = pl.DataFrame(
        {
            "user": ["a", "a", "b", "b"],
            "item": [1, 2, 3, 4],
            "timestamp": [10, 20, 30, 40],
            "kind": ["view", "purchase", "view", None],
        }
    )

    def test_events_of_the_given_types_count(self):
        log = read_events(self.LOG, Columns(event="kind"), event_types=["view"])
        assert decoded(log) == [("a", 1, 10), ("b", 3, 30)]
        assert log.dropped["events_of_other_types"] == 2

    def test_the_data_set_records_them(self, tmp_path):
        rows = frame(people()).with_columns(type=pl.lit("click"))
        dataset = prepare_data(rows, tmp_path / "data", event_column="type", event_types=["click"], now_s=2e9)
        assert dataset.info.prepared["event_types"] == ["click"]

    @pytest.mark.parametrize(("types", "problem"), [([], "holds the types"), (["buy"], "has no 'buy'")])
    def test_types_that_are_not_there_are_answered_by_those_that_are(self, types, problem):
        with pytest.raises(DataError, match=rf"'kind' {problem}.*'view' \(2 events\).*--event-types"):
            read_events(self.LOG, Columns(event="kind"), event_types=types)

    def test_types_need_their_column(self, tmp_path):
        with pytest.raises(UsageError, match="--event-types needs --event-column"):
            prepare_data(self.LOG, tmp_path / "data", event_types=["view"])


class TestAdvice:
    def test_where_most_items_are_dropped_a_lower_bound_is_named(self, tmp_path):
        rare = [(f"u{n % 200}", f"rare{n // 2}", TIME + 10_000 + n) for n in range(1_000)]
        dataset = prepare_data(frame(people() + rare), tmp_path / "data", now_s=2e9)
        advice = dataset.info.prepared["advice"]
        assert advice.startswith("--min-events 5 drops 83% of the items (500 of 600).")
        assert "With --min-events 2, 600 items would stay" in advice

    def test_items_of_a_robot_alone_are_not_counted(self, tmp_path):
        dataset = prepare_data(frame(people() + robot(20_000)), tmp_path / "data", now_s=2e9)
        assert "advice" not in dataset.info.prepared

    def test_where_few_are_dropped_there_is_none(self, tmp_path):
        assert "advice" not in prepare_data(frame(people()), tmp_path / "data", now_s=2e9).info.prepared
