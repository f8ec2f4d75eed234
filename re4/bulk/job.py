"""A bulk job: answers all users by worker processes, continues after a kill, and ends with one rename.

OUT.partial/lock            locked while the job runs
OUT.partial/job.json        what was asked for; the same command continues the job
OUT.partial/users.parquet   the users of a store of histories, as they were at the start
OUT.partial/parts/          becomes OUT when all parts and manifest.json are complete
"""

import json
import logging
import math
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Final, cast

import polars as pl

from re4.bulk.users import ParquetUsers, Users, check_some, write_users_of
from re4.bulk.worker import PART_FORMAT, PartDone, WorkerStart, work
from re4.bundle.hidden_ids import read_hidden
from re4.bundle.layout import MANIFEST
from re4.bundle.live_items.reader import LiveItemsReader
from re4.bundle.publishing.current import live_version
from re4.bundle.publishing.version_lease import VersionLease
from re4.bundle.verify import verify_version
from re4.common.console import progress
from re4.common.errors import Re4Error, UsageError
from re4.common.extras import require
from re4.common.file_lock import try_lock
from re4.common.files import parts_in, sync, write_json
from re4.common.ray_cluster import Engine, ray_cluster
from re4.serving.client.values import RetrieveOptions, retrieve_request
from re4.serving.histories.settings import HistorySettings, open_store
from re4.serving.host.cgroups import usable_cores
from re4.serving.host.threads import COMPUTE_ENVIRONMENT
from re4.serving.settings import Fallback

_log = logging.getLogger(__name__)

SCHEMA_VERSION: Final = 1
JOB: Final = "job.json"
MANIFEST_FILE: Final = "manifest.json"
_MAX_PART_USERS: Final = 20_000
_PARTS_PER_WORKER: Final = 4
_QUEUED_PARTS: Final = 2
"""Parts that a worker knows of: the one that it answers and the next one."""


@dataclass(frozen=True, kw_only=True)
class BulkJob:
    """What is asked for."""

    bundles: Path
    """A bundle directory, whose live version answers, or the folder of a version."""
    out: Path
    """The folder to make."""
    users: Users | None
    """None for all users of the store of histories."""
    histories: HistorySettings | None
    """The store of the events before those of the users; None for none."""
    num_candidates: int
    options: RetrieveOptions
    merge_policy: str = "max-score"
    fallback: Fallback = Fallback.NONE
    part_users: int | None = None
    """Users in a part; None for a number that gives every worker some parts."""
    num_processes: int | None = None
    """None for one for each usable core, of all nodes with the engine `ray`."""
    engine: Engine = Engine.LOCAL
    """Worker processes of this machine, or of the nodes of a Ray cluster, which read and write the same
    files."""
    ray_address: str | None = None
    """Address of the cluster; None for the one that Ray finds, or a new one on this machine."""


@dataclass(frozen=True, kw_only=True)
class BulkResult:
    """Counts of a finished job."""

    num_users: int
    num_errors: int
    """Users without candidates; the column `error` has the reasons."""
    num_parts: int
    version: str


def run_bulk(job: BulkJob) -> BulkResult:
    """Answer all users, or continue a job that was stopped; the folder appears when all parts are complete.

    Raises:
        UsageError: the folder exists, another process makes it, or another job was begun there.
        RequestError: a value that a request must not have.
        DataError: the users cannot be read, or have ids of another kind.
        BundleError: the version cannot be used.
        HistoryStoreError: the store of histories cannot be used. What was answered is kept.
    """
    retrieve_request((), job.num_candidates, (), job.options)
    with _partial_folder(job.out) as folder, _workers(job) as workers:
        found = _answer(job, folder, workers)
        parts = folder / "parts"
        write_json(parts / MANIFEST_FILE, found)
        sync(parts)
        try:
            parts.rename(job.out)
        except OSError as error:
            raise UsageError(
                f"{job.out} cannot be made: {error}. The finished parts are in {parts}"
            ) from None
        sync(job.out.parent)
        shutil.rmtree(folder, ignore_errors=True)
    return BulkResult(
        num_users=found["num_users"],
        num_errors=found["num_errors"],
        num_parts=len(found["parts"]),
        version=found["version"],
    )


@dataclass(frozen=True)
class _Workers:
    """The workers of a job."""

    number: int
    write_parts: Callable[[WorkerStart, list[int]], Iterator[PartDone]]


@contextmanager
def _workers(job: BulkJob) -> Iterator[_Workers]:
    if job.engine == Engine.LOCAL:
        if job.ray_address is not None:
            raise UsageError("--ray-address belongs to --engine ray")
        number = job.num_processes or usable_cores()
        yield _Workers(number, partial(_run_workers, num_processes=number))
        return
    require("--engine ray", "ray")
    from re4.bulk.ray_workers import write_parts

    if job.histories is not None and not job.histories.is_remote:
        raise UsageError(
            f"--histories {job.histories.histories} is a store of one machine; with --engine ray, use Redis "
            "or Valkey, or give --users with a column history"
        )
    with ray_cluster(job.ray_address) as cluster:
        number = job.num_processes or cluster.num_cores
        yield _Workers(number, partial(write_parts, cluster, num_workers=number))


def _answer(job: BulkJob, folder: Path, workers: _Workers) -> dict[str, Any]:
    """Make all parts that are missing, and return the manifest."""
    begun = _begin(job, folder, workers.number)
    version = (job.bundles.parent if _is_version(job.bundles) else job.bundles) / begun["version"]
    users = job.users or ParquetUsers(folder / "users.parquet")
    lease = VersionLease(version)
    try:
        verify_version(version)
        start = WorkerStart(
            version=version,
            hidden=read_hidden(version.parent),
            changes=(changes := LiveItemsReader(version.parent).read()).records,
            users=users,
            histories=job.histories,
            num_candidates=job.num_candidates,
            options=job.options,
            merge_policy=job.merge_policy,
            fallback=job.fallback,
            part_users=begun["part_users"],
            parts=folder / "parts",
        )
        begun["runs"].append(
            {
                "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "num_hidden_items": len(start.hidden.ids),
                "live_sequence": changes.sequence,
            }
        )
        write_json(folder / JOB, begun)
        num_parts = math.ceil(users.num_users / start.part_users)
        done = _finished(start.parts, num_parts)
        if done:
            _log.info(f"{len(done):,} of {num_parts:,} parts were finished before")
        missing = [number for number in range(num_parts) if number not in done]
        with progress(f"candidates for {users.num_users:,} users", users.num_users) as bar:
            bar.advance(sum(each.num_users for each in done.values()))
            for part in workers.write_parts(start, missing):
                done[part.number] = part
                bar.advance(part.num_users)
    finally:
        lease.release()
    for left in parts_in(start.parts):  # of workers that ended
        left.unlink()
    return begun | {
        "num_users": sum(each.num_users for each in done.values()),
        "num_errors": sum(each.num_errors for each in done.values()),
        "parts": [
            {
                "name": PART_FORMAT.format(number),
                "num_users": done[number].num_users,
                "num_errors": done[number].num_errors,
                "num_bytes": (start.parts / PART_FORMAT.format(number)).stat().st_size,
            }
            for number in range(num_parts)
        ],
    }


def _begin(job: BulkJob, folder: Path, num_workers: int) -> dict[str, Any]:
    """Return the facts of the job, written at its first start.

    Raises:
        UsageError: another job was begun in the folder.
    """
    asked: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "num_candidates": job.num_candidates,
        "options": {**job.options, "filters": [asdict(each) for each in job.options.get("filters", ())]},
        "merge_policy": job.merge_policy,
        "fallback": job.fallback.value,
        "histories": None if job.histories is None else job.histories.histories,
        "source": "histories" if job.users is None else job.users.identity,
    }
    asked = json.loads(json.dumps(asked, default=str))  # to compare it with what was written
    (folder / "parts").mkdir(exist_ok=True)
    for left in parts_in(folder / "parts"):
        left.unlink()
    if (folder / JOB).exists():
        begun: dict[str, Any] = json.loads((folder / JOB).read_text("utf-8"))
        if different := [name for name, value in asked.items() if begun.get(name) != value]:
            raise UsageError(
                f"{folder} holds the finished parts of another job: {', '.join(different)} differ. Give the "
                "same options and the same users, to continue it, or remove the folder"
            )
        return begun
    if job.users is None:
        store = None if job.histories is None else open_store(job.histories, None)
        if store is None:
            raise UsageError("which users? Give --users, --dataset, or a store of histories by --histories")
        write_users_of(store, folder / "users.parquet")
        store.close()
    users = job.users or ParquetUsers(folder / "users.parquet")
    check_some(users, "the store of histories" if job.users is None else str(getattr(users, "path", users)))
    even = math.ceil(users.num_users / (_PARTS_PER_WORKER * num_workers))
    version = job.bundles if _is_version(job.bundles) else live_version(job.bundles)
    return asked | {
        "version": version.name,
        "part_users": job.part_users or min(_MAX_PART_USERS, even),
        "runs": [],
    }


def _run_workers(start: WorkerStart, numbers: list[int], num_processes: int) -> Iterator[PartDone]:
    """Answer parts by worker processes, and yield each when it is finished.

    Raises:
        Re4Error: a worker reported an error, or died.
    """
    context = multiprocessing.get_context("spawn")
    todo = iter(numbers)
    queued: dict[Connection, int] = {}
    workers: dict[Connection, Any] = {}
    try:
        for _ in range(min(num_processes, len(numbers))):
            own, other = context.Pipe()
            process = context.Process(target=work, args=(other, start), daemon=True)
            with _environment({**COMPUTE_ENVIRONMENT, "POLARS_MAX_THREADS": "1"}):
                process.start()
            other.close()
            workers[own], queued[own] = process, 0
        for connection in workers:
            _queue(connection, todo, queued, _QUEUED_PARTS)
        while any(queued.values()):
            busy: list[Any] = [each for each, count in queued.items() if count]
            for connection in cast("list[Connection]", wait(busy)):
                try:
                    report = connection.recv()
                except (EOFError, ConnectionResetError):
                    workers[connection].join()
                    raise Re4Error(
                        f"a worker process ended with {workers[connection].exitcode}, perhaps for lack of "
                        "memory. The finished parts are kept: the same command continues the job"
                    ) from None
                if isinstance(report, Re4Error):
                    raise report
                queued[connection] -= 1
                _queue(connection, todo, queued, 1)
                yield report
    finally:
        for connection, process in workers.items():
            connection.close()  # ends the worker
            process.join()


def _queue(connection: Connection, todo: Iterator[int], queued: dict[Connection, int], count: int) -> None:
    for _, number in zip(range(count), todo, strict=False):
        with suppress(BrokenPipeError):  # its end is seen by the next read
            connection.send(number)
        queued[connection] += 1


def _finished(parts: Path, num_parts: int) -> dict[int, PartDone]:
    """Return the parts that are complete: a part gets its name when it is."""
    found = {}
    for number in range(num_parts):
        path = parts / PART_FORMAT.format(number)
        if path.exists():
            counts = pl.scan_parquet(path).select(pl.len(), pl.col("error").count().alias("errors")).collect()
            found[number] = PartDone(number, *counts.row(0))
    return found


def _is_version(path: Path) -> bool:
    return (path / MANIFEST).exists()


@contextmanager
def _partial_folder(out: Path) -> Iterator[Path]:
    """Give the locked folder of a job.

    Raises:
        UsageError: `out` exists, the folder cannot be made, or another process works there.
    """
    if out.exists():
        raise UsageError(f"--out {out} exists; give the name of a folder to make")
    folder = out.with_name(f"{out.name}.partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = try_lock(folder)
    except OSError as error:
        raise UsageError(f"{folder} cannot be made: {error}") from None
    if lock is None:
        raise UsageError(f"another process works on {folder}")
    try:
        yield folder
    finally:
        os.close(lock)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the processes that the block starts."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
