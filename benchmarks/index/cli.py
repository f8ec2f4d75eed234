"""The verb `re4 bench index`."""

import os
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from re4.common import console
from re4.common.errors import UsageError


def index(
    work: Annotated[
        Path, typer.Option(help="Folder for vectors and built indexes; what is there is used again.")
    ],
    num_items: Annotated[int, typer.Option(min=100, help="Items of the made-up catalogue.")] = 1_000_000,
    run: Annotated[Path | None, typer.Option(help="A run: its item vectors and held-out histories.")] = None,
    bundles: Annotated[
        Path | None, typer.Option(help="A bundle directory: its live version's vectors, golden histories.")
    ] = None,
    kinds: Annotated[
        str, typer.Option(help="Kinds of index, by commas: names or factory strings as for re4 export.")
    ] = "flat,hnsw,hnsw-sq8,ivf,ivf-sq8,ivf-pq,ivf-rabitq",
    peers: Annotated[
        str, typer.Option(help="Other engines (see make peers), by commas: hnswlib, usearch, …; all; none.")
    ] = "none",
    threads: Annotated[
        str, typer.Option(help="Threads to search with, by commas; all: as many as can.")
    ] = "1",
    num_candidates: Annotated[int, typer.Option(min=1, help="Candidates of a request.")] = 100,
    num_requests: Annotated[int, typer.Option(min=8, help="Requests to ask.")] = 200,
    peer_limit_s: Annotated[float, typer.Option(help="Seconds that a peer may take in all.")] = 3600.0,
    combine: Annotated[
        bool, typer.Option("--combine", help="Report what earlier commands measured in --work as well.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for index.json, index.md, index.png.")] = Path(
        "bench-index"
    ),
    as_json: Annotated[
        bool, typer.Option("--json", help="Answer with the report as one JSON object.")
    ] = False,
) -> None:
    """Measure recall against throughput of each kind of index, and of other engines.

    A request is K searches, one pool of what they found, true scores, and the best of it. One thread is
    timed by its processor time, several by the clock. What was measured stays in --work: with --combine,
    parts measured one after another make one report (--kinds none --peers none: what there is).

    Example: re4 bench index --work /data/million --peers all --threads 1,all
    """
    from re4.benchmarks.common.machine import describe_machine
    from re4.benchmarks.index.material import INTERESTS, VECTORS, Source, prepare
    from re4.benchmarks.index.ours import frontier_of
    from re4.benchmarks.index.parts import keep, kept, stamped
    from re4.benchmarks.index.peers import PEERS, frontiers
    from re4.benchmarks.index.report import markdown, write_report
    from re4.exporting.index.tuning import BATCH_SIZE

    names = {"all": PEERS, "none": ()}.get(peers) or tuple(
        name for name in peers.split(",") if name != "none"
    )
    if unknown := sorted(set(names) - set(PEERS)):
        raise UsageError(f"--peers {','.join(unknown)}: there are {', '.join(PEERS)}")
    if run is not None and bundles is not None:
        raise UsageError("--run and --bundles: give one of them")
    all_threads = len(os.sched_getaffinity(0))
    try:
        numbers = [all_threads if text == "all" else int(text) for text in threads.split(",")]
    except ValueError:
        raise UsageError(f"--threads {threads}: numbers or all, by commas") from None
    machine = describe_machine()
    source = Source(num_items=num_items, run=run, bundles=bundles)
    console.print_line(f"vectors, interests, exact answers: {source}")
    prepare(source, work, num_requests=num_requests, num_candidates=num_candidates)
    engines: list[dict[str, Any]] = []
    question = {"num_requests": num_requests, "num_candidates": num_candidates}
    for kind in _kinds(kinds):
        console.print_line(f"{kind} …")
        engines.append(stamped(frontier_of(kind, work, **question, threads=numbers)))
        keep(engines[-1], work, question)
    for found in frontiers(names, work, **question, threads=numbers, limit_s=peer_limit_s):
        console.print_line(f"{found['engine']}: {found.get('skipped', 'measured')}")
        engines.append(stamped({**found, "is_peer": True}))
        keep(engines[-1], work, question)
    if combine:
        engines = kept(work, question)
        numbers = sorted({point["threads"] for engine in engines for point in engine["points"]})
    import numpy as np

    num_vectors, dim = np.load(work / VECTORS, mmap_mode="r").shape
    report = {
        "schema_version": 1,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["re4", *sys.argv[1:]]),
        "machine": machine,
        "source": str(source),
        "num_items": num_vectors,
        "embedding_dim": dim,
        "num_interests": np.load(work / INTERESTS, mmap_mode="r").shape[1],
        "num_requests": num_requests,
        "num_candidates": num_candidates,
        "batch_size": BATCH_SIZE,
        "threads": numbers,
        "engines": engines,
    }
    out.mkdir(parents=True, exist_ok=True)
    write_report(report, out)
    if as_json:
        console.print_json(report)
    else:
        console.print_line(markdown(report))


def _kinds(text: str) -> list[str]:
    """Split by the commas between kinds: a factory string's own commas are followed by no known beginning."""
    kinds: list[str] = []
    if text == "none":
        return kinds
    for part in text.split(","):
        if kinds and not part.startswith(("flat", "hnsw", "ivf", "HNSW", "IVF")):
            kinds[-1] += f",{part}"
        else:
            kinds.append(part)
    return kinds
