"""`--engine ray` gives what the local engine gives, on a cluster of real nodes that can die."""

import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pytest
from small_bundles import SmallVersion

from re4 import DataError, UsageError, prepare_data
from re4.bulk.job import BulkJob, run_bulk
from re4.bulk.users import ParquetUsers
from re4.bulk.worker import PartDone
from re4.common import extras
from re4.common.errors import Re4Error
from re4.common.ray_cluster import Engine, RayCluster
from re4.serving.histories.settings import HistorySettings
from re4.training.data.distributed import engine as engines
from re4.training.data.distributed.chunks import Chunk, LogFormat
from re4.training.data.distributed.reading import Exchange, exchange_chunk
from re4.training.data.distributed.survey import Sizes
from re4.training.data.events import Columns
from re4.training.data.tables.tombstones import FORGOTTEN

TIME = 1_700_000_000
NOW_S = 1_800_000_000.0
SMALL = Sizes(chunk_rows=700, chunk_bytes=20_000, partition_events=900, range_items=60, slab_events=1_000)
"""Of which a small log has several of everything."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one core each."""
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        node = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
        nodes = Cluster(initialize_head=True, head_node_args=node)
        nodes.add_node(num_cpus=1, object_store_memory=100 << 20)
        ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
        yield nodes
        ray.shutdown()
        nodes.shutdown()


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "Sizes", lambda: SMALL)


def rows(seed: int, num_events: int = 4_000, num_users: int = 150, num_items: int = 200) -> pl.DataFrame:
    """Return events of skewed users and items, with equal times, duplicates, a robot and some of tomorrow."""
    rng = np.random.default_rng(seed)
    users, items = rng.zipf(1.4, num_events) % num_users, rng.zipf(1.3, num_events) % num_items
    times = TIME + 3_600 * rng.integers(0, 2_000, num_events)
    times[rng.integers(0, num_events, 20)] += 3 * 10**8
    robot = np.full(1_500, num_users)
    table = pl.DataFrame(
        {
            "user": np.concatenate([users, robot]),
            "item": np.concatenate([items, rng.integers(0, 2 * num_items, 1_500)]),
            "timestamp": np.concatenate([times, TIME + np.arange(1_500)]),
        }
    )
    return pl.concat([table, table.sample(100, seed=seed)]).sample(fraction=1.0, shuffle=True, seed=seed)


def write_parts(folder: Path, table: pl.DataFrame, suffix: str = ".parquet") -> Path:
    """Write a table as three files."""
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, len(table), len(table) // 3 + 1)):
        part = table[start : start + len(table) // 3 + 1]
        path = folder / f"{number}{suffix}"
        {".parquet": part.write_parquet, ".csv": part.write_csv, ".jsonl": part.write_ndjson}[suffix](path)
    return folder


def texts(table: pl.DataFrame) -> pl.DataFrame:
    return table.with_columns(
        user=pl.format("user-{}", "user"), item=pl.format("item-{}-é", pl.col("item").cast(pl.String))
    )


def messy(table: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Return a table of texts with gaps and times of several notations."""
    rng = random.Random(seed)
    columns = {name: table[name].cast(pl.String).to_list() for name in table.columns}
    for name, column in columns.items():
        for place in rng.sample(range(len(column)), 30):
            column[place] = None if name != "timestamp" else rng.choice([None, "soon", "2024-01-01", "17e11"])
    return pl.DataFrame(columns)


@dataclass
class Log:
    """A log with options."""

    write: Callable[[Path], Path]
    options: dict[str, Any]


def _typed(folder: Path) -> Path:
    table = texts(rows(3))
    kinds = pl.Series(["view", "buy", None, "look"]).sample(len(table), with_replacement=True, seed=1)
    return write_parts(folder, table.with_columns(kind=kinds), ".jsonl")


def _forgotten(folder: Path) -> Path:
    write_parts(folder, rows(4).with_columns(pl.col("timestamp") * 1_000))
    (folder / FORGOTTEN).mkdir()
    digest = sha256(b"7").hexdigest()
    until_ms = (TIME + 3_600 * 900) * 1_000
    note = {"user_sha256": digest, "until_ms": until_ms}
    (folder / FORGOTTEN / "a.jsonl").write_text(json.dumps(note) + "\n")
    return folder


def _one_csv(folder: Path) -> Path:
    folder.mkdir()
    table = rows(5).with_columns(
        pl.col("timestamp").map_elements(
            lambda each: datetime.fromtimestamp(each, UTC).isoformat(), return_dtype=pl.String
        )
    )
    table.write_csv(folder / "log.csv")
    return folder / "log.csv"


def _damaged(folder: Path) -> Path:
    write_parts(folder, messy(rows(6), 6), ".csv")
    path = folder / "1.csv"
    path.write_text(path.read_text().replace("\n", "\n1,2,3,4,5\n", 3))
    return folder


LOGS = {
    "texts, most items are dropped": Log(
        lambda folder: write_parts(folder, texts(rows(1, 3_000, 150, 900))), {"min_events": 8}
    ),
    "integers, few users": Log(
        lambda folder: write_parts(folder, rows(2, 300, 40, 30)), {"min_events": 2, "seed": 5}
    ),
    "types of events": Log(
        _typed,
        {"event_column": "kind", "event_types": ["buy", "view"], "min_events": 3, "max_user_events": 40},
    ),
    "forgotten users, by time": Log(_forgotten, {"split": "time", "min_events": 1}),
    "one file of text, given cuts": Log(
        _one_csv, {"split": "time", "cuts": ("2023-12-20", "2024-01-20T12:00:00Z")}
    ),
    "damaged, and a cap": Log(_damaged, {"drop_invalid": True, "max_user_events": 100, "min_events": 4}),
    "gaps in a typed table": Log(
        lambda folder: write_parts(
            folder,
            rows(7).with_columns(
                user=pl.when(pl.col("user") % 13 > 0).then(pl.col("user").cast(pl.Float64)),
                timestamp=pl.col("timestamp") / pl.when(pl.col("item") == 3).then(1e3).otherwise(1.0),
            ),
        ),
        {"drop_invalid": True, "split": "time"},
    ),
}


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def by_both(log: Path, tmp_path: Path, **options: Any) -> tuple[Path, Path]:
    """Prepare a log by both engines."""
    out = []
    for engine in ("local", "ray"):
        out.append(tmp_path / engine / "data")
        prepare_data(log, out[-1], engine=engine, now_s=NOW_S, **options)
    return out[0], out[1]


@pytest.mark.parametrize("name", LOGS)
def test_the_data_set_of_a_cluster_is_that_of_one_machine(
    cluster: Any, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "re4")
    log = LOGS[name].write(tmp_path / "log")
    catalogue = tmp_path / "catalogue.csv"
    ids = texts(rows(1))["item"] if "texts" in name or "types" in name else pl.Series(range(100))
    pl.DataFrame({"item": ids.unique(maintain_order=True)}).with_columns(title=pl.col("item")).write_csv(
        catalogue
    )
    local, ray = by_both(
        log, tmp_path, catalogue=catalogue, catalogue_item_column="item", **LOGS[name].options
    )
    assert json.loads((local / "dataset.json").read_text()) == json.loads((ray / "dataset.json").read_text())
    assert files_of(local) == files_of(ray)
    half = len(caplog.messages) // 2
    assert caplog.messages[:half] == caplog.messages[half:], "the examples of dropped events"


def _bad(**columns: Any) -> Callable[[Path], Path]:
    usual = {"user": [1, 2, 3] * 400, "item": [4, 5] * 600, "timestamp": [TIME] * 1_200}
    return lambda folder: write_parts(folder, pl.DataFrame(usual | columns))


@pytest.mark.parametrize(
    ("write", "options"),
    [
        (_bad(user=[1, None, 3] * 400), {}),
        (_bad(user=[1.5] * 1_200), {}),
        (_bad(timestamp=["1", "soon", "3"] * 400), {}),
        (_bad(timestamp=[TIME, TIME * 1_000] * 600), {}),
        (_bad(timestamp=[True] * 1_200), {}),
        (_bad(timestamp=[TIME * 9] * 1_200), {}),
        (_bad(user=list(range(1_200))), {}),
        (_bad(), {}),
        (_bad(), {"split": "time"}),
        (_bad(), {"split": "time", "cuts": ("2024-01-02", "2024-01-01")}),
        (_bad(), {"user_column": "visitor"}),
        (_bad(kind=["buy"] * 1_200), {"event_column": "kind", "event_types": ["view"]}),
        (_bad(item=[None] * 1_200), {"drop_invalid": True}),
        (lambda folder: folder / "none.parquet", {}),
    ],
)
def test_errors_are_those_of_the_local_engine(
    cluster: Any, tmp_path: Path, write: Callable[[Path], Path], options: dict[str, Any]
) -> None:
    log, messages = write(tmp_path / "log"), []
    for engine in ("local", "ray"):
        with pytest.raises((DataError, UsageError)) as error:
            prepare_data(log, tmp_path / "data", engine=engine, now_s=NOW_S, **options)
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert {path.name for path in tmp_path.iterdir()} <= {"log"}, "nothing is left"


def test_a_node_that_dies_is_made_up_for(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = write_parts(tmp_path / "log", texts(rows(9)))
    node = cluster.add_node(num_cpus=2, object_store_memory=100 << 20)
    cluster.wait_for_nodes()
    results, killed = RayCluster.results, []

    def with_an_accident(self: RayCluster, references: Any, note: Any, title: str) -> Any:
        if title.startswith("dropping infrequent") and not killed:
            killed.append(node)
            cluster.remove_node(node, allow_graceful=False)
        return results(self, references, note, title)

    monkeypatch.setattr(RayCluster, "results", with_an_accident)
    local, ray = by_both(log, tmp_path)
    assert killed
    assert files_of(local) == files_of(ray)


def test_items_with_equal_hashes_are_told_apart(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = write_parts(tmp_path / "log", texts(rows(1, 1_000, 60, 30)))
    monkeypatch.setattr(engines, "Sizes", lambda: Sizes(key_bits=12))
    local, ray = by_both(log, tmp_path, min_events=1)
    assert files_of(local) == files_of(ray)
    monkeypatch.setattr(engines, "Sizes", lambda: Sizes(key_bits=3))
    with pytest.raises(Re4Error, match="equal hashes under 4 seeds"):
        prepare_data(log, tmp_path / "data", engine="ray")


def test_options_that_the_engine_does_not_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = rows(1)
    with pytest.raises(UsageError, match="--ray-address belongs to --engine ray"):
        prepare_data(table, tmp_path / "data", ray_address="auto")
    with pytest.raises(UsageError, match="choose one of local, ray"):
        prepare_data(table, tmp_path / "data", engine="dask")  # type: ignore[arg-type]
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(UsageError, match=r"--ray-address 127\.0\.0\.1:9: no connection to a Ray cluster"):
        prepare_data(table, tmp_path / "data", engine="ray", ray_address="127.0.0.1:9")
    monkeypatch.setattr(extras, "find_spec", lambda module: None)
    with pytest.raises(UsageError, match=r"pip install 're4-retrieval\[ray\]'"):
        prepare_data(table, tmp_path / "data", engine="ray")


def test_a_node_with_other_versions_is_refused(tmp_path: Path) -> None:
    table = rows(1)
    table.write_parquet(tmp_path / "log.parquet")
    log = LogFormat(
        suffix=".parquet",
        schema=table.schema,
        untyped=False,
        columns=Columns(),
        event_types=(),
        is_damaged=False,
    )
    exchange = Exchange(
        kinds={"user": "int", "item": "int"},
        time_form=pl.Int64(),
        units_per_second=1.0,
        votes=None,
        tombstones={},
        num_user_partitions=2,
        num_item_partitions=1,
    )
    chunk = Chunk(tmp_path / "log.parquet")
    assert len(exchange_chunk(log, exchange, chunk)) == 4
    with pytest.raises(Re4Error, match=r"has other versions: re4 .*, and not re4 0, polars 1, or hashes"):
        exchange_chunk(log, replace(exchange, probe=["re4 0, polars 1", *exchange.probe[1:]]), chunk)


def test_a_data_frame_is_refused(cluster: Any, tmp_path: Path) -> None:
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    with pytest.raises(UsageError, match="write the data frame as parquet"):
        prepare_data(rows(1), tmp_path / "data", engine="ray")


@pytest.fixture(scope="module")
def population(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `bundles` and `users.parquet`."""
    folder = tmp_path_factory.mktemp("population")
    SmallVersion().publish(folder / "bundles")
    histories = [[f"item-{(7 * user + i) % 70}-é" for i in range(user % 6)] for user in range(90)]
    pl.DataFrame({"user_id": range(90), "history": histories}).write_parquet(folder / "users.parquet")
    return folder


def bulk(population: Path, out: Path, **fields: Any) -> dict[str, bytes]:
    """Run a job; return its files, without the times of its runs."""
    usual: dict[str, Any] = {"users": ParquetUsers(population / "users.parquet"), "histories": None}
    usual |= {"num_candidates": 12, "options": {}, "part_users": 5, "num_processes": 1}
    run_bulk(BulkJob(bundles=population / "bundles", out=out, **(usual | fields)))
    files = files_of(out)
    manifest = json.loads(files["manifest.json"])
    del manifest["runs"]
    assert not out.with_name(f"{out.name}.partial").exists()
    return files | {"manifest.json": json.dumps(manifest).encode()}


def kill_node(cluster: Any, node: Any) -> None:
    """End a node and at once its workers, which would otherwise go on until they miss it."""
    (raylet,) = node.all_processes["raylet"]
    workers = psutil.Process(raylet.process.pid).children(recursive=True)
    cluster.remove_node(node, allow_graceful=False)
    for worker in workers:
        with suppress(psutil.NoSuchProcess):
            worker.kill()


def test_the_candidates_of_a_cluster_are_those_of_one_machine(
    cluster: Any, population: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when a node dies, and when the job is stopped and continued."""
    local = bulk(population, tmp_path / "local")
    node = cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
    cluster.wait_for_nodes()
    first_completed, seen = RayCluster.first_completed, []

    def with_accidents(self: RayCluster, references: Any) -> Any:
        if not seen:  # until all three workers are open
            self._ray.wait(references, num_returns=len(references))
        call, result = first_completed(self, references)
        seen.append(result)
        if len(seen) == 3:
            kill_node(cluster, node)
        if None in seen and "stopped" not in seen and isinstance(result, PartDone):
            seen.append("stopped")
            raise KeyboardInterrupt
        return call, result

    monkeypatch.setattr(RayCluster, "first_completed", with_accidents)
    with pytest.raises(KeyboardInterrupt):
        bulk(population, tmp_path / "ray", engine=Engine.RAY, num_processes=3)
    assert not (tmp_path / "ray").exists()
    finished = {
        path.name: path.stat().st_mtime_ns for path in (tmp_path / "ray.partial/parts").glob("part-*")
    }
    assert finished
    assert bulk(population, tmp_path / "ray", engine=Engine.RAY) == local
    assert (
        finished.items()
        <= {path.name: path.stat().st_mtime_ns for path in (tmp_path / "ray").iterdir()}.items()
    )


def test_jobs_that_a_cluster_cannot_do_are_refused(cluster: Any, population: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a store of one machine; with --engine ray, use Redis or Valkey"):
        bulk(population, tmp_path / "out", engine=Engine.RAY, histories=HistorySettings(histories="/folder"))
    with pytest.raises(UsageError, match="--ray-address belongs to --engine ray"):
        bulk(population, tmp_path / "out", ray_address="auto")
    pl.DataFrame({"user_id": [1], "history": [[5]]}).write_parquet(tmp_path / "users.parquet")
    with pytest.raises(DataError, match=r"history holds ids such as 5; those of version .* texts"):
        bulk(population, tmp_path / "out", engine=Engine.RAY, users=ParquetUsers(tmp_path / "users.parquet"))
    assert not (tmp_path / "out").exists()
