"""`re4 data …` as a person would run it, from files to an opened data set."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from re4 import cli
from re4.training.data.dataset import Dataset
from re4.training.data.layout import SPLITS
from re4.training.data.split import user_parts

Row = tuple[object, object, object]
Write = Callable[[Sequence[Row]], Path]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def re4(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `re4 data WORDS…`; give its exit code, standard output and standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["re4", "data", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        output = capsys.readouterr()
        return int(ended.value.code or 0), output.out, output.err

    return run


def shop(num_users: int = 60, seed: int = 0) -> list[Row]:
    """A small event log in random order; item 0 is the most popular, and the last ones are rare."""
    rng = np.random.default_rng(seed)
    items = np.minimum(rng.geometric(0.06, (num_users, 12)) - 1, 70)
    times = rng.permutation(num_users * 12) + 1_600_000_000
    rows: list[Row] = [
        (f"u{user:03}", int(items[user, place]), int(times[user * 12 + place]))
        for user in range(num_users)
        for place in range(12)
    ]
    return [rows[place] for place in rng.permutation(len(rows))]


def test_an_event_log_becomes_a_data_set_and_a_summary(re4: Run, event_csv: Write, tmp_path: Path) -> None:
    rows = shop()
    file = event_csv([("rare", 0, 1_600_000_005), *rows, rows[0]])
    code, _, _ = re4("prepare", "--events", file, "--out", tmp_path / "shop")
    assert code == 0
    dataset = Dataset.open(tmp_path / "shop")
    assert dataset.info.dropped["duplicate_events"] == 1
    assert dataset.info.dropped["users_below_min_events"] == 1
    assert dataset.info.item_id_kind == "int"
    assert dataset.info.user_id_kind == "string"
    assert dataset.info.prepared["timestamp_notation"] == "seconds since 1970"
    assert dataset.info.prepared["first_event"] == "2020-09-13T12:26:40+00:00"
    assert (dataset.info.prepared["split_rule"], dataset.info.prepared["seed"]) == ("hash of the user id", 0)
    parts = user_parts(pl.Series([f"u{user:03}" for user in range(60)]), 0)
    assert {split: dataset.info.splits[split].num_users for split in SPLITS} == {
        "train": np.sum(parts > 1),
        "valid": np.sum(parts == 0),
        "test": np.sum(parts == 1),
    }
    ids = dataset.items()["item_id"].to_list()
    by_user = {user: sorted(r for r in rows if r[0] == user and r[1] in ids) for user, _, _ in rows}
    for split in SPLITS:
        sequences = getattr(dataset, split)
        for place, user in enumerate(dataset.users(split)):
            start, end = sequences.offsets_U1[place : place + 2]
            expected = [item for _, item, _ in sorted(by_user[user], key=lambda row: row[2])]
            assert [ids[row] for row in sequences.items_E[start:end]] == expected


def test_item_rows_fall_by_train_popularity_with_ties_by_first_appearance(
    re4: Run, event_csv: Write, tmp_path: Path
) -> None:
    rows = shop()
    re4("prepare", "--events", event_csv(rows), "--out", tmp_path / "shop", "--min-events", 1)
    dataset = Dataset.open(tmp_path / "shop")
    counts = dataset.item_counts()
    appearance = list(dict.fromkeys(item for _, item, _ in rows))
    keys = [
        (-count, appearance.index(item))
        for count, item in zip(counts, dataset.items()["item_id"], strict=True)
    ]
    assert keys == sorted(keys)
    assert len(set(counts.tolist())) < len(counts), "the log has no ties to order"
    assert dataset.num_items == len(appearance)
    assert dataset.info.dropped["items_never_in_train"] == int((counts == 0).sum())


def test_every_user_and_item_of_the_filtered_log_has_enough_events(
    re4: Run, event_csv: Write, tmp_path: Path
) -> None:
    rows = shop()
    re4("prepare", "--events", event_csv(rows), "--out", tmp_path / "shop", "--min-events", 9)
    dataset = Dataset.open(tmp_path / "shop")
    sequences = [getattr(dataset, split) for split in SPLITS]
    assert np.bincount(np.concatenate([part.items_E for part in sequences])).min() >= 9
    assert min(np.diff(part.offsets_U1).min() for part in sequences) >= 9
    kept = sum(part.num_events for part in sequences)
    assert dataset.info.dropped["events_below_min_events"] == len(rows) - kept > 0


def test_the_same_options_give_the_same_bytes(re4: Run, event_csv: Write, tmp_path: Path) -> None:
    file = event_csv(shop())
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        re4("prepare", "--events", file, "--out", tmp_path / folder / "shop", "--seed", seed)
    content = {
        folder: {path.name: path.read_bytes() for path in (tmp_path / folder / "shop").iterdir()}
        for folder in "abc"
    }
    assert content["a"] == content["b"]
    assert content["a"]["test.items.npy"] != content["c"]["test.items.npy"]


def test_a_split_by_time_never_trains_on_the_future(re4: Run, event_csv: Write, tmp_path: Path) -> None:
    rows = shop()
    code, out, _ = re4(
        "prepare", "--events", event_csv(rows), "--out", tmp_path / "shop", "--split", "time", "--json"
    )
    assert code == 0
    printed = json.loads(out)
    dataset = Dataset.open(tmp_path / "shop")
    ids = dataset.items()["item_id"].to_list()
    kept = sorted(time for _, item, time in rows if item in ids)
    cut = kept[len(kept) * 8 // 10]
    assert printed["prepared"]["cuts"][0].startswith("2020-09-13T")
    assert "seed" not in printed["prepared"]
    early = sorted((user, time, item) for user, item, time in rows if item in ids and time < cut)
    assert [ids[row] for row in dataset.train.items_E] == [
        item for user in dataset.users("train") for owner, _, item in early if owner == user
    ]


@pytest.mark.parametrize("unit", [1, 1000])
def test_given_cuts_are_the_cuts_in_the_unit_of_the_log(
    re4: Run, event_csv: Write, tmp_path: Path, unit: int
) -> None:
    rows: list[Row] = [(user, item, int(time) * unit) for user, item, time in shop()]
    cuts = ("2020-09-13T12:34:00Z", "2020-09-13T12:36:00.5Z")
    words = ("--split", "time", "--cuts", *cuts, "--json")
    code, out, _ = re4("prepare", "--events", event_csv(rows), "--out", tmp_path / "shop", *words)
    assert code == 0
    recorded = json.loads(out)["prepared"]["cuts"]
    assert recorded == ["2020-09-13T12:34:00+00:00", "2020-09-13T12:36:00.500000+00:00"]
    dataset = Dataset.open(tmp_path / "shop")
    ids = dataset.items()["item_id"].to_list()
    first = (1_600_000_000 + 7 * 60 + 20) * unit
    assert dataset.train.num_events == sum(time < first for _, item, time in rows if item in ids)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--cuts", "2020-09-13", "2020-09-14"), 2, "--cuts belongs to --split time"),
        (("--split", "time", "--cuts", "2020-09-14", "2020-09-13"), 2, "must lie before the second"),
        (("--split", "time", "--cuts", "1600000000", "1600000001"), 1, "is no date"),
        (("--split", "time", "--cuts", "now", "then"), 1, "ISO 8601"),
    ],
)
def test_cuts_that_cannot_be(
    re4: Run, event_csv: Write, tmp_path: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    ended, _, err = re4("prepare", "--events", event_csv(shop()), "--out", tmp_path / "shop", *words)
    assert (ended, message in " ".join(err.split())) == (code, True)
    assert not (tmp_path / "shop").exists()


def test_json_is_one_object_and_nothing_else(re4: Run, event_csv: Write, tmp_path: Path) -> None:
    code, out, _ = re4("prepare", "--events", event_csv(shop()), "--out", tmp_path / "shop", "--json")
    printed = json.loads(out)
    written = json.loads((tmp_path / "shop" / "dataset.json").read_text())
    assert code == 0
    assert printed == {"path": str(tmp_path / "shop"), **written}


def test_the_summary_names_splits_and_what_was_dropped(re4: Run, event_csv: Write, tmp_path: Path) -> None:
    rows = shop()
    _, out, err = re4("prepare", "--events", event_csv([*rows, *rows[:3]]), "--out", tmp_path / "shop")
    for part in ("train", "valid", "test", "duplicate events", "items below min events"):
        assert part in out
    assert "seconds since 1970" in err
    assert "re4 train" in err


def test_a_catalogue_is_joined_onto_the_items(re4: Run, event_csv: Write, tmp_path: Path) -> None:
    films = tmp_path / "films.tsv"
    films.write_text("film\ttitle\n" + "".join(f"{item}\tFilm {item}\n" for item in (0, 1, 2, 999)))
    re4(
        *("prepare", "--events", event_csv(shop()), "--out", tmp_path / "shop"),
        *("--catalogue", films, "--catalogue-item-column", "film"),
    )
    dataset = Dataset.open(tmp_path / "shop")
    titles = dict(dataset.items().select("item_id", "title").iter_rows())
    assert titles[0] == "Film 0"
    assert titles[5] is None
    assert dataset.info.dropped["catalogue_rows_without_item"] == 1
    assert dataset.info.dropped["items_without_catalogue_row"] == dataset.num_items - 3


def test_ready_split_files_are_taken_as_they_are(re4: Run, tmp_path: Path) -> None:
    text = {"train": "1 10 11 10\n2 10\n", "valid": "3 11 10 12\n", "test": "4 12 10\n5 13\n"}
    words: list[object] = []
    for split, lines in text.items():
        file = tmp_path / f"{split}.gz"
        file.write_bytes(gzip.compress(lines.encode()))
        words += [f"--{split}", file]
    code, _, _ = re4("prepare", "--format", "sequences", *words, "--out", tmp_path / "out")
    assert code == 0
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.items()["item_id"].to_list() == [10, 11, 12, 13]
    assert dataset.train.items_E.tolist() == [0, 1, 0, 0]
    assert dataset.valid.items_E.tolist() == [1, 0, 2]
    assert dataset.valid.num_history_U.tolist() == [2]
    assert dataset.users("test").to_list() == [4]
    assert dataset.info.dropped == {"held_out_users_with_one_event": 1, "items_never_in_train": 2}


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "--events FILE"),
        (["--format", "sequences", "--train", "t"], "--valid, --test"),
        (["--format", "sequences", "--events", "e", "--split", "time"], "--events, --split"),
        (["--events", "e", "--train", "t"], "--train cannot be used with --format events"),
        (["--events", "e", "--min-events", "0"], "at least 1"),
    ],
)
def test_wrong_words_exit_with_2_and_write_nothing(
    words: list[str], part: str, re4: Run, tmp_path: Path
) -> None:
    code, out, err = re4("prepare", *words, "--out", tmp_path / "out")
    assert code == 2
    assert part in " ".join(err.split())
    assert out == ""
    assert not (tmp_path / "out").exists()


def test_bad_data_exits_with_1_a_reason_and_no_stack_trace(
    re4: Run, event_csv: Write, tmp_path: Path
) -> None:
    code, out, err = re4("prepare", "--events", event_csv([(1, 2, "soon")]), "--out", tmp_path / "out")
    assert code == 1
    assert "event 1: 'soon'" in err
    assert "Traceback" not in err
    assert out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["events.csv"]


def test_a_destination_in_use_is_refused_and_kept(re4: Run, event_csv: Write, tmp_path: Path) -> None:
    file = event_csv(shop())
    re4("prepare", "--events", file, "--out", tmp_path / "shop")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "shop").iterdir()}
    code, _, err = re4("prepare", "--events", file, "--out", tmp_path / "shop")
    assert code == 1
    assert "not empty" in err
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "shop").iterdir()} == before


def test_an_unknown_data_set_is_wrong_use(re4: Run, tmp_path: Path) -> None:
    code, _, err = re4("fetch", "netflix", "--out", tmp_path / "x")
    assert code == 2
    assert "ml-100k" in err


def test_asking_for_help_loads_nothing_heavy() -> None:
    script = "import sys, re4.training.data.cli; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert "re4.training.data.cli" in loaded
    assert not loaded & {"polars", "numpy", "torch", "pydantic"}


def test_events_from_the_future_are_dropped_and_shown(re4: Run, event_csv: Write, tmp_path: Path) -> None:
    odd: list[Row] = [("u001", 3, 4_102_444_800), ("u002", 5, 4_102_444_801)]
    code, out, printed = re4("prepare", "--events", event_csv([*odd, *shop()]), "--out", tmp_path / "shop")
    assert code == 0
    info = Dataset.open(tmp_path / "shop").info
    assert info.dropped["events_from_the_future"] == 2
    assert info.prepared["last_event"].startswith("2020-09-13")
    assert "from the future: user 'u001', item 3, 2100-01-01" in printed
    assert "events from the future" in out


def test_a_log_that_is_all_future_is_refused(re4: Run, event_csv: Write, tmp_path: Path) -> None:
    rows: list[Row] = [(user, item, time * 2) for user, item, time in shop()]
    code, _, printed = re4("prepare", "--events", event_csv(rows), "--out", tmp_path / "shop")
    assert code == 1
    assert "every event lies in the future" in printed
    assert not (tmp_path / "shop").exists()


def test_of_a_robot_only_the_newest_events_stay(re4: Run, event_csv: Write, tmp_path: Path) -> None:
    robot: list[Row] = [("robot", event % 40, 1_500_000_000 + event) for event in range(500)]
    future: Row = ("robot", 1, 4_102_444_800)
    words = ("--min-events", 1, "--max-user-events", 30, "--split", "time")
    file = event_csv([*robot, *shop(), future])
    code, _, printed = re4("prepare", "--events", file, "--out", tmp_path / "shop", *words)
    assert code == 0
    dataset = Dataset.open(tmp_path / "shop")
    assert dataset.info.dropped["users_with_too_many_events"] == 1
    assert dataset.info.dropped["older_events_of_users_with_too_many"] == 470
    assert "too many events: user 'robot' has 500" in printed
    assert dataset.info.prepared["first_event"].startswith("2017-07-14T02:47"), "its oldest are gone"
