"""One comparison of indexes from its options to its report.

Measurements stay in the work folder, an engine at one number of threads each, so that a report may combine
several calls. A later measurement takes the place of an earlier one.
"""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from re4.benchmarks.common.machine import describe_machine
from re4.benchmarks.common.report import Content, command_line, now_utc, write_report
from re4.benchmarks.index.frontiers import PEERS, frontiers_of, peer_frontiers
from re4.benchmarks.index.inputs import INTERESTS, VECTORS, Source, prepare
from re4.benchmarks.index.options import IndexOptions
from re4.benchmarks.index.report import draw, pareto_only, render_markdown
from re4.common.errors import UsageError
from re4.common.files import write_json
from re4.exporting.index.tuning import BATCH_SIZE

_log = logging.getLogger(__name__)

_MEASURED: Final = "measured"


def run(options: IndexOptions) -> dict[str, Any]:
    """Measure, write the report's files, and return the report."""
    peers = {"all": PEERS, "none": ()}.get(options.peers) or tuple(
        name for name in options.peers.split(",") if name != "none"
    )
    if unknown := sorted(set(peers) - set(PEERS)):
        raise UsageError(f"--peers {','.join(unknown)}: there are {', '.join(PEERS)}")
    num_cpus = len(os.sched_getaffinity(0))
    try:
        threads = [num_cpus if text == "all" else int(text) for text in options.threads.split(",")]
    except ValueError:
        raise UsageError(f"--threads {options.threads}: numbers or all, by commas") from None
    machine, work = describe_machine(), options.work
    source = Source(
        num_items=options.num_items,
        num_interests=options.num_interests,
        run=options.run,
        bundles=options.bundles,
    )
    _log.info(f"vectors, interests, exact answers: {source}")
    question = {"num_requests": options.num_requests, "num_candidates": options.num_candidates}
    prepare(source, work, **question)
    engines: list[dict[str, Any]] = []
    for kind in split_kinds(options.kinds):
        _log.info(f"{kind} …")
        for found in frontiers_of(
            kind, work, **question, threads=threads, has_equal_budget=options.equal_budget
        ):
            engines.append(_keep(found, work, question))
    for found in peer_frontiers(peers, work, **question, threads=threads, limit_s=options.peer_limit_s):
        _log.info(f"{found['engine']}: {found.get('skipped', 'measured')}")
        engines.append(_keep({**found, "is_peer": True}, work, question))
    if options.combine:
        engines = _kept(work, question)
        threads = sorted({point["threads"] for engine in engines for point in engine["points"]})
    num_vectors, dim = np.load(work / VECTORS, mmap_mode="r").shape
    report = {
        "schema_version": 1,
        "created_at": now_utc(),
        "command": command_line(),
        "machine": machine,
        "source": str(source),
        "num_items": num_vectors,
        "embedding_dim": dim,
        "num_interests": np.load(work / INTERESTS, mmap_mode="r").shape[1],
        **question,
        "batch_size": BATCH_SIZE,
        "threads": threads,
        "engines": engines,
    }
    files: dict[str, Content] = {
        "index.json": {**report, "engines": [pareto_only(engine) for engine in engines]},
        "index.md": render_markdown(report),
        "index.png": lambda path: draw(report, path),
    }
    write_report(options.out, files)
    return report


def split_kinds(text: str) -> list[str]:
    """Split by the commas between kinds: a factory string's own commas are followed by no known beginning."""
    kinds: list[str] = []
    for part in [] if text == "none" else text.split(","):
        if kinds and not part.startswith(("flat", "hnsw", "ivf", "HNSW", "IVF")):
            kinds[-1] += f",{part}"
        else:
            kinds.append(part)
    return kinds


def _keep(engine: Mapping[str, Any], folder: Path, question: Mapping[str, Any]) -> dict[str, Any]:
    """Write a file for each number of threads; return the figures with the time and the load average."""
    stamped = {**engine, "measured_at": now_utc(), "load_average": round(os.getloadavg()[0], 1)}
    for num_threads in {point["threads"] for point in engine.get("points", [])}:
        points = [point for point in engine["points"] if point["threads"] == num_threads]
        path = folder / _MEASURED / f"{engine['engine']}-{num_threads}.json"
        path.parent.mkdir(exist_ok=True)
        write_json(path, {"question": question, "engine": {**stamped, "points": points}})
    return stamped


def _kept(folder: Path, question: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every engine that was measured with this question, with all its points, oldest first."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((folder / _MEASURED).glob("*.json"), key=lambda path: path.stat().st_mtime_ns):
        part = json.loads(path.read_text(encoding="utf-8"))
        if part["question"] == question:
            engine = part["engine"]
            points = [*found.get(engine["engine"], {}).get("points", []), *engine["points"]]
            found[engine["engine"]] = {**engine, "points": points}
    return list(found.values())
