"""`re4 bulk` gives every user the candidates of `BatchRetrieve`, and its folder appears complete."""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from running_server import DEADLINE_S, RE4, RunningServer
from small_bundles import SmallVersion

from re4 import AttributeFilter, Candidates, DataError, RetrievalClient, UsageError, prepare_data
from re4.bulk import job as jobs
from re4.bulk.job import BulkJob, run_bulk
from re4.bulk.parts import answer_part
from re4.bulk.users import DatasetUsers, ParquetUsers
from re4.bulk.worker import PART_FORMAT
from re4.bundle.hidden_ids import change_hidden, read_hidden
from re4.bundle.publishing.current import live_version
from re4.bundle.verify import read_manifest
from re4.common.errors import RequestError
from re4.common.file_lock import try_lock
from re4.serving.api.validation import CheckedRequest, check_retrieve
from re4.serving.client.values import retrieve_request
from re4.serving.histories.settings import HistorySettings, open_store
from re4.serving.histories.store import Event, event_mark
from re4.serving.settings import Fallback, ServerSettings
from re4.serving.versions.snapshot import Snapshot, load_snapshot

NUM_USERS = 90
HISTORIES = [[f"item-{(7 * user + i) % 70}-é" for i in range(user % 6)] for user in range(NUM_USERS)]
"""Some are empty, and ten items are unknown."""
EXCLUDED = [[f"item-{user % 60}-é"] if user % 3 else [] for user in range(NUM_USERS)]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "bundles"
    SmallVersion(has_attributes=True).publish(folder)
    change_hidden(folder, hide=["item-7-é", "item-8-é"], kind="string")
    settings = HistorySettings(histories=f"{folder}.histories")
    store = open_store(settings, None)
    assert store is not None
    now = 1_900_000_000_000
    store.append(
        [
            Event(f"u{user}", now + place, event_mark(f"{user}-{place}", item), item)
            for user, history in enumerate(HISTORIES[:40])
            for place, item in enumerate(history)
        ],
        now,
    )
    store.close()
    return folder


@pytest.fixture(scope="module")
def client(bundles: Path) -> Iterator[RetrievalClient]:
    with RunningServer(bundles) as server, RetrievalClient(server.address) as opened:
        yield opened


@pytest.fixture(scope="module")
def snapshot(bundles: Path) -> Snapshot:
    version = live_version(bundles)
    loaded = load_snapshot(version, read_manifest(version), max_batch_size=64)
    return loaded.with_changes(read_hidden(bundles), [])


@pytest.fixture
def users(tmp_path: Path) -> Path:
    """Two files, read in the order of their names."""
    folder = tmp_path / "users"
    folder.mkdir()
    table = pl.DataFrame(
        {"user_id": range(NUM_USERS), "history": HISTORIES, "exclude": EXCLUDED},
        schema_overrides={"history": pl.List(pl.String), "exclude": pl.List(pl.String)},
    )
    table[:50].write_parquet(folder / "a.parquet")
    table[50:].write_parquet(folder / "b.parquet")
    return folder


def job(bundles: Path, out: Path, **fields: Any) -> BulkJob:
    usual: dict[str, Any] = {"users": None, "histories": None, "num_candidates": 12, "options": {}}
    return BulkJob(bundles=bundles, out=out, **(usual | {"num_processes": 1} | fields))


def usual_request(snapshot: Snapshot, options: dict[str, Any] | None = None) -> CheckedRequest:
    return check_retrieve(retrieve_request((), 12, (), options or {}), snapshot, ServerSettings())


def table_of(out: Path) -> pl.DataFrame:
    manifest = json.loads((out / "manifest.json").read_text())
    names = [part["name"] for part in manifest["parts"]]
    assert {path.name for path in out.iterdir()} == {*names, "manifest.json"}
    tables = [pl.read_parquet(out / name) for name in names]
    assert [len(table) for table in tables] == [part["num_users"] for part in manifest["parts"]]
    return pl.concat(tables)


def assert_equal(table: pl.DataFrame, expected: list[Any], *, tolerance: float = 0.0) -> None:
    """Compare with the replies of a server; the last bits of scores depend on the users of a batch."""
    assert len(table) == len(expected)
    for row, answer in zip(table.iter_rows(named=True), expected, strict=True):
        if not isinstance(answer, Candidates):
            assert row["error"] is not None
            assert row["error"] in str(answer)
            assert not row["item_ids"]
            continue
        assert row["error"] is None
        assert row["item_ids"] == answer.item_ids
        assert row["scores"] == pytest.approx(answer.scores.tolist(), rel=0, abs=tolerance)
        if not tolerance:  # a history of one item gives equal interests
            assert row["interests"] == answer.interest_index.tolist()
        assert row["num_unknown_history_ids"] == answer.num_unknown_history_ids
        assert row["is_popularity_fallback"] == answer.is_popularity_fallback
        if "interest_vectors" in row:
            assert row["interest_vectors"] == pytest.approx(
                answer.interests.vectors.reshape(-1), rel=0, abs=tolerance
            )


def test_the_job_gives_the_answers_of_batch_retrieve(
    bundles: Path, client: RetrievalClient, users: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"exclude_history": True, "return_interests": True}
    done = run_bulk(job(bundles, tmp_path / "out", users=ParquetUsers(users), options=options, part_users=64))
    expected = client.retrieve_batch(HISTORIES, 12, exclude=EXCLUDED, **options)
    table = table_of(tmp_path / "out")
    assert table["user_id"].to_list() == list(range(NUM_USERS))
    assert_equal(table, expected)
    assert done.num_users == NUM_USERS
    assert done.num_parts == 2
    assert done.num_errors == sum(not isinstance(each, Candidates) for each in expected)


@pytest.mark.parametrize(
    "options",
    [
        {"merge_policy": "round-robin", "num_new_items": 3},
        {"filters": [AttributeFilter(attribute="colour", values=["red"])], "search_effort": 2.0},
        {"merge_policy": "category-diversity", "diversity": 1.5, "diversity_attribute": "colour"},
    ],
)
def test_options_are_those_of_a_request(
    client: RetrievalClient, snapshot: Snapshot, users: Path, options: dict[str, Any]
) -> None:
    request = usual_request(snapshot, options)
    table = answer_part(ParquetUsers(users).read(0, NUM_USERS), request, None, Fallback.NONE, 64)
    expected = client.retrieve_batch(HISTORIES, 12, exclude=EXCLUDED, **options)
    assert_equal(table, expected)
    if "num_new_items" in options:
        marks = [each.is_new.tolist() for each in expected if isinstance(each, Candidates)]
        assert table.filter(pl.col("error").is_null())["is_new"].to_list() == marks


def test_users_of_a_store_and_of_a_dataset(bundles: Path, client: RetrievalClient, tmp_path: Path) -> None:
    store = HistorySettings(histories=f"{bundles}.histories")
    run_bulk(job(bundles, tmp_path / "stored", histories=store, num_processes=2))
    table = table_of(tmp_path / "stored")
    known = sorted(f"u{user}" for user, history in enumerate(HISTORIES[:40]) if history)
    assert table["user_id"].to_list() == known
    assert_equal(table, client.retrieve_batch([[]] * len(known), 12, user_ids=known), tolerance=1e-4)

    rows = [(f"u{user}", item, place) for user in range(20) for place, item in enumerate(HISTORIES[user])]
    log = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
    prepare_data(log, tmp_path / "data", min_events=1)
    run_bulk(job(bundles, tmp_path / "prepared", users=DatasetUsers(tmp_path / "data")))
    table = table_of(tmp_path / "prepared")
    own = [HISTORIES[int(user[1:])] for user in table["user_id"]]
    assert set(table["user_id"]) > {f"u{user}" for user in range(20) if len(HISTORIES[user]) > 1}
    assert_equal(table, client.retrieve_batch(own, 12), tolerance=1e-4)


def test_stored_events_come_before_those_of_the_table(
    bundles: Path, client: RetrievalClient, snapshot: Snapshot, tmp_path: Path
) -> None:
    table = pl.DataFrame({"user_id": ["u4", "u5", "nobody"], "history": [["item-1-é"]] * 3})
    table.write_parquet(tmp_path / "users.parquet")
    users = ParquetUsers(tmp_path / "users.parquet").read(0, 3)
    store = open_store(HistorySettings(histories=f"{bundles}.histories"), None)
    found = answer_part(users, usual_request(snapshot), store, Fallback.NONE, 64)
    expected = client.retrieve_batch([["item-1-é"]] * 3, 12, user_ids=["u4", "u5", "nobody"])
    assert_equal(found, expected, tolerance=1e-4)


def test_integer_ids_popular_items_and_a_wrong_id(tmp_path: Path) -> None:
    version = SmallVersion(id_kind="int")
    version.publish(tmp_path / "bundles")
    histories = [[1000, 1007], [], None, [5]]
    table = pl.DataFrame({"user_id": list("abcd"), "history": histories})
    table.write_parquet(tmp_path / "users.parquet")
    users = ParquetUsers(tmp_path / "users.parquet")
    run_bulk(job(tmp_path / "bundles", tmp_path / "out", users=users, fallback=Fallback.POPULAR))
    found = table_of(tmp_path / "out")
    assert found["is_popularity_fallback"].to_list() == [False, True, True, True]
    assert found["item_ids"][1].to_list() == [version.ids[row] for row in version.popular_rows[:12]]

    table.with_columns(pl.col("history").cast(pl.List(pl.String))).write_parquet(tmp_path / "texts.parquet")
    with pytest.raises(DataError, match=r"history holds ids such as '1000'; those of version .* integers"):
        run_bulk(
            job(tmp_path / "bundles", tmp_path / "other", users=ParquetUsers(tmp_path / "texts.parquet"))
        )
    assert not (tmp_path / "other").exists()


def test_a_users_wrong_id_is_that_users_error(
    client: RetrievalClient, snapshot: Snapshot, tmp_path: Path
) -> None:
    histories = [["item-1-é"], ["x" * 2000], ["item-2-é"], [""]]
    pl.DataFrame({"user_id": range(4), "history": histories}).write_parquet(tmp_path / "users.parquet")
    users = ParquetUsers(tmp_path / "users.parquet").read(0, 4)
    found = answer_part(users, usual_request(snapshot), None, Fallback.NONE, 64)
    assert_equal(found, client.retrieve_batch(histories, 12), tolerance=1e-4)


def test_a_killed_job_shows_nothing_and_is_continued(
    bundles: Path, users: Path, tmp_path: Path, client: RetrievalClient
) -> None:
    """Killed with the first finished part; its workers end with it, and finished parts are not made again."""
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    words = ["bulk", "--bundles", str(bundles), "--users", str(users), "--out", str(out)]
    words += ["--num-candidates", "12", "--num-processes", "2", "--part-users", "3"]
    with subprocess.Popen([*RE4, *words], stderr=subprocess.PIPE, text=True) as process:
        while not list((partial / "parts").glob("part-*")):
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        assert process.stderr is not None
        process.stderr.read()  # ends when the last worker has ended
        process.wait(DEADLINE_S)
    assert not out.exists()
    finished = {path: path.stat().st_mtime_ns for path in (partial / "parts").glob("part-*")}
    assert 0 < len(finished) < 30
    (partial / "parts" / f".{PART_FORMAT.format(28)}.1.part").write_bytes(b"cut")

    other = subprocess.run([*RE4, *words, "--exclude-history"], capture_output=True, text=True, check=False)
    assert other.returncode == 2
    assert "another job: options differ" in " ".join(other.stderr.split())
    done = subprocess.run([*RE4, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{len(finished)} of 30 parts were finished before" in done.stderr
    assert {out / path.name: time for path, time in finished.items()}.items() <= {
        path: path.stat().st_mtime_ns for path in out.iterdir()
    }.items()
    assert not partial.exists()
    assert_equal(table_of(out), client.retrieve_batch(HISTORIES, 12, exclude=EXCLUDED), tolerance=1e-4)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["num_users"] == NUM_USERS
    assert len(manifest["runs"]) == 2


def test_a_dead_worker_ends_the_job_with_advice(
    bundles: Path, users: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "work", _die)
    with pytest.raises(Exception, match=r"a worker process ended with -9.*continues the job"):
        run_bulk(job(bundles, tmp_path / "out", users=ParquetUsers(users)))
    assert not (tmp_path / "out").exists()


def _die(*_: object) -> None:
    signal.raise_signal(signal.SIGKILL)


def test_what_cannot_be_done_is_refused(bundles: Path, users: Path, tmp_path: Path) -> None:
    def refused(error: type[Exception], message: str, **fields: Any) -> None:
        with pytest.raises(error, match=message):
            run_bulk(job(bundles, **({"out": tmp_path / "out", "users": ParquetUsers(users)} | fields)))

    refused(UsageError, "which users", users=None)
    refused(UsageError, "exists; give the name of a folder to make", out=users)
    refused(RequestError, "merge_policy is 'best'", options={"merge_policy": "best"})
    partial = tmp_path / "out.partial"
    partial.mkdir(exist_ok=True)
    lock = try_lock(partial)
    assert lock is not None
    refused(UsageError, "another process works on")
    for table, message in (
        ({"user": [1]}, "has the columns user; a column user_id"),
        ({"user_id": [1], "history": ["a"]}, "the column history is of type String; it must be a list"),
    ):
        pl.DataFrame(table).write_parquet(tmp_path / "wrong.parquet")
        with pytest.raises(DataError, match=message):
            ParquetUsers(tmp_path / "wrong.parquet")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        ParquetUsers(tmp_path / "missing.parquet")
