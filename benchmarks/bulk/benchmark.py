"""`re4 bulk`, the pipeline alone and BatchRetrieve of a server in turns, each on one core, in CPU time."""

import os
import resource
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import polars as pl

from re4.benchmarks.bulk.options import BulkOptions
from re4.benchmarks.common.machine import describe_idle_machine
from re4.benchmarks.common.pinning import on_core, two_cores
from re4.benchmarks.common.report import now_utc, write_report
from re4.benchmarks.load_generator.requests import choose_histories
from re4.benchmarks.load_generator.server import running_server, server_info
from re4.benchmarks.overhead.measure import pipeline_process, re4_server
from re4.bundle.publishing.current import live_version
from re4.common.errors import Re4Error
from re4.protos.v1 import retrieval_pb2

JSON_FILE: Final = "bulk.json"
_SCHEMA_VERSION: Final = 1
_LARGE: Final = 4
"""Users of the large job, in those of the small one."""


def run(options: BulkOptions) -> dict[str, Any]:
    """Measure, write `bulk.json`, and return it."""
    cores = two_cores()
    machine, load_average = describe_idle_machine(), os.getloadavg()[0]
    with running_server(options.bundles, num_processes=1) as (address, _):
        info = server_info(address)
        histories = choose_histories(
            info, data=options.data, ids=None, bundles=options.bundles, seed=options.seed
        )
    payloads = histories.payloads(num_candidates=options.num_candidates, exclude_history=False)
    rounds: defaultdict[str, list[float]] = defaultdict(list)
    with TemporaryDirectory() as work:
        users = {times: Path(work) / f"users-{times}.parquet" for times in (1, _LARGE)}
        for times, path in users.items():
            _write_users(path, payloads, times * options.num_users)
        for _ in range(options.num_rounds):
            for name, figure in _measure(options, payloads, users, cores, Path(work)).items():
                rounds[name].append(figure)
    medians = {name: statistics.median(figures) for name, figures in rounds.items()}
    report = {
        "schema_version": _SCHEMA_VERSION,
        "created_at": now_utc(),
        "machine": machine,
        "load_average": load_average,
        "version": info["version"],
        "num_items": info["num_items"],
        "num_candidates": options.num_candidates,
        "num_users": options.num_users,
        "num_rounds": options.num_rounds,
        **{
            name: {
                "cpu_us": medians[name],
                "rate_of_pipeline": medians["pipeline"] / medians[name],
                "rounds_cpu_us": rounds[name],
            }
            for name in ("pipeline", "bulk", "server")
        },
    }
    report["bulk"]["start_cpu_s"] = medians["start_s"]
    write_report(options.out, {JSON_FILE: report})
    return report


def _measure(
    options: BulkOptions, payloads: list[bytes], users: dict[int, Path], cores: tuple[int, int], work: Path
) -> dict[str, float]:
    """Return the CPU time of a user of each part in microseconds, and that of a job's start in seconds."""
    version = live_version(options.bundles)
    with pipeline_process(version, payloads, core=cores[0], device="cpu") as pipeline:
        pipeline_us = pipeline.measure(options.seconds)["batched_cpu_us"]
    with on_core(cores[0]):
        seconds = {times: _bulk_cpu_s(options, path, work) for times, path in users.items()}
    bulk_s = (seconds[_LARGE] - seconds[1]) / ((_LARGE - 1) * options.num_users)
    with re4_server(options.bundles, payloads, cores, "cpu") as server:
        batch = server.measure(options.seconds)["batch"]
    return {
        "pipeline": pipeline_us,
        "bulk": 1e6 * bulk_s,
        "server": batch["cpu_us"],
        "start_s": seconds[1] - bulk_s * options.num_users,
    }


def _bulk_cpu_s(options: BulkOptions, users: Path, work: Path) -> float:
    """Return the CPU time of a job by one process."""
    words = ["bulk", "--bundles", options.bundles, "--users", users, "--out", work / "out"]
    words += ["--num-candidates", options.num_candidates, "--num-processes", 1]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "re4.cli", *map(str, words)], capture_output=True, text=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise Re4Error(f"re4 bulk ended with code {done.returncode}: {done.stderr.strip()}")
    for path in (work / "out").iterdir():
        path.unlink()
    (work / "out").rmdir()
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _write_users(path: Path, payloads: list[bytes], num_users: int) -> None:
    requests = [retrieval_pb2.RetrieveRequest.FromString(each) for each in payloads]
    histories = [list(each.history.strings or each.history.ints) for each in requests]
    in_turn = [histories[place % len(histories)] for place in range(num_users)]
    pl.DataFrame({"user_id": range(num_users), "history": in_turn}).write_parquet(path)
