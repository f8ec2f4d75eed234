"""`re4 bench overhead` from its options to its report.

A round measures its parts one after the other, so that a slow phase of the machine slows all of them.
"""

import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

from re4.benchmarks.common.cpu_stability import in_words
from re4.benchmarks.common.machine import describe_idle_machine
from re4.benchmarks.common.pinning import two_cores
from re4.benchmarks.common.report import command_line, now_utc, write_report
from re4.benchmarks.load_generator.null_server import null_server
from re4.benchmarks.load_generator.requests import choose_histories
from re4.benchmarks.load_generator.server import describe_bundle, sample_reply
from re4.benchmarks.overhead.measure import (
    NUM_CLIENTS,
    NUM_USERS,
    Figures,
    measured_server,
    pipeline_process,
    re4_server,
)
from re4.benchmarks.overhead.options import OverheadOptions
from re4.benchmarks.overhead.report import Round, render_markdown, summary
from re4.bundle.publishing.current import live_version
from re4.bundle.verify import read_manifest
from re4.common.console import progress

SCHEMA_VERSION: Final = 1


def run(options: OverheadOptions) -> dict[str, Any]:
    """Measure, write the report's files, and return the report."""
    cores = two_cores()
    machine = describe_idle_machine()
    load_before = os.getloadavg()[0]
    version = live_version(options.bundles)
    manifest = read_manifest(version)
    other = None if options.against is None else read_manifest(live_version(options.against))
    histories = choose_histories(
        {"max_history_length": manifest.model.max_history_length},
        data=options.data,
        ids=None,
        bundles=options.bundles,
        seed=options.seed,
    )
    payloads = histories.payloads(num_candidates=options.num_candidates, exclude_history=False)
    rounds = _measure(options, version, payloads, cores)
    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "created_at": now_utc(),
        "command": command_line(),
        "machine": machine,
        "bundle": describe_bundle(manifest),
        "against": None if other is None else describe_bundle(other),
        **(summary(rounds, []) if other is None else summary([], rounds)),
        "conditions": {
            "machine": machine["cpu_model"],
            "device": options.device,
            "server_on_core": cores[0],
            "caller_on_core": cores[1],
            "items": f"{manifest.items.num_items:,} of width {manifest.model.embedding_dim}",
            "index": f"{manifest.index.factory or manifest.index.kind} {manifest.index.search_parameters}",
            "recall": manifest.index.recall,
            "requests": histories.source,
            "candidates": options.num_candidates,
            "saturating_callers": NUM_CLIENTS,
            "users_of_a_batch": NUM_USERS,
            "seconds_of_a_part": options.seconds,
            "rounds": options.num_rounds,
            "machine_alone": in_words(machine["steadiness"]),
            "load_average": f"{load_before:.2f} before, {os.getloadavg()[0]:.2f} after",
        },
    }
    write_report(options.out, {"report.json": report, "report.md": render_markdown(report)})
    return report


def _measure(
    options: OverheadOptions, version: Path, payloads: list[bytes], cores: tuple[int, int]
) -> list[Round]:
    """Return rounds of pipeline, null server and server; or of two servers, in an order that alternates."""
    seconds, device, rounds = options.seconds, options.device, []
    parts: dict[str, Callable[[], Figures]] = {}
    with ExitStack() as stack:
        if options.against is None:
            pipeline = stack.enter_context(pipeline_process(version, payloads, core=cores[0], device=device))
            parts["bare"] = partial(pipeline.measure, seconds)
        server = stack.enter_context(re4_server(options.bundles, payloads, cores, device))
        if options.against is None:
            reply = sample_reply(server.address, payloads)
            empty = stack.enter_context(measured_server(null_server(reply), payloads, cores))
            parts["null"] = partial(empty.measure, seconds, has_batches=False)
        else:
            other = stack.enter_context(re4_server(options.against, payloads, cores, device))
            parts["against"] = partial(other.measure, seconds)
        parts["served"] = partial(server.measure, seconds)
        # The first round warms up: pages, caches and connections.
        with progress("rounds" if options.against is None else "pairs", options.num_rounds + 1) as bar:
            for _ in range(options.num_rounds + 1):
                rounds.append({name: measure() for name, measure in parts.items()})
                if options.against is not None:
                    parts = dict(reversed(parts.items()))
                bar.advance()
    return rounds[1:]
